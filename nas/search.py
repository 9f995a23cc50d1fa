"""The pipeline, stage by stage over a Run: scene, supernet, selection, fine-tuning, export, front.

Each stage writes one artefact and is skipped where it stands, so the same command continues what was stopped.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nas import checkpoint, deliver
from nas.arch import Arch
from nas.config import Config
from nas.errors import UserError
from nas.footprint import UNLIMITED, Memory, within
from nas.latency.costs import load as load_costs
from nas.picks import folder_of, train_picks
from nas.progress import Progress, Task
from nas.report.figures import draw_front
from nas.run import Run
from nas.scene import (
    Scene,
    checked_space,
    compiler,
    find_costs,
    limits_of,
    limits_of_memory,
    memory_bounds,
    problem,
    recorded_scene,
    set_scene,
    with_targets,
)
from nas.select import get as selector
from nas.select import scores as fits
from nas.select.pareto import Point
from nas.select.pareto import front as pareto_front
from nas.select.problem import Cost, Limits, Problem, Scores
from nas.show import targets_of
from nas.supernet.gates import RELAXATIONS, position
from nas.train import augment, crew, finetune, loop, search_loop
from nas.train.ranks import ALONE, Ranks, joined

SUPERNET = "supernet.pt"
CHECKPOINT_EVERY_S = 15.0  # at epoch ends: short epochs would otherwise spend their time on writing
JUDGED_ON = 500  # held-out images a network is ranked on, by loss: a quarter of what accuracy needs (gates trial 2)
USED = 0.9  # share of a budget that its pick takes: inherited loss favours the smallest network, fine-tuning does not
CALIBRATED_ON = 256  # training images for its batch norm statistics
FORMATS = {"onnx": (deliver.to_onnx, deliver.ONNX), "int8-onnx": (deliver.to_int8, deliver.INT8),
           "tflite": (deliver.to_tflite, deliver.TFLITE)}


def refuse(config: Config) -> None:
    """Raises UserError for a space or a target that cannot be used; quick, and writes nothing."""
    checked_space(config)
    loop.device_of(config.train_on)
    if config.train.augment:
        augment.check(config.train.augment)
    if config.init:
        Run.existing(config.init)
    for target in config.target:
        path, memory = find_costs(target), limits_of_memory(config)
        if memory.given:
            compiler(target, load_costs(str(path)) if path else None, memory)


def search(config: Config, run: Run, progress: Progress) -> dict[str, Any]:
    """The whole road; continues where the run stands. Raises UserError for what the user has to mend."""
    scene = set_scene(config, run, config.target, progress)
    limits = {target: limits_of(scene, scene.layout, target, _given(config, target), config.budgets)
              for target in config.target}
    with joined() as group:  # the processes of torchrun; the others leave once the supernet is trained
        training = _supernet(scene, limits, group, progress)
    picks = run.stage("picks.json", lambda: _pick(scene, training, limits, "", progress))
    return _finish(scene, training, picks, "", True, progress)


def select(run: Run, targets: Sequence[str], budget_ms: Sequence[float], progress: Progress,
           fine_tune: bool = False, memory: Memory = UNLIMITED) -> dict[str, Any]:
    """New picks from the run's supernet for other devices or budgets, with inherited weights unless ``fine_tune``.

    Limits of ``memory`` that are not given are those of the run, if all targets are its own.
    """
    config = Config.from_json(run.config, str(run.file("config.json")))
    if not run.has("picks.json"):
        raise UserError(f"{run.path}: its supernet is not finished; give its nas search command again first")
    scene = set_scene(config, run, config.target, progress)
    training = _trained(scene)
    limited = _memory(config, targets, memory)
    scene = with_targets(scene, targets, training.supernet.layout, progress, limited)
    kept = within(training.supernet.layout, scene.footprints)
    limits = {t: limits_of(scene, kept, t, budget_ms if t == targets[0] else [], config.budgets) for t in targets}
    unseen = [target for target in targets if target not in config.target]
    if unseen:
        progress.note(f"{run.path}: was pruned without {', '.join(unseen)} in view; what only that would keep is gone")
    asked = [limits, fine_tune, *([limited.given] if limited.given else [])]
    name = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
    place = f"selections/{'+'.join(Path(t).stem for t in targets)}-{name}/"
    picks = run.stage(f"{place}picks.json", lambda: _pick(scene, training, limits, place, progress))
    return _finish(scene, training, picks, place, fine_tune, progress)


def export(run: Run, arch_id: str | None, budget_ms: float | None, out: Path | None, progress: Progress,
           kind: str = "onnx") -> dict[str, Any]:
    """One pick or all in a format of ``FORMATS``, written anew, checked, and measured where that is possible."""
    write, name = FORMATS[kind]
    config = Config.from_json(run.config, str(run.file("config.json")))
    selections = sorted(path.parent.name for path in run.path.glob("selections/*/front.json"))
    fronts = {place: run.read_json(f"{place}front.json") for place in ("", *(f"selections/{s}/" for s in selections))}
    place, wanted = _wanted(fronts, arch_id, budget_ms)
    scene = recorded_scene(config, run, targets_of(fronts[place]), images=kind != "onnx")
    predicted = {card["id"]: card["ms"] for card in _cards(fronts[place])}
    files = []
    with progress.task("export", len(wanted)) as task:
        for one in wanted:
            arch = Arch.from_json(run.read_json(f"{place}archs/{one}/arch.json"))
            path = out / f"{one}{name.removeprefix('model')}" if out else run.file(folder_of(place, arch) + name)
            files.append({"id": one, **write(scene, arch, place, path), "predicted_ms": predicted[one]})
            task.advance()
    return {"files": files}


def _memory(config: Config, targets: Sequence[str], asked: Memory) -> Memory:
    own = limits_of_memory(config) if set(targets) <= set(config.target) else UNLIMITED
    return Memory(asked.sram_kb or own.sram_kb, asked.flash_kb or own.flash_kb)


def _given(config: Config, target: str) -> list[float]:
    """Budgets in ms are those of the first target; the others get as many over their own range."""
    return config.budget_ms if target == config.target[0] else []


def _supernet(scene: Scene, limits: dict[str, list[float]], group: Ranks,
              progress: Progress) -> search_loop.SupernetTraining:
    training, run = _training(scene, limits, group), scene.run
    if run.has(SUPERNET):
        _resume(training, run)
    elif scene.config.init:
        _start_from(Run.existing(scene.config.init), scene, training, progress)
    crew.begin(scene.config, training, progress)
    saved = time.monotonic()
    while not training.finished:
        phase, index = training.schedule[training.done]
        total = training.recipe.epochs[phase]
        with progress.task(f"supernet {phase}", total, index) as task:
            while not training.finished and training.schedule[training.done][0] == phase:
                began = time.monotonic()
                record = training.epoch(_within(task, training.schedule[training.done][1]))
                run.log("epoch", **record, seconds=round(time.monotonic() - began, 3))
                _tell(record, progress)
                if time.monotonic() - saved > CHECKPOINT_EVERY_S or training.finished:
                    checkpoint.save(run, SUPERNET, training.state())
                    saved = time.monotonic()
    return training


def _within(task: Task, epoch: int) -> Callable[[int, int], None]:
    """Moves a task that counts epochs along with the steps of one of them."""
    return lambda step, of: task.advance(epoch + step / of - task.done)


def _resume(training: search_loop.SupernetTraining, run: Run) -> None:
    try:
        training.load(checkpoint.load(run, SUPERNET))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{run.file(SUPERNET)}: not of this search; delete it: the supernet is trained again") from None


def _start_from(other: Run, scene: Scene, training: search_loop.SupernetTraining, progress: Progress) -> None:
    """Takes over the weights of an earlier run's supernet: everything of equal name and shape."""
    old = Config.from_json(other.config, str(other.file("config.json")))
    if not other.has("picks.json"):
        raise UserError(f"--init {other.path}: that run has not finished its supernet")
    recorded, own_splits = other.read_json("data.json"), scene.data.indices
    if recorded.get("from") == scene.data.source["from"]:
        earlier = other.read_json("splits.json")
        if set(own_splits["select"]) & {*earlier["train"], *earlier["gate"]}:
            raise UserError(f"--init {other.path}: it trained on images of this run's selection split; take its --seed "
                            "and --limit")
    taken = training.start_from(checkpoint.load(other, SUPERNET))
    if not taken:
        raise UserError(f"--init {other.path}: a supernet of {old.space}; it shares nothing with this space")
    progress.note(f"starting from {other.path}: {taken} of {len(training.supernet.state_dict())} tensors")


