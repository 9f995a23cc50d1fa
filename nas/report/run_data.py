"""Collects what the page of ``nas report`` shows of a run, finished or not, as one plain object.

Nothing is written and no lock is taken: a search may be running meanwhile. Every file is written atomically, so
what is there is whole; what is missing or unreadable becomes a note on the page.
"""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nas.arch import SKIP, Arch
from nas.config.search import Config
from nas.config.space import checked_space
from nas.errors import UserError, call
from nas.latency.base import Costs
from nas.plan import Layout, OpKey, Task, layouts, macs, params, plan
from nas.run import timeline
from nas.run.directory import ENVIRONMENT, Run
from nas.run.events import AnyEvent, Epoch, FineTuned, Judged, Stage
from nas.run.images import DATA
from nas.run.known import known_layout
from nas.run.provenance import Environment
from nas.run.records import Budget, Candidate, Card, DataRecord, Front, Picks
from nas.run.settings import settings_of
from nas.run.tables import kept_table, recorded_costs
from nas.text import duration
from nas.training.recipes import GROW, supernet_epochs
from nas.units import axis, device, is_count, unit

META = ("device", "processor", "runtime", "runtime_version", "precision", "batch", "threads", "method", "date",
        "validation", "commit", "source")


def collect(run: Run) -> dict[str, Any]:
    """Returns everything that the page of a run shows. Raises UserError for a run whose settings cannot be read."""
    return _Collector(run, settings_of(run)).collect()


@dataclass(frozen=True)
class _PartialFront:
    """Holds a front, or, of a search that is under way, what is known of its picks so far.

    ``place`` is its folder in the run, "" for that of the search itself.
    """

    place: str
    target: Sequence[str]
    sizes: Sequence[int]
    networks: Sequence[Candidate]
    budgets: Sequence[Budget]
    standing: Callable[[str, str], str]  # of an id on a target
    unmeasured: str  # the text for a network without a measurement, with {} for the target


