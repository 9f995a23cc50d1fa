"""Is the search worth its name? Fronts of the whole method, of parts of it and of plain baselines, at one price.

    python experiments/worth-cifar10/run.py --table FILE --data-dir DIR

Every part, one method with one seed, runs ``nas search`` in a directory of its own under ``--work`` and appends its
line to ``results.jsonl``; the same command goes on with what was stopped. ``report.py`` makes the table and the figure.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import os
import platform
import queue
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch

from nas.cli.progress import TerminalProgress
from nas.config.search import JUDGED_ON, Config, resolve
from nas.config.space import checked_space
from nas.errors import UserError
from nas.files import nearest, write_json
from nas.latency import costs as cost_models
from nas.pipeline.selection import CALIBRATED_ON
from nas.pipeline.supernet import SUPERNET, load_finished
from nas.plan import Task, candidates, layout
from nas.run import events, timeline
from nas.run.directory import Run
from nas.run.records import DataRecord, Front, Picks
from nas.select.pareto import Point, hypervolume
from nas.training import evaluation
from nas.training.data import load

sys.path.append(str(Path(__file__).resolve().parents[1]))
from results import keep, standing, told

HERE = Path(__file__).resolve().parent
OURS, RANDOM, SPOS = "ours", "random-same-supernet", "spos"
EACH, EACH_SHORT = "one-search-per-budget", "one-search-per-budget-short"
ABLATIONS: dict[str, list[str]] = {"no-block-pruning": ["prune=layers"], "no-layer-pruning": ["prune=blocks"],
                                   "enumerated-widths": ["gates.widths=enumerated"],
                                   "all-widths": ["gates.granularity=space"]}
METHODS = (OURS, SPOS, *ABLATIONS, RANDOM, EACH_SHORT, EACH)
LOWEST, HIGHEST = 1.3, 0.7  # smallest and largest budget, of the ends of the space's range
BEYOND, CHANCE = 1.2, 0.1  # reference of the hypervolume: ms in largest budgets, and the accuracy of guessing
LEARNT = 3  # forwards that a forward with its backward counts as
PATHS = 2  # of a gate step (two-path)
SANDWICH = 3  # networks of a sandwich step
BLOCKWISE = 2  # of a step in which choices learn from the largest network's blocks
ENTRY = (2, 1000, 500)  # networks of the entry test, gate images and training images (batch norm) of each
INHERITED = ("environment.json", "space.yaml", "data.json", "splits.json", SUPERNET)  # what a control takes over


@dataclasses.dataclass(frozen=True)
class Part:
    """One method with one seed."""

    method: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}-seed{self.seed}"


@dataclasses.dataclass(frozen=True)
class Cost:
    """Images passed forward through one network, by what for."""

    weights: int
    gates: int
    judging: int

    @property
    def total(self) -> int:
        return self.weights + self.gates + self.judging


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Images of the splits that a search sees."""

    train: int
    gate: int
    select: int

    @property
    def evaluation(self) -> int:
        """Images that judging one network costs: those judged on and those for its batch norm statistics."""
        return min(JUDGED_ON, self.select) + min(CALIBRATED_ON, self.train)


