"""Judges what the comparison of selectors is replayed on: 4,096 networks of a restricted space, some of the full one.

    python experiments/selection-cifar10/run.py --run RUN --data-dir DIR

RUN is a finished search; it is only read. Every part appends its line to ``judged.jsonl`` or ``full.jsonl``; the same
command skips what stands there. ``replay.py`` asks every method, ``report.py`` makes tables and figure.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stored import CHOICES, FREE, FULL, JUDGED, PER_PART, PROBLEM, Stored
from torch import Tensor, nn
from torch.nn import functional as F

from nas import sampling
from nas.arch import SKIP, Arch
from nas.cli.progress import TerminalProgress
from nas.config.search import JUDGED_ON
from nas.errors import UserError
from nas.files import write_text
from nas.pipeline.inputs import Inputs, selection_problem
from nas.pipeline.selection import CALIBRATED_ON, gate_scores
from nas.pipeline.supernet import SUPERNET, load_finished
from nas.plan import OpKey, Slot, macs, params
from nas.run.directory import Run
from nas.run.records import DataRecord
from nas.run.settings import searched
from nas.select import SELECTORS
from nas.select.problem import Limits, budgets
from nas.training import evaluation, placement
from nas.training.data import Split, eval_batches
from nas.training.supernet_training import SupernetTraining

sys.path.append(str(Path(__file__).resolve().parents[1]))
from results import keep, standing, told

POSITIONS = 13  # budgets at which the gates' scores are stored
EVALUATIONS = (36, 100, 300)  # of the selections on the full space
HELD_OUT, FITTED, AT_ONCE = 200, 300, 20  # random networks of the full space; how many of them make a line
UNSEEN = 2000  # further images of the selection split, on which what a method found is valued
BATCH = 256


def supernet(run_dir: Path, data_dir: str | None) -> tuple[Inputs, SupernetTraining]:
    """Of a finished search, with its images in ``data_dir``. Raises UserError for a run that is not that far."""
    run = Run.existing(run_dir)
    config = searched(run)
    found = load_finished(run, config.model_copy(update={"data_dir": data_dir or config.data_dir}), TerminalProgress())
    torch.set_num_threads(1)
    return found


def describe(inputs: Inputs, training: SupernetTraining) -> dict[str, Any]:
    """The content of ``problem.json``."""
    layout, target = training.supernet.layout, inputs.config.target[0]
    one = selection_problem(inputs, layout, [target])
    middle = inputs.run.read_json("picks.json")["budgets"]
    scores, at = gate_scores(training, one, [target], inputs), budgets(one, POSITIONS)
    tables = [scores({target: ms}) for ms in at]

    def counted(slot: Slot, of: Any) -> list[int]:
        keys: list[OpKey | None] = [slot.key(op) for op in slot.ops]
        return [of(key) if key else 0 for key in keys]

    return {
        "supernet": digest(inputs.run), "space": layout.space,
        "task": [layout.task.size, layout.task.in_ch, layout.task.classes],
        "ops": [[str(op) for op in slot.ops] for slot in layout.slots],
        "fixed": {"ms": one.costs[0].fixed, "macs": sum(map(macs, layout.fixed)),
                  "params": sum(map(params, layout.fixed))},
        "ms": [[round(float(ms), 7) for ms in row] for row in one.costs[0].per_op],
        "macs": [counted(slot, macs) for slot in layout.slots],
        "params": [counted(slot, params) for slot in layout.slots],
        "middle": one.indices(Arch.from_json(middle[len(middle) // 2]["arch"])),
        "gates": {"ms": [round(ms, 6) for ms in at],
                  "scores": [[[round(float(x), 3) for x in table[slot]] for table in tables]
                             for slot in range(len(layout.slots))]}}


class Kept(nn.Sequential):
    """Some operators in a row; keeps what comes out, so that those behind them can go on from there."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__(*modules)
        self.outputs: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        self.outputs.append(y)
        return y


State = tuple[list[Tensor], list[Tensor]]  # batches of images of the batch norms, and of those judged