class _Collector:
    """Reads the files of a run as far as they are there; ``notes`` say which of them cannot be used."""

    def __init__(self, run: Run, config: Config) -> None:
        self.run, self.config, self.notes = run, config, list[str]()
        self.images: DataRecord | None = self._try(run.read, DATA, DataRecord) or None if run.has(DATA) else None
        known = self.images and run.has("space.yaml")
        self.layouts: dict[int, Layout] = self._try(self._make_layouts, self.images) if known else {}
        self.layout = next(iter(self.layouts.values()), None)  # of the largest input size, where there are several
        self.fronts = self._fronts()
        targets = [*config.target, *(target for front in self.fronts for target in front.target)]
        self.costs = {target: costs for target in dict.fromkeys(targets) if (costs := self._load_costs(target))}
        self.known_ms: dict[str, dict[OpKey, float]] = {target: {} for target in self.costs}

    @cached_property
    def epochs(self) -> list[Epoch]:
        """Returns the epochs of the supernet so far."""
        return timeline.epochs(self.run)

    def collect(self) -> dict[str, Any]:
        """Returns what the page shows, as plain values for JSON."""
        run, views, networks = self.run, list[Any](), dict[str, Any]()
        for front in self.fronts:
            views += [self._try(self._view, front, target) for target in front.target or [""]]
            networks |= self._try(self._networks, front) or {}
        return {"run": str(run.path), "made": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
                "state": self._try(self._state) or "not known", "space": self.config.space,
                "data": self.images.name if self.images else self.config.data,
                "views": [view for view in views if view],
                "units": {target: {"unit": unit(target), "axis": axis(target), "counted": is_count(target),
                                   "name": device(target)} for target in self.costs},
                "networks": networks, "export": self._try(self._export_commands, views) or {}, "slots": self._slots(),
                "pruned": self._pruned(), "epochs": [_figures(epoch) for epoch in self.epochs],
                "finetune": self._finetuning(), "finetune_title": self._finetune_title(),
                "judged": self._judged(),
                "conditions": self._try(self._conditions),
                "notes": list(dict.fromkeys(self.notes))}

    def _read_object(self, name: str) -> dict[str, Any]:
        """Reads the JSON object in a file of the run; returns an empty one where it is missing or broken."""
        def read() -> dict[str, Any]:
            value = self.run.read_json(name)
            if not isinstance(value, dict):
                raise UserError(f"{self.run.file(name)}: expected an object")
            return value

        return self._try(read) if self.run.has(name) else {}

    def _try(self, make: Callable[..., Any], *args: Any) -> Any:
        """Returns what ``make`` returns; where a file of the run cannot be used, it notes that and returns ``{}``."""
        try:
            return make(*args)
        except UserError as error:
            self.notes.append(str(error))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self.notes.append(f"{self.run.path}: a file is not as nas search wrote it ({error!r})")
        return {}

    def _make_layouts(self, images: DataRecord) -> dict[int, Layout]:
        """Returns the layout of the run's space for each input size, the largest first."""
        task = Task(images.size, len(images.mean), len(images.classes))
        return layouts(checked_space(self.config, self.run.file("space.yaml")), task, self.config.sizes, exits=True)

    def _layout_of(self, arch: Arch) -> Layout:
        """Returns the layout for an arch's input size, of a known network outside the space that of its own."""
        assert self.layout is not None
        of_size = self.layouts.get(arch.size, self.layout)
        return of_size if arch.space == of_size.space else known_layout(self.run, arch.space, of_size.task) or of_size

    def _load_costs(self, target: str) -> Costs | None:
        """Loads the costs of a target as the run keeps them; None where it has none or they are broken."""
        name = self._try(kept_table, self.run, target) or ""
        has_costs = is_count(target) or self.run.has(name)
        return self._try(recorded_costs, self.run, target) if has_costs else None

    def _fronts(self) -> list[_PartialFront]:
        """Returns the front of the search, finished or as far as it is, and that of every finished selection."""
        finished = [self._try(self._read_front, place) for place in self.run.places()
                    if self.run.has(f"{place}front.json")]
        so_far = (self._try(self._front_so_far) if not self.run.has("front.json") and self.run.has("picks.json")
                  else None)
        return [front for front in (so_far, *finished) if front]

    def _read_front(self, place: str) -> _PartialFront:
        """Reads the finished front in a folder of the run."""
        front = self.run.read(f"{place}front.json", Front)
        return _PartialFront(place, front.target, front.sizes, [*front.cards, *front.too_large], front.budgets,
                             front.standing, "not measured: no {} here")

    def _front_so_far(self) -> _PartialFront:
        """Returns what is known of the search's picks: cards of those delivered, bare milliseconds of the others."""
        picks, ms = self.run.read("picks.json", Picks), dict[str, dict[str, float]]()
        for pick in picks.budgets:
            ms.setdefault(pick.id, {}).update(pick.ms)
        archs = {pick.id: pick.arch for pick in picks.budgets}
        networks = [self._read_card(id) or Candidate(id=id, arch=arch, size=arch.size, ms=ms[id])
                    for id, arch in archs.items()]
        return _PartialFront("", list(self.config.target), list(self.config.sizes or []), networks,
                             [pick.budget() for pick in picks.budgets], lambda id, target: "not decided yet",
                             "not measured yet")

    def _read_card(self, id: str) -> Card | None:
        """Reads the card of a pick of the search; None where it is not delivered yet or its card is broken."""
        name = f"archs/{id}/card.json"
        return self._try(self.run.read, name, Card) or None if self.run.has(name) else None

    def _view(self, front: _PartialFront, target: str) -> dict[str, Any]:
        """Returns what the page draws of a front on one target: a point for each network, and the budgets."""
        points = [{**_brief(network, target, bool(front.sizes)), "standing": front.standing(network.id, target)}
                  for network in front.networks]
        measured = {point["id"]: point["measured_ms"] for point in points}
        budgets = [{"budget_ms": budget.budget_ms[target], "id": budget.id, "ms": budget.ms[target],
                    "measured_ms": measured.get(budget.id)} for budget in front.budgets if target in budget.budget_ms]
        return {"name": f"{front.place.strip('/') or 'search'}: {target or 'no target'}", "target": target,
                "unmeasured": "counted, not measured" if is_count(target) else front.unmeasured.format(target),
                "points": sorted(points, key=lambda point: point["ms"] if point["ms"] is not None else 0.0),
                "budgets": budgets}

    def _export_commands(self, views: list[Any]) -> dict[str, str]:
        """Returns, by the id of a network, the command that writes its files."""
        ids = dict.fromkeys(point["id"] for view in views if view for point in view["points"])
        return {id: call("export", run=str(self.run.path), arch=id, out=id) for id in ids}

    def _networks(self, front: _PartialFront) -> dict[str, list[dict[str, Any]]]:
        """Returns, by id, the operators of every network of a front whose arch is known."""
        archs = {network.id: network.arch.to_json() if network.arch else
                 self._read_object(f"{front.place}archs/{network.id}/arch.json") for network in front.networks}
        networks = {id: self._try(self._operators, arch) for id, arch in archs.items() if arch and self.layout}
        return {id: operators for id, operators in networks.items() if operators}

    def _operators(self, value: Any) -> list[dict[str, Any]]:
        """Lists stem, all slots (skipped ones too), exits and head of an arch in the order they run, with their costs.
        """
        arch = Arch.from_json(value)
        layout = self._layout_of(arch)
        plan(layout, arch)  # refuses an arch of another space
        heads = {exit_.slot: exit_.key for exit_ in layout.exits}
        keys: list[tuple[str, OpKey | None]] = [("stem", layout.stem)]
        for slot, op in zip(layout.slots, arch.ops, strict=True):
            keys += [(str(slot.index), None if op == SKIP else slot.key(op))]
            keys += [(f"exit {slot.index}", heads[slot.index])] if slot.index in arch.exits else []
        keys.append(("head", layout.head))
        self._look_up(key for _, key in keys if key)
        return [self._operator(where, key) for where, key in keys]

    def _operator(self, where: str, key: OpKey | None) -> dict[str, Any]:
        """Returns what the page says of one operator: shapes and costs; ``where`` is its slot, or stem, exit, head."""
        if key is None:
            return {"where": where, "op": "skip"}
        return {"where": where, "op": str(key.op), "in_ch": key.in_ch, "out_ch": key.out_ch, "stride": key.stride,
                "size": key.size, "macs": macs(key), "params": params(key),
                "ms": {target: ms[key] for target, ms in self.known_ms.items() if key in ms}}

    def _look_up(self, keys: Iterable[OpKey]) -> None:
        """Puts the costs of operators on all targets into ``known_ms``; one that a table lacks is left out, and noted.
        """
        wanted = list(dict.fromkeys(keys))
        for target, costs in self.costs.items():
            new = [key for key in wanted if key not in self.known_ms[target]]
            self.known_ms[target].update(zip(new, self._try(costs.ms_many, new), strict=False))

    def _slots(self) -> list[dict[str, Any]]:
        """Lists the slots of the space with their shapes and branches."""
        slots = self.layout.slots if self.layout else ()
        return [{"stage": slot.stage, "in_ch": slot.in_ch, "out_ch": slot.out_ch, "stride": slot.stride,
                 "size": slot.size, "branches": [str(branch.op) for branch in slot.branches]} for slot in slots]

    def _pruned(self) -> list[dict[str, Any]]:
        """Lists what was pruned, with the reason: the highest probability that the gates gave it at any budget."""
        return [{"slot": drop.slot, "op": drop.op, "kind": drop.kind, "epoch": epoch.epoch,
                 "threshold": drop.threshold, "most": drop.most}
                for epoch in self.epochs if epoch.pruning for drop in epoch.pruning.dropped]

    def _finetuning(self) -> dict[str, list[dict[str, Any]]]:
        """Returns, by pick, the loss of every epoch of fine-tuning.

        It is the loss of the labels alone: picks that learn from a teacher and those that do not can be compared by
        that.
        """
        curves: dict[str, list[dict[str, Any]]] = {}
        for tuned in sorted(timeline.tuned(self.run), key=lambda tuned: tuned.epoch):
            curves.setdefault(tuned.id, []).append({"epoch": tuned.epoch, "loss": tuned.label_loss})
        return curves

    def _finetune_title(self) -> str:
        """Returns the title of the curves of fine-tuning, which says what loss they show and who was taught by whom."""
        others = {"none": "", GROW: " (each pick begins with what the smaller ones have learned)"}
        return "Fine-tuning: cross-entropy with the labels" + others.get(
            self.config.train.distill,
            " (the largest pick learns from labels alone, the others from its answers as well)")

    def _judged(self) -> list[dict[str, Any]]:
        """Lists the networks that the selection has judged: held-out loss with inherited weights, and predicted ms."""
        judged = self.run.events(Judged) if self.layout else []
        plans = [self._try(plan, self._layout_of(event.arch), event.arch) for event in judged]
        self._look_up(key for keys in plans for key in keys)  # at once: a kernel model is as long at one as at hundreds
        return [{"id": event.id, "loss": event.loss, "ms": self._predicted_ms(keys) if keys else {}}
                for event, keys in zip(judged, plans, strict=True)]

    def _predicted_ms(self, keys: Sequence[OpKey]) -> dict[str, float]:
        """Returns, by target, the sum over operators, where all of their costs are known."""
        self._look_up(keys)  # of its own: among all at once, one that a table lacks leaves the others out, too
        return {target: sum(ms[key] for key in keys) for target, ms in self.known_ms.items()
                if all(key in ms for key in keys)}

    def _state(self) -> str:
        """Says how far the search is."""
        if self.run.has("front.json"):
            return "finished"
        if self.run.has("picks.json"):
            return "so far: picks are chosen, fine-tuning and export are under way or stopped"
        done = len(self.epochs)
        if self.images is None or not done:
            return "so far: the supernet has not finished an epoch"
        total = sum(supernet_epochs(self.config.train, self.images.source.sizes.get("train", 1)).values())
        return f"so far: {done} of {total} epochs of the supernet"

    def _conditions(self) -> dict[str, Any]:
        """Returns under what conditions the search ran: settings, machine, images, targets, hours."""
        images = self.images.model_dump(exclude={"mean": True, "std": True, "source": {"classes", "class_counts"}}
                                        ) if self.images else {}
        tables = {target: {key: value for key, value in costs.meta.to_json().items() if key in META}
                  for target, costs in self.costs.items()}
        stages = {event.name: f"{event.seconds} s" for event in self.run.events(Stage)}
        trained = [epoch.seconds for epoch in self.run.events(Epoch)]
        trained += [tuned.seconds for tuned in self.run.events(FineTuned)]
        times = [event.time[:19] for event in self.run.events(AnyEvent)]
        hours = {"first line of the log": times[0], "last line": times[-1],
                 "seconds in training": round(sum(trained))} if times else {}
        return {"settings": self.config.to_json(), "machine of the run": self._try(self._machine), "images": images,
                **{f"target {name}": meta for name, meta in tables.items()},
                "time": {**hours, **_phase_durations(self.run), **stages}}

    def _machine(self) -> dict[str, Any]:
        """Returns where and with what the run was made; the command as it is typed."""
        environment = self.run.read(ENVIRONMENT, Environment)
        return {**environment.to_json(), "command": shlex.join(environment.command)}


def _phase_durations(run: Run) -> dict[str, str]:
    """Returns what each phase of the search took, over all calls of its command."""
    return {f"spent: {name}": duration(seconds) for name, seconds in timeline.spent(run).items() if seconds}


def _figures(epoch: Epoch) -> dict[str, Any]:
    """Returns the figures of an epoch; what it dropped is listed apart."""
    pruning = epoch.pruning and {**vars(epoch.pruning), "dropped": len(epoch.pruning.dropped)}
    entry = epoch.entry and {**vars(epoch.entry), "passed": epoch.entry.passed}
    return {**vars(epoch), "pruning": pruning, "entry": entry}


def _brief(network: Candidate, target: str, sizes: bool) -> dict[str, Any]:
    """Returns what the page shows of a network on one target; its input size (``sizes``) where there are several."""
    names = ("id", "accuracy", "accuracy_se", "select_accuracy", "test_images", "macs", "params", "fine_tuned",
             "float_accuracy", "max_abs_diff", "exits", "known", *(["size"] if sizes else []))
    known = {name: value for name in names if (value := getattr(network, name, None)) is not None}
    return {**known, **{key: getattr(network, key, {}).get(target) for key in ("ms", "measured_ms", "drift")}}
