"""Does the supernet rank networks as they rank when trained alone? Networks of equal latency in groups, one recipe.

    python experiments/ranking-cifar10/run.py --run RUN --data-dir DIR

RUN is a finished search. Every part, one network, appends its line to ``results.jsonl``; the same command skips what
stands there. ``report.py`` makes the table and the figure. What networks are worth alone does not depend on a supernet:
``--alone results.jsonl --out FILE`` judges the same ones in another (one that admits them: ``prune=false
gates.granularity=space``), in minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import multiprocessing
import os
import platform
import random
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from nas.arch import Arch
from nas.cli.progress import TerminalProgress
from nas.config.search import JUDGED_ON
from nas.errors import UserError
from nas.pipeline.inputs import Inputs, selection_problem
from nas.pipeline.selection import CALIBRATED_ON
from nas.pipeline.supernet import SUPERNET, load_finished
from nas.plan import macs, params, plan
from nas.run.directory import Run
from nas.run.records import DataRecord
from nas.run.settings import searched
from nas.select.problem import Problem, random_within
from nas.subnet import build
from nas.training import evaluation, randomness
from nas.training.data import Data
from nas.training.finetune import FineTuning
from nas.training.recipes import FineTuningRecipe
from nas.training.supernet_training import SupernetTraining

sys.path.append(str(Path(__file__).resolve().parents[1]))
from results import keep, standing, told

HERE = Path(__file__).resolve().parent
LOWEST, HIGHEST = 1.15, 0.9  # limits of the cheapest and dearest group, of the ends of the reachable range
TRIES = 200  # random networks until a group has as many different ones as it should
RECALIBRATED_ON = 2000  # training images for the batch norm statistics of a finished network, as after fine-tuning


@dataclasses.dataclass(frozen=True)
class Part:
    """One network: its number, its group of equal latency, and its predicted ms."""

    number: int
    group: int
    arch: Arch
    ms: float


class Bench:
    """What every part needs: the settled supernet with its images, and the images that networks learn from alone."""

    def __init__(self, run_dir: Path, data_dir: str | None, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.inputs, self.training = supernet(run_dir, data_dir)
        data = self.inputs.data  # the selection split is not in ``learn``
        learn = evaluation.part_of(data.learn, settings["images"], settings["train_seed"], "alone")
        self.alone: Data = dataclasses.replace(data, learn=learn, train=learn)

    def inherited(self, arch: Arch) -> dict[str, Any]:
        """What the network is worth with the supernet's weights."""
        data, start = self.inputs.data, time.perf_counter()
        found = self.training.judge(arch, data.select, CALIBRATED_ON)
        few = evaluation.part_of(data.select, JUDGED_ON, self.inputs.seed, "judge")
        judged = self.training.judge(arch, few, CALIBRATED_ON)  # what the search itself sees
        return {"inherited_accuracy": found.accuracy, "inherited_loss": round(found.loss, 6),
                "judged_loss": round(judged.loss, 6), "inherited_s": round(time.perf_counter() - start, 1)}

    def measure(self, part: Part) -> dict[str, Any]:
        """Judges the network with inherited weights, then trains and tests it alone; returns its line."""
        settings, inputs, arch = self.settings, self.inputs, part.arch
        inherited, start = self.inherited(arch), time.perf_counter()
        recipe = FineTuningRecipe(
            epochs=settings["epochs"], batch=settings["batch"], lr=settings["lr"],
            weight_decay=settings["weight_decay"], label_smoothing=settings["label_smoothing"],
            augment=settings["augment"], distill_weight=0.0)
        with randomness.seeded(settings["train_seed"], "alone", arch.id):
            model = build(inputs.layout, arch)
        tuning = FineTuning(arch.id, model, None, self.alone, recipe, settings["train_seed"], inputs.device)
        while not tuning.finished:
            last = tuning.epoch()
        trained_s = time.perf_counter() - start
        images = evaluation.calibration_images(self.alone, RECALIBRATED_ON, 128, inputs.device, settings["train_seed"])
        evaluation.recalibrate(tuning.model, images)
        tested = evaluation.evaluate(tuning.model, inputs.data.test, inputs.data, inputs.device)
        keys = plan(inputs.layout, arch)
        return {
            "part": part.number, "group": part.group, "id": arch.id, "ms": round(part.ms, 6),
            "macs": sum(map(macs, keys)), "params": sum(map(params, keys)),
            **inherited, "train_loss": last.loss,
            "test_accuracy": tested.accuracy, "test_accuracy_se": round(tested.accuracy_se, 6),
            "test_loss": round(tested.loss, 6), "trained_s": round(trained_s, 1),
            "arch": arch.to_json(), "settings": settings,
            "where": {"torch": torch.__version__, "python": platform.python_version(), "device": str(inputs.device)},
        }


def supernet(run_dir: Path, data_dir: str | None) -> tuple[Inputs, SupernetTraining]:
    """Of a finished search, with its images in ``data_dir``. Raises UserError for a run that is not that far."""
    run = Run.existing(run_dir)
    config = searched(run)
    found = load_finished(run, config.model_copy(update={"data_dir": data_dir or config.data_dir}), TerminalProgress())
    torch.set_num_threads(1)
    return found