def cost_of(config: Config, sizes: Sizes, judged: int, supernet_alone: bool = False) -> Cost:
    """What a search spends, from its settings and the networks it judged; ``supernet_alone`` leaves out the gates."""
    t, g = config.train, config.gates
    warmup, search, settle = (epochs or 0 for epochs in (t.warmup_epochs, t.search_epochs, t.settle_epochs))
    steps = max(1, sizes.train // t.batch)
    first, then = t.beginning(trained=False)
    before = [math.ceil(round(share * warmup * steps, 6)) for share in (first, first + then)]
    later = range(before[1], (warmup + search + settle) * steps)  # steps after the two beginnings of the warm-up
    sandwiches = sum(t.sandwich_every > 0 and step % steps % t.sandwich_every == 0 for step in later)
    networks = before[0] + BLOCKWISE * (before[1] - before[0]) + len(later) + (SANDWICH - 1) * sandwiches
    gate_steps = 0 if supernet_alone or g.relaxation == "single" else search * -(-steps // g.every)
    entry = ENTRY[0] * (min(ENTRY[1], sizes.gate) + min(ENTRY[2], sizes.train)) if warmup else 0
    return Cost(LEARNT * networks * min(t.batch, sizes.train), LEARNT * PATHS * gate_steps * min(t.batch, sizes.gate),
                judged * sizes.evaluation + entry)


class Bench:
    """What all parts have in common; ``settings`` is all that a line depends on but for method and seed."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.work, self.data_dir, self.cores = options.work.resolve(), options.data_dir, queue.Queue[int]()
        own = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
        for worker in range(options.workers):
            self.cores.put(own[worker % len(own)])
        table = options.table.resolve()
        self.target = str(table)
        data = load("cifar10", data_dir=Path(self.data_dir) if self.data_dir else None, size=None, seed=0,
                    limit=options.limit)
        self.sizes = Sizes(*(len(split) for split in (data.train, data.gate, data.select)))
        self.settings: dict[str, Any] = {
            "table": hashlib.sha256(table.read_bytes()).hexdigest()[:12] if table.is_file() else "", "space": "ghost",
            "width": options.width, "limit": options.limit, "epochs": options.epochs, "batch": options.batch,
            "largest_first": options.largest_first, "blockwise": options.blockwise,
            "sandwich_every": options.sandwich_every, "gates_every": options.gates_every,
            "evaluations": options.evaluations, "finetune_epochs": options.finetune_epochs}
        ends = _ends(self.config(OURS, 0, [1.0]), Task(data.size, data.in_ch, len(data.classes)))
        self.settings["budget_ms"] = sorted(options.budget_ms or _budgets(*ends, options.budgets))
        if not ends[0] < self.settings["budget_ms"][0] <= self.settings["budget_ms"][-1] < ends[1]:
            raise UserError(f"--budget-ms: the space reaches from {ends[0]:.4g} to {ends[1]:.4g} ms on this table")
        self.settings["reference"] = [round(BEYOND * self.settings["budget_ms"][-1], 6), CHANCE]
        self.children: set[subprocess.Popen[bytes]] = set()
        self.stopped = threading.Event()

    def config(self, method: str, seed: int, budget_ms: list[float] | None = None, share: int = 1) -> Config:
        """Settings of one search; ``share`` divides epochs and evaluations."""
        s = self.settings
        warmup, search, settle = _divided(s["epochs"], share)
        evaluations, own = max(1, round(s["evaluations"] / share)), ABLATIONS.get(method, [])
        if method in (RANDOM, SPOS):
            ours = cost_of(self.config(OURS, seed), self.sizes, s["evaluations"])
            left = ours.total - cost_of(self.config(OURS, seed), self.sizes, 0, supernet_alone=True).total
            own, an_epoch = ["selector=random"], 0
            if method == SPOS:
                single = ["gates.relaxation=single", "train.sandwich_every=0", "selector=evolution"]
                an_epoch = cost_of(_resolved(single, f"train.batch={s['batch']}", "train.search_epochs=1"), self.sizes,
                                   0).weights
                warmup, search, settle = 0, max(1, ours.weights // an_epoch), 0
                left, own = ours.total - search * an_epoch, single
            evaluations = left // self.sizes.evaluation
        if method != SPOS:
            own = [*own, *(f"train.{key}={s[key]}" for key in ("sandwich_every", "largest_first", "blockwise")),
                   f"gates.every={s['gates_every']}"]
        return _resolved(
            own, f"train.batch={s['batch']}", f"width={s['width']}", f"limit={s['limit']}", f"seed={seed}",
            f"evaluations={evaluations}",
            f"train.warmup_epochs={warmup}", f"train.search_epochs={search}", f"train.settle_epochs={settle}",
            f"train.finetune_epochs={s['finetune_epochs']}", "train.distill=none", "threads=1", "train_on=cpu",
            f"budget_ms={json.dumps(budget_ms or s['budget_ms'])}", space=s["space"], target=[self.target],
            data="cifar10", data_dir=self.data_dir)

    def searches(self, part: Part) -> dict[str, Config]:
        """Name of the run directory -> settings of every search of a part."""
        if part.method not in (EACH, EACH_SHORT):
            return {part.name: self.config(part.method, part.seed)}
        budgets = self.settings["budget_ms"]
        share = len(budgets) if part.method == EACH_SHORT else 1
        return {f"{part.name}-{b:g}ms": self.config(part.method, part.seed, [b], share) for b in budgets}

    def ready(self, part: Part) -> bool:
        """Whether the supernet that a part takes over is finished."""
        return part.method != RANDOM or Run(self.work / Part(OURS, part.seed).name).has("front.json")

    def measure(self, part: Part) -> dict[str, Any]:
        """Runs the searches of a part; returns its line."""
        core = self.cores.get()
        try:
            searched = [self._searched(part, name, config, core) for name, config in self.searches(part).items()]
        finally:
            self.cores.put(core)
        picks = [pick for one in searched for pick in one["picks"]]
        longest = max(one["seconds"]["supernet"] + one["seconds"]["selection"] for one in searched)
        points = [Point(pick["id"], pick["ms"], pick["accuracy"]) for pick in picks]

        def sums(key: str) -> dict[str, Any]:
            return {name: round(sum(one[key][name] for one in searched), 1) for name in searched[0][key]}

        return {"method": part.method, "seed": part.seed, "picks": picks,
                "hypervolume": round(hypervolume(points, *self.settings["reference"]), 6),
                "mean_accuracy": round(sum(pick["accuracy"] for pick in picks) / len(picks), 6),
                "mean_inherited_loss": round(sum(pick["inherited_loss"] for pick in picks) / len(picks), 6),
                "seconds": sums("seconds"), "image_forwards": sums("image_forwards"), "judged": sums("judged")["n"],
                "longest_search_s": round(longest, 1),
                "branches": [one["branches"] for one in searched],
                "rank_agreement": [one["rank_agreement"] for one in searched],
                "held_out": [one["held_out"] for one in searched],
                "supernet": [one["supernet"] for one in searched], "data": searched[0]["data"],
                "own": _own(next(iter(self.searches(part).values()))), "settings": self.settings,
                "where": {"torch": torch.__version__, "python": platform.python_version()}}

    def _searched(self, part: Part, name: str, config: Config, core: int) -> dict[str, Any]:
        run, ours = Run(self.work / name), Run(self.work / Part(OURS, part.seed).name)
        if part.method == RANDOM and not run.has("config.json"):
            _take_over(ours.path, run.path, config)
        if not run.has("front.png"):  # the last artefact
            self._search(run, config, core)
        return _read(run, config, self.sizes, trained=ours if part.method == RANDOM else run,
                     inherited=_inherited(run, config))

    def _search(self, run: Run, config: Config, core: int) -> None:
        """``nas search`` on one core, on from where it stands. Raises UserError with its reason."""
        settings, log = self.work / f"{run.path.name}.json", self.work / f"{run.path.name}.log"
        write_json(settings, config.to_json())
        command = [sys.executable, "-m", "nas", "search", "--config", str(settings), "--run", str(run.path)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with log.open("ab") as file:
            child = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
            self.children.add(child)
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(child.pid, {core})
            if self.stopped.is_set():
                child.terminate()
            code = child.wait()
            self.children.discard(child)
        if code:
            said = log.read_text(errors="replace").splitlines()
            raise UserError(f"{run.path.name}: nas search ended with code {code}: {said[-1] if said else 'no word'}")

    def stop(self) -> None:
        self.stopped.set()
        for child in list(self.children):
            child.terminate()


def _resolved(overrides: list[str], *more: str, **flags: Any) -> Config:
    return resolve(None, [*overrides, *more], {"target": ["gpu-v100"], "baselines": 0, **flags})


def _divided(epochs: list[int], share: int) -> tuple[int, int, int]:
    """Epochs of warm-up, search and settling whose sum is ``share`` times smaller, but 1; the search comes first."""
    total = max(1, round(sum(epochs) / share))
    search = min(total, max(1, round(epochs[1] / share)))
    settle = min(total - search, round(epochs[2] / share))
    return total - search - settle, search, settle


def _ends(config: Config, task: Task) -> tuple[float, float]:
    """Smallest and largest ms of the whole space. Raises UserError for a table that lacks any of its operators."""
    target = config.target[0]
    plan, table = layout(checked_space(config), task), cost_models.load(target)
    keys = candidates(plan)
    if table.grows and (missing := [key for key in keys if not table.covers(key)]):
        raise UserError(f"--table {target}: lacks {len(missing)} of {len(keys)} operators of this space, such as "
                        f"{missing[0]}; nas profile completes it")
    ms = dict(zip(keys, table.ms_many(keys), strict=True))
    rows = [[0.0 if (key := slot.key(op)) is None else ms[key] for op in slot.ops] for slot in plan.slots]
    fixed = sum(ms[key] for key in plan.fixed)
    return fixed + sum(map(min, rows)), fixed + sum(map(max, rows))


def _budgets(smallest: float, largest: float, count: int) -> list[float]:
    low, high = LOWEST * smallest, HIGHEST * largest
    return [float(f"{low * (high / low) ** (i / max(1, count - 1)):.2g}") for i in range(count)]


def _take_over(ours: Path, path: Path, config: Config) -> None:
    """A run directory with the finished supernet of another and an empty log: nothing in it was judged yet.

    Copied aside and renamed, so that a kill leaves no half of one.
    """
    aside = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for name in INHERITED:
        shutil.copyfile(ours / name, aside / name)
    shutil.copytree(ours / "tables", aside / "tables")
    write_json(aside / "config.json", config.to_json())
    aside.rename(path)


def _inherited(run: Run, config: Config) -> dict[str, evaluation.Judged]:
    """Of every pick before its fine-tuning, on the test split; nothing was chosen by it."""
    inputs, training = load_finished(run, config, TerminalProgress())
    archs = {pick.arch for pick in run.read("picks.json", Picks).budgets}
    return {arch.id: training.judge(arch, inputs.data.test, CALIBRATED_ON) for arch in archs}


def _read(run: Run, config: Config, sizes: Sizes, trained: Run,
          inherited: dict[str, evaluation.Judged]) -> dict[str, Any]:
    """Picks, seconds and image-forwards of a search; ``trained`` is the run that its supernet comes from."""
    front = run.read("front.json", Front)
    target = config.target[0]
    picks = [{"budget_ms": b.budget_ms[target], "id": b.id, "ms": round(b.ms[target], 6),
              **{key: round(getattr(front.card(b.id), key), 6)
                 for key in ("accuracy", "accuracy_se", "select_accuracy")},
              "inherited_loss": round(inherited[b.id].loss, 6),
              "inherited_accuracy": round(inherited[b.id].accuracy, 6)}
             for b in front.budgets]
    epochs, tuned = timeline.epochs(trained), timeline.tuned(run)
    selected = [event.seconds for event in run.events(events.Stage) if event.name == "picks.json"]
    judged = len({event.id for event in run.events(events.Judged)})
    alive = [epoch.pruning.branches for epoch in epochs if epoch.pruning]
    return {"picks": picks, "rank_agreement": front.rank_agreement[target],
            "held_out": {kind: tau.to_json() for kind, tau in front.held_out[target].items()}, "judged": {"n": judged},
            "seconds": {"supernet": round(sum(epoch.seconds for epoch in epochs), 1),
                        "selection": round(sum(selected), 1),
                        "finetune": round(sum(epoch.seconds for epoch in tuned), 1)},
            "image_forwards": dataclasses.asdict(cost_of(config, sizes, judged, supernet_alone=trained != run)),
            "branches": alive[-1] if alive else None, "data": run.read("data.json", DataRecord).source.fingerprint,
            "supernet": hashlib.sha256(run.file(SUPERNET).read_bytes()).hexdigest()[:12]}


def _own(config: Config) -> dict[str, Any]:
    """What methods differ in."""
    value = config.to_json()
    keys = ("sandwich_every", "warmup_epochs", "search_epochs", "settle_epochs", "largest_first", "blockwise")
    train = {key: value["train"].get(key, 0.0) for key in keys}
    gates = {key: value["gates"].get(key, default) for key, default in (("relaxation", None), ("widths", "pair"),
                                                              ("granularity", "space"))}
    return {**{key: value[key] for key in ("selector", "evaluations", "prune")}, **train, **gates}


def measure(options: argparse.Namespace) -> None:
    """Every part that does not stand yet, ``workers`` at a time; a control waits for the supernet it takes over."""
    bench = Bench(options)
    done = standing(options.out, bench.settings)
    stand = {Part(line["method"], line["seed"]) for line in done}
    waiting = [part for method in METHODS if method in options.methods for seed in range(options.seeds)
               if (part := Part(method, seed)) not in stand]
    bench.work.mkdir(parents=True, exist_ok=True)
    running: dict[Future[dict[str, Any]], Part] = {}
    with ThreadPoolExecutor(options.workers) as pool, \
            TerminalProgress().task("parts", len(done) + len(waiting), len(done)) as task:
        try:
            while waiting or running:
                able = [part for part in waiting if bench.ready(part)][:options.workers - len(running)]
                for part in able:
                    waiting.remove(part)
                    running[pool.submit(bench.measure, part)] = part
                if not running:
                    raise UserError(f"{waiting[0].name}: takes over the supernet of {OURS}; add it to --methods")
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    del running[future]
                    done.append(future.result())
                    keep(options.out, done)
                    task.advance(accuracy=done[-1]["mean_accuracy"], seconds=sum(done[-1]["seconds"].values()))
        except BaseException:
            bench.stop()
            raise


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, required=True, help="latency table of a CPU at 32 pixels")
    parser.add_argument("--data-dir", help="where CIFAR-10 lies")
    parser.add_argument("--work", type=Path, default=Path("runs/worth-cifar10"), help="holds the run directories")
    parser.add_argument("--out", type=Path, default=HERE / "results.jsonl")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="NAME", help=f"of {', '.join(METHODS)}")
    parser.add_argument("--seeds", type=int, default=3, help="0, 1, ...: of images, weights and everything drawn")
    parser.add_argument("--workers", type=int, default=2, help="searches beside each other, a core each")
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--limit", type=int, default=10_000, help="images of train, gate and select together")
    parser.add_argument("--epochs", type=int, nargs=3, default=[2, 2, 0], metavar=("WARMUP", "SEARCH", "SETTLE"))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--largest-first", type=float, default=0.6, help="share of the warm-up")
    parser.add_argument("--blockwise", type=float, default=0.4, help="share of the warm-up, after that")
    parser.add_argument("--sandwich-every", type=int, default=4)
    parser.add_argument("--gates-every", type=int, default=2)
    parser.add_argument("--evaluations", type=int, default=36)
    parser.add_argument("--finetune-epochs", type=int, default=1)
    parser.add_argument("--budgets", type=int, default=5, help="geometric, 1.3 times the space's least to 0.7 its most")
    parser.add_argument("--budget-ms", type=float, nargs="+", help="instead of those")
    options = parser.parse_args()
    if unknown := [name for name in options.methods if name not in METHODS]:
        parser.error(f"--methods {unknown[0]}: no such method; {nearest(unknown[0], METHODS)}")
    return options


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def main() -> None:
    options = arguments()
    signal.signal(signal.SIGTERM, _interrupt)
    with told():
        measure(options)


if __name__ == "__main__":
    main()
