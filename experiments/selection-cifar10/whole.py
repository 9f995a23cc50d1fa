"""Once more on the whole space that pruning left: 100 evaluations, 3 seeds, judged by the supernet when asked for.

    python experiments/selection-cifar10/whole.py --run RUN --data-dir DIR

RUN is that of ``run.py``, whose ``problem.json`` it needs. Every method with every seed appends its line to
``whole.jsonl``; the same command skips what stands there. A network is judged once a call, whoever asks for it. All
methods begin with random networks just within the budgets.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import Any

from replay import BUDGETS, METHODS, Search
from rivals import Oracle, SpentError
from run import halves, settings_of, stored_of, supernet
from stored import HERE, Pick, Stored

from nas.cli.progress import TerminalProgress
from nas.pipeline.inputs import Inputs
from nas.pipeline.selection import CALIBRATED_ON
from nas.select.pareto import Point, front, hypervolume
from nas.select.problem import Limits, Scores, budgets
from nas.training.evaluation import Judged
from nas.training.supernet_training import SupernetTraining

sys.path.append(str(Path(__file__).resolve().parents[1]))
from results import keep, standing, told

EVALUATIONS, CHANCE = 100, 0.1
NAMES = tuple(name for name in METHODS if not name.endswith(", 50"))  # populations of half of all evaluations


class Whole:
    """The space, and what was judged of it; the reference is its largest ms and the accuracy of guessing."""

    def __init__(self, stored: Stored, inputs: Inputs, training: SupernetTraining) -> None:
        self.stored, self.training, self.problem = stored, training, stored.full
        self.halves = dict(zip(("seen", "unseen"), halves(inputs), strict=True))
        self.judged: dict[tuple[str, Pick], Judged] = {}
        self.reference = self.problem.costs[0].largest, CHANCE

    def gates(self, limits: Limits) -> Scores:
        return self.stored.gates(limits, restricted=False)

    def solving(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def judge(self, pick: Pick, part: str) -> Judged:
        """On the images ``seen``, or the ``unseen``."""
        key = part, pick
        if key not in self.judged:
            self.judged[key] = self.training.judge(self.problem.arch(pick), self.halves[part], CALIBRATED_ON)
        return self.judged[key]

    def value(self, worth: dict[Pick, float]) -> float:
        """Hypervolume of the front of what is ``worth`` most, at its accuracy on the unseen images."""
        known = dict(enumerate(worth))
        ms = {i: self.problem.costs[0].of(pick) for i, pick in known.items()}
        kept = front(Point(str(i), ms[i], worth[pick]) for i, pick in known.items())
        return hypervolume((Point(p.id, p.ms, self.judge(known[int(p.id)], "unseen").accuracy) for p in kept),
                           *self.reference)


class Live(dict[Pick, float]):
    """Losses on the images seen, judged when they are asked for."""

    def __init__(self, whole: Whole) -> None:
        super().__init__()
        self.whole = whole

    def __missing__(self, pick: Pick) -> float:
        self[pick] = self.whole.judge(pick, "seen").loss
        return self[pick]


def measure(whole: Whole, search: Search, seed: int) -> dict[str, Any]:
    oracle = Oracle(whole.problem, Live(whole), EVALUATIONS, near=True)
    with contextlib.suppress(SpentError):
        search(oracle, budgets(whole.problem, BUDGETS), seed)
    by_accuracy = {pick: whole.judge(pick, "seen").accuracy for pick in oracle.asked}
    return {"hypervolume": round(whole.value({pick: -loss for pick, loss in oracle.asked.items()}), 7),
            "by_accuracy": round(whole.value(by_accuracy), 7), "spent": len(oracle.asked)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="a finished search")
    parser.add_argument("--data-dir", help="where its images lie now")
    parser.add_argument("--out", type=Path, default=HERE / "whole.jsonl")
    parser.add_argument("--methods", nargs="+", default=NAMES, choices=NAMES, metavar="NAME", help="some of them")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    with told():
        settings = settings_of(options) | {"evaluations": EVALUATIONS}
        lines = standing(options.out, settings)
        done = {(line["method"], line["seed"]) for line in lines}
        left = [(method, seed) for seed in range(options.seeds) for method in options.methods
                if (method, seed) not in done]
        whole = Whole(stored_of(settings), *supernet(options.run, options.data_dir))
        with TerminalProgress().task("searches", len(lines) + len(left), len(lines)) as task:
            for method, seed in left:
                line = measure(whole, METHODS[method](whole), seed)
                lines.append({"method": method, "seed": seed, **line, "settings": settings})
                keep(options.out, lines)
                task.advance(hypervolume=lines[-1]["hypervolume"])


if __name__ == "__main__":
    main()