def _tell(record: dict[str, Any], progress: Progress) -> None:
    for drop in record.get("pruned", []):
        progress.note(f"pruned {drop['kind']}: slot {drop['slot']} {drop['op']}, at most "
                      f"{max(max(row) for row in drop['probabilities']):.3f} over all budgets")
    if record.get("entry_passed") is False:
        progress.note("warning: after the warm-up the smallest and the largest network are hardly apart in held-out "
                      f"loss ({record['entry_smallest_loss']:.3f}, {record['entry_largest_loss']:.3f}); gates see "
                      "little signal: a longer train.warmup_epochs may help")


def _training(scene: Scene, limits: dict[str, list[float]], group: Ranks = ALONE) -> search_loop.SupernetTraining:
    config, data = scene.config, scene.data
    t, g = config.train, config.gates
    given = {"warmup": t.warmup_epochs, "search": t.search_epochs, "settle": t.settle_epochs}
    epochs = {phase: n if n is not None else search_loop.default_epochs(phase, len(data.train))
              for phase, n in given.items()}
    recipe = search_loop.Recipe(epochs, t.batch, t.lr, t.weight_decay, t.label_smoothing, t.augment or data.augment,
                                t.sandwich_every, g.relaxation, g.lr, g.every, (g.tau_start, g.tau_end), config.prune,
                                g.latency, g.latency_options, g.update, t.inplace, t.ema, t.accumulate, t.amp,
                                g.widths)
    ranges = [_range(problem(scene, scene.layout, [target]).costs[0], limits[target]) for target in config.target]
    grid = sorted({position(b, *bounds) for t, bounds in zip(config.target, ranges, strict=True) for b in limits[t]})
    return search_loop.SupernetTraining(scene.layout, data, [scene.prices[target] for target in config.target], ranges,
                                        tuple(grid), recipe, scene.seed, scene.device, group)