def draw(problem: Problem, groups: int, size: int, seed: int) -> list[Part]:
    """``groups`` times ``size`` different networks; those of a group lie between 90 % and 100 % of its limit in ms.

    Limits are geometric over the reachable range. Raises UserError where a group has too few networks.
    """
    cost = problem.costs[0]
    low, high = LOWEST * cost.smallest, HIGHEST * cost.largest
    if high <= low:
        raise UserError(f"{problem.layout.space}: pruned to {cost.smallest:.4g} .. {cost.largest:.4g} ms, which leaves "
                        "nothing to rank; take another --run")
    rng, parts = random.Random(seed), list[Part]()
    for group in range(groups):
        limit = low * (high / low) ** (group / max(1, groups - 1))
        found: dict[str, Arch] = {}
        for _ in range(TRIES):
            indices = random_within(problem, {cost.name: limit}, rng)
            if indices is not None and cost.of(indices) >= 0.9 * limit and len(found) < size:
                found.setdefault((arch := problem.arch(indices)).id, arch)
        if len(found) < size:
            raise UserError(f"{len(found)} networks between {0.9 * limit:.4g} and {limit:.4g} ms, not {size}; take "
                            "fewer with --group-size, or another --run")
        parts += [Part(len(parts) + i, group, arch, problem.cost(arch, cost.name))
                  for i, arch in enumerate(found.values())]
    return parts


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """All that a line depends on. A run is known by its supernet, wherever it lies."""
    run = Run.existing(options.run)
    if not run.has(SUPERNET):
        raise UserError(f"{run.file(SUPERNET)}: missing; give its nas search command again first")
    digest = hashlib.sha256(run.file(SUPERNET).read_bytes()).hexdigest()[:12]
    target = searched(run).target[0]
    return {"supernet": digest, "data": run.read("data.json", DataRecord).source.fingerprint, "target": target,
            "images": options.images, "epochs": options.epochs, "batch": options.batch, "lr": options.lr,
            "weight_decay": options.weight_decay, "label_smoothing": options.label_smoothing,
            "augment": options.augment, "groups": options.groups, "group_size": options.group_size,
            "seed": options.seed, "train_seed": options.train_seed}


_bench: Bench  # of a worker process


def _begin(cores: Any, *given: Any) -> None:
    """Sets a worker up: on a core of its own, and gone when its parent is."""
    global _bench
    threading.Thread(target=_follow, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {cores.get()})
    _bench = Bench(*given)


def _follow() -> None:
    """Ends this worker with its parent, however that ends."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _measure(part: Part) -> dict[str, Any]:
    return _bench.measure(part)


def measure(options: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Every part that does not stand yet, dearest first, ``workers`` at a time: single-thread processes."""
    done = standing(options.out, settings)
    inputs, training = supernet(options.run, options.data_dir)
    problem = selection_problem(inputs, training.supernet.layout, [settings["target"]])
    parts = draw(problem, options.groups, options.group_size, options.seed)
    del training
    left = [part for part in parts[:options.parts] if part.arch.id not in {line["id"] for line in done}]
    context = multiprocessing.get_context("spawn")
    own = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    cores = context.Queue()
    for worker in range(options.workers):
        cores.put(own[worker % len(own)])
    pool = ProcessPoolExecutor(options.workers, context, _begin, (cores, options.run, options.data_dir, settings))
    with pool, TerminalProgress().task("networks", len(done) + len(left), len(done)) as task:
        try:
            for future in as_completed([pool.submit(_measure, part) for part in reversed(left)]):
                done.append(future.result())
                keep(options.out, done)
                task.advance(accuracy=done[-1]["test_accuracy"], seconds=done[-1]["trained_s"])
        except BaseException:
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def judge_again(options: argparse.Namespace, settings: dict[str, Any]) -> None:
    """The networks of ``--alone`` with the weights of this run; what they are worth alone is theirs already."""
    done, bench = standing(options.out, settings), Bench(options.run, options.data_dir, settings)
    texts = options.alone.read_text().splitlines()
    left = [line for line in map(json.loads, texts) if line["id"] not in {one["id"] for one in done}]
    with TerminalProgress().task("networks", len(done) + len(left), len(done)) as task:
        for line in left[:options.parts]:
            done.append(line | bench.inherited(Arch.from_json(line["arch"])) | {"settings": settings})
            keep(options.out, done)
            task.advance(accuracy=done[-1]["inherited_accuracy"])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="a finished search")
    parser.add_argument("--data-dir", help="where its images lie now")
    parser.add_argument("--out", type=Path, default=HERE / "results.jsonl")
    parser.add_argument("--images", type=int, default=45_000, help="training images, drawn from train and gate split")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--label-smoothing", type=float, default=0.05)
    parser.add_argument("--augment", default="flip-crop")
    parser.add_argument("--groups", type=int, default=6, help="of equal latency")
    parser.add_argument("--group-size", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="of the draw of networks")
    parser.add_argument("--train-seed", type=int, default=0, help="of initial weights and training")
    parser.add_argument("--workers", type=int, default=2, help="networks trained beside each other")
    parser.add_argument("--parts", type=int, help="only the first so many networks (for a trial)")
    parser.add_argument("--alone", type=Path, help="results of another run, whose networks and accuracies alone are "
                        "taken as they are: only judged again, with the weights of this one; needs another --out")
    options = parser.parse_args()
    if options.alone and options.out.resolve() in (options.alone.resolve(), (HERE / "results.jsonl").resolve()):
        parser.error("--alone: give another --out")
    return options


def main() -> None:
    options = arguments()
    with told():
        (judge_again if options.alone else measure)(options, settings_of(options))


if __name__ == "__main__":
    main()