class Tree:
    """Judges networks that begin alike together: a layer sees the same, and has the same statistics, in all of them.

    So each beginning is computed once; the figures are those of ``SupernetTraining.judge`` one by one.
    """

    def __init__(self, inputs: Inputs, training: SupernetTraining, stored: Stored) -> None:
        self.free, problem = stored.free, stored.restricted
        parts = halves(inputs)
        batches = [batch for part in parts for batch in eval_batches(part, inputs.data, BATCH)]
        self.labels, self.seen = [labels for _, labels in batches], -(-len(parts[0]) // BATCH)
        self.sizes = [len(part) for part in parts]
        images = evaluation.calibration_images(inputs.data, CALIBRATED_ON, 128, inputs.device, inputs.seed)
        self.begin: State = images, [image for image, _ in batches]
        archs = [problem.arch([min(choice, len(ops) - 1) for ops in problem.allowed]) for choice in range(CHOICES)]
        self.nets = [(arch, placement.placed(training.inherit(arch), inputs.device)) for arch in archs]

    def line(self, part: int) -> dict[str, Any]:
        """The networks of a part: the first half of the free slots is that of its number, the others walk."""
        start = time.perf_counter()
        first = list(itertools.product(range(CHOICES), repeat=FREE - FREE // 2))[part]
        state = self._after(self.begin, -1, 0)
        for level, choice in enumerate(first):
            state = self._after(state, level, choice)
        found = np.array(list(self._below(state, len(first))))
        assert len(found) == PER_PART
        loss, right, unseen_loss, unseen_right = found.T
        return {"part": part, "loss": five(loss), "right": whole(right), "unseen_loss": five(unseen_loss),
                "unseen_right": whole(unseen_right), "seconds": round(time.perf_counter() - start, 1)}

    def _below(self, state: State, level: int) -> Iterator[list[float]]:
        for choice in range(CHOICES):
            after = self._after(state, level, choice)
            if level == FREE - 1:
                yield self._judged(after[1])
            else:
                yield from self._below(after, level + 1)

    def _after(self, state: State, level: int, choice: int) -> State:
        """What lies between a free slot and the next, with the batch norms of its own; level -1: before the first."""
        arch, net = self.nets[choice]
        blocks = iter(net.blocks)
        at = [-1, *self.free, len(arch.ops)]
        placed = [(-1, net.stem), *((slot, next(blocks)) for slot, op in enumerate(arch.ops) if op != SKIP),
                  (len(arch.ops) - 1, net.head)]
        kept = Kept(*(module for slot, module in placed if at[level + 1] <= slot < at[level + 2]))
        evaluation.recalibrate(kept, state[0])
        images, kept.outputs = kept.outputs, []
        with torch.no_grad():
            for batch in state[1]:
                kept(batch)
        return images, kept.outputs

    def _judged(self, logits: Sequence[Tensor]) -> list[float]:
        """Mean loss and number of right answers of the images seen, and of the others."""
        losses = [float(F.cross_entropy(x, y, reduction="sum")) for x, y in zip(logits, self.labels, strict=True)]
        right = [int((x.argmax(1) == y).sum()) for x, y in zip(logits, self.labels, strict=True)]
        return [value for part, size in zip((slice(self.seen), slice(self.seen, None)), self.sizes, strict=True)
                for value in (sum(losses[part]) / size, sum(right[part]))]


def halves(inputs: Inputs) -> list[Split]:
    """Two parts of the selection split: the images that a search judges on, and others."""
    own = evaluation.part_of(inputs.data.select, JUDGED_ON + UNSEEN, inputs.seed, "judge")  # begins with those
    return [Split(own.images[part], own.labels[part]) for part in (slice(JUDGED_ON), slice(JUDGED_ON, None))]


def five(values: Iterable[float]) -> list[int]:
    """In units of 1e-5."""
    return [round(value * 1e5) for value in values]


def whole(values: Iterable[float]) -> list[int]:
    return [round(value) for value in values]


def on_full(inputs: Inputs, training: SupernetTraining, stored: Stored, part: str) -> dict[str, Any]:
    """A line of ``full.jsonl``: random networks judged on all images, or those that a selection judged, in order."""
    start, full, seen = time.perf_counter(), stored.full, halves(inputs)[0]
    kind, number = part.split()
    line: dict[str, Any] = {"part": part}
    if kind in ("held-out", "fitted"):
        rng = random.Random(int(number) + (kind == "fitted") * HELD_OUT)
        drawn = [sampling.sample(training.supernet.layout, rng) for _ in range(AT_ONCE)]
        both = [[training.judge(arch, split, CALIBRATED_ON) for split in halves(inputs)] for arch in drawn]
        line |= {"picks": [full.indices(arch) for arch in drawn], "loss": five(one.loss for one, _ in both),
                 "right": whole(one.right for one, _ in both), "unseen_loss": five(one.loss for _, one in both),
                 "unseen_right": whole(one.right for _, one in both)}
    else:
        found: list[tuple[Arch, evaluation.Judged]] = []

        def judge(archs: Sequence[Arch]) -> list[float]:
            found.extend((arch, training.judge(arch, seen, CALIBRATED_ON)) for arch in archs)
            return [one.loss for _, one in found[len(found) - len(archs):]]

        bounds: list[Limits] = [{"ms": ms} for ms in budgets(full)]
        SELECTORS[kind](full, bounds, lambda limits: stored.gates(limits, False), judge, int(number),
                        random.Random(inputs.seed))
        line |= {"picks": [full.indices(arch) for arch, _ in found], "loss": five(one.loss for _, one in found),
                 "right": whole(one.right for _, one in found)}
    return line | {"seconds": round(time.perf_counter() - start, 1)}


def digest(run: Run) -> str:
    """Of its supernet, wherever it lies."""
    return hashlib.sha256(run.file(SUPERNET).read_bytes()).hexdigest()[:12]


def stored_of(settings: dict[str, Any]) -> Stored:
    """``problem.json``. Raises UserError where it is of another run."""
    stored = Stored.read()
    if (own := stored.content.get("supernet")) != settings["supernet"]:
        raise UserError(f"{PROBLEM}: of the supernet {own}, and --run has {settings['supernet']}; give that run, or "
                        "move the file away")
    return stored


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """All that a line depends on. A run is known by its supernet, wherever it lies."""
    run = Run.existing(options.run)
    if not run.has(SUPERNET):
        raise UserError(f"{run.file(SUPERNET)}: missing; give its nas search command again first")
    data = run.read("data.json", DataRecord).source
    return {"supernet": digest(run), "data": data.fingerprint, "free": FREE, "choices": CHOICES, "seen": JUDGED_ON,
            "unseen": min(UNSEEN, data.sizes["select"] - JUDGED_ON), "calibrated": CALIBRATED_ON}


def measure(options: argparse.Namespace) -> None:
    """Every part that does not stand yet, in order."""
    settings = settings_of(options)
    lines = {path: standing(path, settings) for path in (JUDGED, FULL)}
    inputs, training = supernet(options.run, options.data_dir)
    if not PROBLEM.is_file():
        write_text(PROBLEM, json.dumps(describe(inputs, training)))
    stored = stored_of(settings)
    tree = Tree(inputs, training, stored)
    names = [*(f"ilp {n}" for n in EVALUATIONS), *(f"held-out {i}" for i in range(HELD_OUT // AT_ONCE)),
             *(f"fitted {i}" for i in range(FITTED // AT_ONCE))]
    todo: list[tuple[Path, Any, Callable[[Any], dict[str, Any]]]] = [
        *((JUDGED, part, tree.line) for part in range(CHOICES ** (FREE - FREE // 2))),
        *((FULL, name, lambda name: on_full(inputs, training, stored, name)) for name in names)]
    left = [one for one in todo if one[0].stem in options.only
            and one[1] not in {line["part"] for line in lines[one[0]]}]
    with TerminalProgress().task("parts", len(left)) as task:
        for path, part, made in left[:options.parts]:
            lines[path].append(made(part) | {"settings": settings})
            keep(path, lines[path])
            task.advance(seconds=lines[path][-1]["seconds"])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="a finished search")
    parser.add_argument("--data-dir", help="where its images lie now")
    parser.add_argument("--only", nargs="+", default=[JUDGED.stem, FULL.stem], choices=[JUDGED.stem, FULL.stem])
    parser.add_argument("--parts", type=int, help="only the next so many parts")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    with told():
        measure(options)


if __name__ == "__main__":
    main()