def _range(cost: Cost, budgets: Sequence[float]) -> tuple[float, float]:
    """Budgets of the gates: those asked for, but not the very ends of the reachable range.

    There a single network meets the expectation, whatever the gates say, and nothing could be learned or pruned.
    """
    low = min(max(min(budgets), 1.03 * cost.smallest), cost.largest)
    return low, max(low, min(max(budgets), 0.9 * cost.largest))


def _trained(scene: Scene) -> search_loop.SupernetTraining:
    config = scene.config
    limits = {t: limits_of(scene, scene.layout, t, _given(config, t), config.budgets) for t in config.target}
    training = _training(scene, limits)
    _resume(training, scene.run)
    return training


def _pick(scene: Scene, training: search_loop.SupernetTraining, limits: dict[str, list[float]], place: str,
          progress: Progress) -> dict[str, Any]:
    """Asks the selector, target by target; every network judged stays in the log and is never judged again."""
    config, kept = scene.config, within(training.supernet.layout, scene.footprints)
    budgets: list[dict[str, Any]] = []
    agreement: dict[str, Any] = {}
    for target, bounds in limits.items():
        one = problem(scene, kept, [target])
        with progress.task(f"select for {target}", config.evaluations) as task:
            judge = _Judge(scene, training, task)
            choose, scores = selector(config.selector), _scores(training, one, target, scene)
            limited = [{target: b, **memory_bounds(scene, target)} for b in bounds]
            ranked = choose(one, limited, scores, judge, config.evaluations,
                            random.Random(scene.seed))
        for bound, archs in zip(bounds, ranked, strict=True):
            if target in scene.footprints and not archs:
                raise UserError(scene.footprints[target].nothing(f" within {bound:.6g} ms"))
            if archs:
                best = next((arch for arch in archs if one.cost(arch, target) >= USED * bound), archs[0])
                budgets.append({"target": target, "budget_ms": bound, "id": best.id, "arch": best.to_json(),
                                "ms": one.cost(best, target)})
        agreement[target] = judge.agreement(one, training, target, bounds, scene)
    scene.run.log("selection", place=place, rank_agreement=agreement)
    return {"budgets": budgets, "rank_agreement": agreement, "selector": config.selector}


