"""What a run has to tell so far, as one plain object: the page of ``nas report`` draws it and knows nothing else.

Nothing is written and no lock is taken: a search may be running meanwhile. Every artefact is written atomically, so
what is there is whole; what is missing or unreadable becomes a note on the page.
"""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from nas.arch import SKIP, Arch
from nas.config.search import Config
from nas.config.space import checked_space
from nas.errors import UserError, call
from nas.latency.base import Costs
from nas.plan import Layout, OpKey, Task, layouts, macs, params, plan
from nas.run.directory import Run
from nas.run.records import Budget, Candidate, Card, Front, Picks
from nas.run.settings import settings_of
from nas.run.tables import kept_table, recorded_costs
from nas.run.timeline import spent
from nas.text import duration
from nas.training.recipes import supernet_epochs
from nas.units import axis, counted, device, unit

META = ("device", "processor", "runtime", "runtime_version", "precision", "batch", "threads", "method", "date",
        "validation", "commit", "source")


def story(run: Run) -> dict[str, Any]:
    """Everything that the page shows. Raises UserError for a run whose settings cannot be read."""
    return _Teller(run, settings_of(run)).tell()


@dataclass(frozen=True)
class _Shown:
    """A front, or what one will be made of; ``place`` is its folder, "" for the search's own."""

    place: str
    target: Sequence[str]
    sizes: Sequence[int]
    networks: Sequence[Candidate]
    budgets: Sequence[Budget]
    standing: Callable[[str, str], str]  # of an id on a target
    unmeasured: str  # what is said of a network without a measurement, with {} for the target


