"""The methods of exit training on one network at equal epochs: accuracy of every head, budgeted batch, time.

    python experiments/exits-cifar10/run.py --data cifar10 --data-dir DIR

Each part, a method and a seed, appends its line to ``results.jsonl``; the same command skips what stands there and goes
on inside a part (checkpoints in ``--work``). ``plain`` is the network without exits; ``ztw`` and ``cache`` leave it as
it is and train heads on it for as many epochs again. ``report.py`` makes tables and figure.
"""

from __future__ import annotations

import argparse
import platform
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nas import sampling
from nas.cli.progress import TerminalProgress
from nas.errors import UserError
from nas.exits import policy
from nas.exits.methods import methods
from nas.exits.runtime import confidences
from nas.files import write_json
from nas.pipeline.exits.train import train_exits
from nas.plan import Layout, Task, layout, macs, plan, prefixes
from nas.progress import Progress
from nas.run import checkpoint, events
from nas.run.directory import Run
from nas.space import Space
from nas.subnet import Subnet, build
from nas.training import evaluation, randomness
from nas.training.data import Data, load
from nas.training.exits import record
from nas.training.finetune import FineTuning
from nas.training.recipes import FineTuningRecipe

sys.path.append(str(Path(__file__).resolve().parents[1]))
from results import keep, standing, told

HERE = Path(__file__).resolve().parent
CPU = torch.device("cpu")
PLAIN, SETTLED = "plain", "settings.json"


class Bench:
    """The images, the network and the recipe that all methods share."""

    def __init__(self, options: argparse.Namespace, settings: dict[str, Any]) -> None:
        self.settings, self.work = settings, options.work
        own = Run(self.work)
        if own.has(SETTLED) and (old := own.read_json(SETTLED)) != settings:
            key = next(key for key in settings if old.get(key) != settings[key])
            raise UserError(f"{own.file(SETTLED)}: networks there were trained with {key} = {old.get(key)}, now "
                            f"{settings[key]}; give another --work, or the old value")
        write_json(own.file(SETTLED), settings)
        self.data: Data = load(options.data, data_dir=options.data_dir, size=None, seed=0, limit=options.limit)
        task = Task(self.data.size, self.data.in_ch, len(self.data.classes))
        self.at: Layout = layout(Space.load(options.space).scaled(options.width), task, exits=True)
        drawn = sampling.sample(self.at, random.Random(options.arch_seed))
        self.arch = replace(drawn, exits=tuple(exit_.slot for exit_ in self.at.exits))
        self.recipe = FineTuningRecipe(
            epochs=options.epochs, batch=options.batch, lr=options.lr, weight_decay=options.weight_decay,
            label_smoothing=0.0, augment=self.data.augment, distill_weight=0.0)
        self.mmacs = np.array([sum(map(macs, prefix)) for prefix in prefixes(plan(self.at, self.arch))]) / 1e6

    def part(self, method: str, seed: int, progress: Progress) -> dict[str, Any]:
        """Trains and judges; returns the line."""
        with randomness.seeded("exits-cifar10", seed):
            net = build(self.at, self.arch)
        name, place = f"{method}-{seed}", f"{method}-{seed}/"
        work = Run(self.work)
        if method == PLAIN or method in methods(frozen=True):
            self.plain(net, seed, work, progress)
        if method == PLAIN:
            judged = evaluation.evaluate(net, self.data.test, self.data, CPU)
            return {"accuracy": [judged.accuracy], "se": judged.accuracy_se, "seconds": seconds_of(work, name)}
        made = train_exits(name, net, self.data, self.recipe, work, place, seed, CPU, progress, method=method)
        select, test = (record(made, split, self.data, CPU) for split in (self.data.select, self.data.test))
        divisors = policy.temperatures(select.logits, select.labels)
        sure = [confidences("max-softmax", one.logits, divisors) for one in (select, test)]
        points = policy.curve((sure[0], select.right), (sure[1], test.right), self.mmacs)
        return {"accuracy": test.right.mean(1).tolist(), "seconds": seconds_of(work, name),
                "se": float(np.sqrt(0.25 / len(test.labels))),  # at most
                "area": policy.area(points, float(self.mmacs[0]), float(self.mmacs[-1])),
                "curve": [[round(p.mean_ms, 4), round(p.accuracy, 5)] for p in points]}

    @staticmethod
    def where() -> dict[str, Any]:
        return {"torch": torch.__version__, "threads": 1, "python": platform.python_version()}

    def plain(self, net: Subnet, seed: int, work: Run, progress: Progress) -> None:
        """The network without its exits, trained once a seed and kept; begun anew where it was stopped."""
        name = f"{PLAIN}-{seed}"
        if work.has(f"{name}.pt"):
            net.load_state_dict(checkpoint.load(work, f"{name}.pt")["trained"])
            net.eval()
            return
        net.exits.requires_grad_(False)
        tuning, began = FineTuning(name, net, None, self.data, self.recipe, seed, CPU), time.perf_counter()
        with progress.task(name, self.recipe.epochs) as task:
            while not tuning.finished:
                last = tuning.epoch()
                task.advance(1, loss=last.loss)
        net.requires_grad_(True)
        evaluation.recalibrate(net, evaluation.calibration_images(self.data, 2000, 128, CPU, seed))
        work.log(events.ExitsTrained(**vars(last), id=name, seconds=time.perf_counter() - began))
        checkpoint.save(work, f"{name}.pt", tuning)


def seconds_of(work: Run, name: str) -> float:
    """Of training, over all calls."""
    return round(sum(event.seconds for event in work.events(events.ExitsTrained) if event.id == name), 1)


SETTINGS = ("space", "width", "arch_seed", "data", "limit", "epochs", "batch", "lr", "weight_decay")


def arguments(description: str, out: Path) -> argparse.ArgumentParser:
    """Those of a script over methods and seeds: what networks are trained, and where that stands."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--methods", default=",".join((PLAIN, *methods())), help="comma-separated")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--space", default="ghost")
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--arch-seed", type=int, default=0)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--work", type=Path, default=Path("runs/exits-cifar10"))
    parser.add_argument("--out", type=Path, default=out)
    return parser


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    return {key: getattr(options, key) for key in SETTINGS}


def asked_of(options: argparse.Namespace, known: Sequence[str]) -> list[str]:
    """Raises UserError for a method that is not ``known``."""
    asked: list[str] = options.methods.split(",")
    if unknown := [name for name in asked if name not in known]:
        raise UserError(f"--methods {unknown[0]}: known are {', '.join(known)}")
    return asked


def main() -> None:
    parser = arguments(__doc__, HERE / "results.jsonl")
    options = parser.parse_args()
    with told():
        run(options, settings_of(options))


def run(options: argparse.Namespace, settings: dict[str, Any]) -> None:
    lines = standing(options.out, settings)
    asked = asked_of(options, (PLAIN, *methods()))
    bench, done = Bench(options, settings), {(line["method"], line["seed"]) for line in lines}
    torch.set_num_threads(1)
    for seed in range(options.seeds):
        for name in asked:
            if (name, seed) not in done:
                lines.append({"method": name, "seed": seed, **bench.part(name, seed, TerminalProgress()),
                              "mmacs": bench.mmacs.round(4).tolist(), "arch": bench.arch.to_json(),
                              "settings": settings, "where": bench.where()})
                keep(options.out, lines)


if __name__ == "__main__":
    main()