def _scores(training: search_loop.SupernetTraining, problem: Problem, target: str, scene: Scene) -> Any:
    """The gates' log-probabilities at a budget; a target that the gates do not know is asked at its own range."""
    seen = list(scene.config.target)
    index = seen.index(target) if target in seen else 0

    def scores_for(limits: Limits) -> Scores:
        if training.recipe.relaxation not in RELAXATIONS:
            return tuple(np.zeros(len(ops)) for ops in problem.allowed)
        ends = training.gates.ranges[index] if target in seen else (problem.costs[0].smallest, problem.costs[0].largest)
        table = training.gates.log_scores(position(limits[target], *ends), index)
        return tuple(np.array([max(row[op], -50.0) for op in ops])
                     for row, ops in zip(table, problem.allowed, strict=True))

    return scores_for


class _Judge:
    """Held-out loss of networks with inherited weights; remembers in the run's log what was judged."""

    def __init__(self, scene: Scene, training: search_loop.SupernetTraining, task: Any) -> None:
        self.scene, self.training, self.task = scene, training, task
        self.split = loop.part_of(scene.data.select, JUDGED_ON, scene.seed, "judge")
        self.known = {e["id"]: float(e["loss"]) for e in scene.run.events("judged")}
        self.asked: dict[Arch, float] = {}

    def __call__(self, archs: Sequence[Arch]) -> list[float]:
        return [self._loss(arch) for arch in archs]

    def _loss(self, arch: Arch) -> float:
        if arch.id not in self.known:
            judged = self.training.judge(arch, self.split, CALIBRATED_ON)
            self.scene.run.log("judged", id=arch.id, arch=arch.to_json(), loss=judged.loss, accuracy=judged.accuracy)
            self.known[arch.id] = judged.loss
        self.asked[arch] = self.known[arch.id]
        self.task.advance(1, loss=self.known[arch.id])
        return self.known[arch.id]

    def agreement(self, problem: Problem, training: search_loop.SupernetTraining, target: str, bounds: Sequence[float],
                  scene: Scene) -> float | None:
        """Mean over the budgets of Kendall's tau between the gates' scores and the losses of networks near them."""
        taus, scores_for = [], _scores(training, problem, target, scene)
        for bound in bounds:
            near = [arch for arch in self.asked if 0.8 * bound <= problem.cost(arch, target) <= bound]
            if len(near) >= 4:
                losses = [self.asked[arch] for arch in near]
                taus.append(fits.rank_agreement(scores_for({target: bound}), problem, near, losses))
        finite = [tau for tau in taus if np.isfinite(tau)]
        return round(float(np.mean(finite)), 4) if finite else None


def _finish(scene: Scene, training: search_loop.SupernetTraining, picks: dict[str, Any], place: str, fine_tune: bool,
            progress: Progress) -> dict[str, Any]:
    archs = {b["id"]: Arch.from_json(b["arch"]) for b in picks["budgets"]}
    recipe = _finetuning(scene, fine_tune)
    train_picks(scene, training, list(archs.values()), place, recipe, progress)
    cards = []
    with progress.task("export", len(archs)) as task:
        for arch in archs.values():
            cards.append(deliver.deliver(scene, arch, place, recipe.epochs > 0))
            task.advance()
    front = scene.run.stage(f"{place}front.json", lambda: _front(scene, cards, picks))
    if not scene.run.has(f"{place}front.png"):
        scene.run.write(f"{place}front.png", lambda file: draw_front(front, file))
    return {"run": str(scene.run.path), **front}