class _Teller:
    def __init__(self, run: Run, config: Config) -> None:
        self.run, self.config, self.notes = run, config, list[str]()
        self.data = self._read("data.json")
        self.layouts: dict[int, Layout] = self._try(self._layouts) if self.data and run.has("space.yaml") else {}
        self.layout = next(iter(self.layouts.values()), None)  # of the largest input size, where there are several
        self.fronts = self._fronts()
        targets = [*config.target, *(target for shown in self.fronts for target in shown.target)]
        self.costs = {target: costs for target in dict.fromkeys(targets) if (costs := self._costs(target))}
        self.known: dict[str, dict[OpKey, float]] = {target: {} for target in self.costs}

    def tell(self) -> dict[str, Any]:
        run, views, networks = self.run, list[Any](), dict[str, Any]()
        for shown in self.fronts:
            views += [self._try(self._view, shown, target) for target in shown.target or [""]]
            networks |= self._try(self._networks, shown) or {}
        return {"run": str(run.path), "made": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
                "state": self._try(self._state) or "not known", "space": self.config.space,
                "data": self.data.get("name", self.config.data),
                "views": [view for view in views if view],
                "units": {target: {"unit": unit(target), "axis": axis(target), "counted": counted(target),
                                   "name": device(target)} for target in self.costs},
                "networks": networks, "export": self._try(self._exports, views) or {}, "slots": self._slots(),
                "pruned": self._try(self._pruned) or [],
                "epochs": self._try(self._events, "epoch", "phase", "pruned") or [],
                "finetune": self._try(self._finetuning), "finetune_title": self._try(self._finetune_title),
                "judged": self._try(self._judged) or [],
                "conditions": self._try(self._conditions),
                "notes": list(dict.fromkeys(self.notes))}

    def _read(self, name: str) -> dict[str, Any]:
        """An object; empty where it is missing or broken."""
        return self._try(self._object, name) if self.run.has(name) else {}

    def _object(self, name: str) -> dict[str, Any]:
        value = self.run.read_json(name)
        if not isinstance(value, dict):
            raise UserError(f"{self.run.file(name)}: expected an object")
        return value

    def _try(self, make: Callable[..., Any], *args: Any) -> Any:
        """Nothing, and a note, where a file of the run cannot be used."""
        try:
            return make(*args)
        except UserError as error:
            self.notes.append(str(error))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self.notes.append(f"{self.run.path}: a file is not as nas search wrote it ({error!r})")
        return {}

    def _layouts(self) -> dict[int, Layout]:
        task = Task(self.data["size"], len(self.data["mean"]), len(self.data["classes"]))
        return layouts(checked_space(self.config, self.run.file("space.yaml")), task, self.config.sizes, exits=True)

    def _at(self, arch: Arch) -> Layout:
        """The layout of an arch's input size."""
        assert self.layout is not None
        return self.layouts.get(arch.size, self.layout)

    def _costs(self, target: str) -> Costs | None:
        name = self._try(kept_table, self.run, target) or ""
        known = counted(target) or self.run.has(name)
        return self._try(recorded_costs, self.run, target) if known else None

    def _fronts(self) -> list[_Shown]:
        """The front of the search, finished or as far as it is, and that of every finished selection."""
        finished = [self._try(self._finished, place) for place in self.run.places()
                    if self.run.has(f"{place}front.json")]
        so_far = self._try(self._so_far) if not self.run.has("front.json") and self.run.has("picks.json") else None
        return [shown for shown in (so_far, *finished) if shown]

    def _finished(self, place: str) -> _Shown:
        front = self.run.read(f"{place}front.json", Front)
        return _Shown(place, front.target, front.sizes, [*front.cards, *front.too_large], front.budgets,
                      front.standing, "not measured: no {} here")

    def _so_far(self) -> _Shown:
        """What the front will be made of: cards of the picks that are delivered, bare milliseconds of the others."""
        picks, ms = self.run.read("picks.json", Picks), dict[str, dict[str, float]]()
        for pick in picks.budgets:
            ms.setdefault(pick.id, {}).update(pick.ms)
        archs = {pick.id: pick.arch for pick in picks.budgets}
        networks = [self._delivered(id) or Candidate(id=id, arch=arch, size=arch.size, ms=ms[id])
                    for id, arch in archs.items()]
        return _Shown("", list(self.config.target), list(self.config.sizes or []), networks,
                      [pick.budget() for pick in picks.budgets], lambda id, target: "not decided yet",
                      "not measured yet")

    def _delivered(self, id: str) -> Card | None:
        name = f"archs/{id}/card.json"
        return self._try(self.run.read, name, Card) or None if self.run.has(name) else None

    def _view(self, shown: _Shown, target: str) -> dict[str, Any]:
        points = [{**_brief(network, target, bool(shown.sizes)), "standing": shown.standing(network.id, target)}
                  for network in shown.networks]
        measured = {point["id"]: point["measured_ms"] for point in points}
        budgets = [{"budget_ms": budget.budget_ms[target], "id": budget.id, "ms": budget.ms[target],
                    "measured_ms": measured.get(budget.id)} for budget in shown.budgets if target in budget.budget_ms]
        return {"name": f"{shown.place.strip('/') or 'search'}: {target or 'no target'}", "target": target,
                "unmeasured": "counted, not measured" if counted(target) else shown.unmeasured.format(target),
                "points": sorted(points, key=lambda point: point["ms"] if point["ms"] is not None else 0.0),
                "budgets": budgets}

    def _exports(self, views: list[Any]) -> dict[str, str]:
        """Returns, by the id of a network, what writes its files."""
        ids = dict.fromkeys(point["id"] for view in views if view for point in view["points"])
        return {id: call("export", run=str(self.run.path), arch=id, out=id) for id in ids}

    def _networks(self, shown: _Shown) -> dict[str, list[dict[str, Any]]]:
        """Rows of every network of a front whose arch stands."""
        archs = {network.id: network.arch.to_json() if network.arch else
                 self._read(f"{shown.place}archs/{network.id}/arch.json") for network in shown.networks}
        networks = {id: self._try(self._network, arch) for id, arch in archs.items() if arch and self.layout}
        return {id: rows for id, rows in networks.items() if rows}

    def _network(self, value: Any) -> list[dict[str, Any]]:
        """Stem, every slot (skipped ones too), exits and head in the order they run, with what each costs."""
        arch = Arch.from_json(value)
        at = self._at(arch)
        plan(at, arch)  # refuses an arch of another space
        heads = {exit_.slot: exit_.key for exit_ in at.exits}
        rows: list[tuple[str, OpKey | None]] = [("stem", at.stem)]
        for slot, op in zip(at.slots, arch.ops, strict=True):
            rows += [(str(slot.index), None if op == SKIP else slot.key(op))]
            rows += [(f"exit {slot.index}", heads[slot.index])] if slot.index in arch.exits else []
        rows.append(("head", at.head))
        self._price(key for _, key in rows if key)
        return [self._row(where, key) for where, key in rows]

    def _row(self, where: str, key: OpKey | None) -> dict[str, Any]:
        if key is None:
            return {"where": where, "op": "skip"}
        return {"where": where, "op": str(key.op), "in_ch": key.in_ch, "out_ch": key.out_ch, "stride": key.stride,
                "size": key.size, "macs": macs(key), "params": params(key),
                "ms": {target: known[key] for target, known in self.known.items() if key in known}}

    def _price(self, keys: Iterable[OpKey]) -> None:
        """Looks up what is not known yet; a cost that a table has not is left out, and noted."""
        wanted = list(dict.fromkeys(keys))
        for target, costs in self.costs.items():
            new = [key for key in wanted if key not in self.known[target]]
            self.known[target].update(zip(new, self._try(costs.ms_many, new), strict=False))

    def _slots(self) -> list[dict[str, Any]]:
        slots = self.layout.slots if self.layout else ()
        return [{"stage": slot.stage, "in_ch": slot.in_ch, "out_ch": slot.out_ch, "stride": slot.stride,
                 "size": slot.size, "branches": [str(branch.op) for branch in slot.branches]} for slot in slots]

    def _pruned(self) -> list[dict[str, Any]]:
        """Every drop with its evidence: the most that its probability reached at any budget."""
        return [{**{key: drop[key] for key in ("slot", "op", "kind", "epoch", "threshold")},
                 "most": max(max(row) for row in drop["probabilities"])}
                for epoch in self._events("epoch", "phase") for drop in epoch.get("pruned") or []]

    def _events(self, kind: str, must: str, without: str = "") -> list[dict[str, Any]]:
        """The last line of every epoch: one that was done again after a kill stands twice in the log."""
        events = {(e.get("phase"), e.get("id"), e.get("epoch")): e for e in self.run.events(kind) if must in e}
        return [{key: value for key, value in e.items() if key != without} for e in events.values()]

    def _finetuning(self) -> dict[str, list[dict[str, Any]]]:
        """Loss by epoch of every pick: of labels alone, where that is known, which all have alike."""
        events, curves = self._events("finetune", "id"), dict[str, list[dict[str, Any]]]()
        for event in sorted(events, key=lambda e: e.get("epoch", 0)):
            loss = event.get("label_loss", event.get("loss"))
            curves.setdefault(event["id"], []).append({"epoch": event.get("epoch"), "loss": loss})
        return curves

    def _finetune_title(self) -> str:
        """Which loss is drawn: one that all picks have alike, or in runs of before that was logged, each its own."""
        events = self._events("finetune", "id")
        taught = "" if self.config.train.distill == "none" else (
            "the largest pick learns from labels alone, the others from its answers as well")
        if all("label_loss" in event for event in events):
            return "Fine-tuning: cross-entropy with the labels" + (f" ({taught})" if taught else "")
        return "Fine-tuning: loss" + (f" ({taught}: not to be compared with it)" if taught else "")

    def _judged(self) -> list[dict[str, Any]]:
        """Networks that the selection has judged: held-out loss with inherited weights, and predicted ms."""
        judged = []
        for event in self.run.events("judged") if self.layout else []:
            ms = self._try(self._ms, event.get("arch"))
            judged.append({"id": event.get("id"), "loss": event.get("loss"), "ms": ms})
        return judged

    def _ms(self, value: Any) -> dict[str, float]:
        arch = Arch.from_json(value)
        keys = plan(self._at(arch), arch)
        self._price(keys)
        return {target: sum(known[key] for key in keys) for target, known in self.known.items()
                if all(key in known for key in keys)}

    def _state(self) -> str:
        if self.run.has("front.json"):
            return "finished"
        if self.run.has("picks.json"):
            return "so far: picks are chosen, fine-tuning and export are under way or stopped"
        sizes = self.data.get("sizes")
        done = len(self._events("epoch", "phase"))
        if not isinstance(sizes, dict) or not done:
            return "so far: the supernet has not finished an epoch"
        total = sum(supernet_epochs(self.config.train, sizes.get("train", 1)).values())
        return f"so far: {done} of {total} epochs of the supernet"

    def _conditions(self) -> dict[str, Any]:
        """Settings, machine, images, targets, hours."""
        data = {key: value for key, value in self.data.items() if key not in ("mean", "std", "class_counts")}
        tables = {target: {key: costs.meta[key] for key in META if costs.meta.get(key) is not None}
                  for target, costs in self.costs.items()}
        stages = {e["name"]: f"{e.get('seconds')} s" for e in self.run.events("stage") if "name" in e}
        spent = sum(e["seconds"] for kind in ("epoch", "finetune") for e in self.run.events(kind)
                    if isinstance(e.get("seconds"), int | float))
        times = [str(e.get("time", ""))[:19] for e in self.run.events()]
        hours = {"first line of the log": times[0], "last line": times[-1],
                 "seconds in training": round(spent)} if times else {}
        environment = self._read("environment.json")
        environment["command"] = shlex.join(map(str, environment.get("command", [])))
        return {"settings": self.config.to_json(), "machine of the run": environment, "images": data,
                **{f"target {name}": meta for name, meta in tables.items()},
                "time": {**hours, **_phases(self.run), **stages}}


def _phases(run: Run) -> dict[str, str]:
    """What each phase of the search took, over all calls."""
    return {f"spent: {name}": duration(seconds) for name, seconds in spent(run).items() if seconds}


def _brief(network: Candidate, target: str, sizes: bool) -> dict[str, Any]:
    """A card for one target; with its input size, where there are several."""
    names = ("id", "accuracy", "accuracy_se", "select_accuracy", "test_images", "macs", "params", "fine_tuned",
             "float_accuracy", "max_abs_diff", "exits", *(["size"] if sizes else []))
    known = {name: value for name in names if (value := getattr(network, name, None)) is not None}
    return {**known, **{key: getattr(network, key, {}).get(target) for key in ("ms", "measured_ms", "drift")}}