def _finetuning(scene: Scene, fine_tune: bool) -> finetune.Recipe:
    t, n = scene.config.train, len(scene.data.train) + len(scene.data.gate)
    epochs = t.finetune_epochs if t.finetune_epochs is not None else max(finetune.LEAST, -(-finetune.IMAGES // n))
    return finetune.Recipe(epochs if fine_tune else 0, t.batch, t.finetune_lr, t.weight_decay, t.label_smoothing,
                           t.augment or scene.data.augment, 0.5 if t.distill == "kd" else 0.0,
                           t.accumulate, t.amp)


def _front(scene: Scene, cards: list[dict[str, Any]], picks: dict[str, Any]) -> dict[str, Any]:
    """Picks sorted by ms; in the front are those that no other dominates on any target, by selection accuracy.

    One whose trained weights are over the limit of memory is in ``too_large`` and nowhere else.
    """
    targets = list(scene.costs)

    def best(cards: Sequence[dict[str, Any]], by: str) -> set[str]:
        return {p.id for t in targets for p in pareto_front(Point(c["id"], _ms(c, t), c[by]) for c in cards)}

    delivered, cards = cards, [card for card in cards if card.get("fits", True)]
    kept = best(cards, "select_accuracy")
    on_test = best([card for card in cards if card["id"] in kept], "accuracy")
    brief = [{key: value for key, value in card.items() if key not in ("arch", "provenance")} for card in delivered]
    shown = sorted(brief, key=lambda card: _ms(card, targets[0]))
    fitting = {card["id"] for card in cards}
    for card in shown:
        card["dominated_on_test"] = card["id"] in kept - on_test
    budgets = [{key: value for key, value in b.items() if key != "arch"} for b in picks["budgets"]
               if b["id"] in fitting]
    shown, large = ([card for card in shown if (card["id"] in fitting) is wanted] for wanted in (True, False))
    return {"space": scene.layout.space, "target": targets if len(targets) > 1 else targets[0],
            "front": [card for card in shown if card["id"] in kept],
            "dominated": [card for card in shown if card["id"] not in kept], "budgets": budgets,
            **({"too_large": large} if large else {}),
            "share_of_slots": _shares(cards), "rank_agreement": picks["rank_agreement"]}


def _ms(card: dict[str, Any], target: str) -> float:
    return float(card["ms"][target] if isinstance(card["ms"], dict) else card["ms"])


def _shares(cards: list[dict[str, Any]]) -> dict[str, float]:
    """Share of slots that each operator family holds, over all picks."""
    names = [op.partition("(")[0] for card in cards for op in card["arch"]["ops"]]
    return {name: round(names.count(name) / len(names), 4) for name in sorted(set(names))}


def _cards(front: dict[str, Any]) -> list[dict[str, Any]]:
    return [*front["front"], *front["dominated"]]


def _wanted(fronts: dict[str, dict[str, Any]], arch_id: str | None, budget_ms: float | None) -> tuple[str, list[str]]:
    """(place, ids): an id is looked for in the search's own picks, then in each selection's."""
    if arch_id is not None:
        for place, front in fronts.items():
            if arch_id in (card["id"] for card in _cards(front)):
                return place, [arch_id]
        known = dict.fromkeys(card["id"] for front in fronts.values() for card in _cards(front))
        raise UserError(f"--arch {arch_id}: no such pick; there are {', '.join(known)}")
    cards, target = _cards(fronts[""]), targets_of(fronts[""])[0]
    if budget_ms is None:
        return "", [card["id"] for card in cards]
    within = [card for card in fronts[""]["front"] if _ms(card, target) <= budget_ms]
    if not within:
        smallest = min(_ms(card, target) for card in cards)
        raise UserError(f"--budget-ms {budget_ms:g}: the fastest pick of this run takes {smallest:.4g} ms on {target}; "
                        "nas select finds others")
    return "", [max(within, key=lambda card: (card["select_accuracy"], -_ms(card, target)))["id"]]
