"""Asks every method on what ``run.py`` judged: 10 seeds, at 50, 100 and 300 evaluations.

    python experiments/selection-cifar10/replay.py

Every method with every seed appends its line to ``replay.jsonl``; the same command skips what stands there. pymoo and
ofa are needed by their own methods alone (``pip install pymoo``, ``pip install --no-deps ofa``).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from lookup import looked_up
from rivals import POPULATIONS, Oracle, SpentError, ofa_evolution, optuna_nsga2, optuna_tpe, pymoo_nsga2
from stored import HERE, JUDGED, PROBLEM, Array, Judged, Pick, Stored, judged, picks

from nas.arch import Arch
from nas.cli.progress import TerminalProgress
from nas.files import nearest
from nas.select import SELECTORS
from nas.select.pareto import Point, front, hypervolume
from nas.select.problem import Limits, Scores, budgets

sys.path.append(str(Path(__file__).resolve().parents[1]))
from results import keep, standing, told

EVALUATIONS = (50, 100, 300)
BUDGETS = 6  # of nas search, where none is given
OFA = {"population_size": 100, "arch_mutate_prob": 0.1, "parent_ratio": 0.25, "mutation_ratio": 0.5,
       "max_time_budget": 50}  # the package's own, but for fewer generations: known networks cost nothing
Search = Callable[[Oracle, Sequence[float], int], None]


class Bench:
    """The restricted space with what was judged of it; ``reference`` is its largest ms and its lowest accuracy."""

    def __init__(self, stored: Stored, figures: Judged) -> None:
        self.stored, self.judged, self.problem = stored, figures, stored.restricted
        self.row = {pick: i for i, pick in enumerate(picks(stored))}
        self.losses = {pick: float(figures.loss[i]) for pick, i in self.row.items()}
        self.ms = np.array([self.problem.costs[0].of(pick) for pick in self.row])
        self.reference = float(self.ms.max()), float(figures.unseen_accuracy.min())

    def gates(self, limits: Limits) -> Scores:
        return self.stored.gates(limits, restricted=True)

    def solving(self) -> contextlib.AbstractContextManager[None]:
        """How the ILP's answers are found for as long as this lasts."""
        return looked_up(self.problem, list(self.row))

    def value(self, found: Sequence[int], by: Array, at: Array | None = None) -> float:
        """Hypervolume of the front of the networks ``found`` (rows), chosen by ``by``, at their unseen accuracy."""
        at = self.judged.unseen_accuracy if at is None else at
        kept = front(Point(str(i), float(self.ms[i]), float(by[i])) for i in found)
        return hypervolume((Point(p.id, p.ms, float(at[int(p.id)])) for p in kept), *self.reference)


class Space(Protocol):
    """What a method of ours is told of a space, beside the losses that it asks for."""

    def gates(self, limits: Limits) -> Scores: ...

    def solving(self) -> contextlib.AbstractContextManager[None]: ...


def ours(selector: str, count: int = BUDGETS, gates: bool = True) -> Callable[[Space], Search]:
    """A selector of the product, for as many budgets as ``count``, which it spaces itself."""
    def of(space: Space) -> Search:
        def search(oracle: Oracle, _: Sequence[float], seed: int) -> None:
            problem = oracle.problem

            def scores_for(limits: Limits) -> Scores:
                scores = space.gates(limits)
                return scores if gates else tuple(np.zeros(len(row)) for row in scores)

            def judge(archs: Sequence[Arch]) -> list[float]:
                return [oracle.loss([pick[slot] for slot in oracle.free]) for pick in map(problem.indices, archs)]

            limits: list[Limits] = [{"ms": ms} for ms in budgets(problem, count)]
            with space.solving():
                SELECTORS[selector](problem, limits, scores_for, judge, oracle.evaluations, random.Random(seed))

        return search

    return of


def theirs(search: Search) -> Callable[[Space], Search]:
    return lambda space: search


METHODS: dict[str, Callable[[Space], Search]] = {
    "ilp, 12 budgets": ours("ilp", 12), "ilp, 6 budgets": ours("ilp"),
    "ilp, 12 budgets, no gates": ours("ilp", 12, gates=False), "auto, 12 budgets": ours("auto", 12),
    "random": ours("random"),
    **{f"pymoo NSGA-II, {n}": theirs(pymoo_nsga2(n)) for n in POPULATIONS},
    **{f"Optuna NSGA-II, {n}": theirs(optuna_nsga2(n)) for n in POPULATIONS},
    "Optuna TPE": theirs(optuna_tpe()),
    "OFA evolution, 100": theirs(ofa_evolution(OFA)),
    "OFA evolution, 8": theirs(ofa_evolution({**OFA, "population_size": 8}))}
GROWING = ("pymoo", "Optuna", "random")  # fewer evaluations are the beginning of more: one search says all


def measure(bench: Bench, method: str, seed: int) -> dict[str, Any]:
    """Hypervolumes of a method by number of evaluations; ``by_accuracy`` where the front is chosen by accuracy."""
    start, search = time.perf_counter(), METHODS[method](bench)
    by_loss, by_accuracy, spent, seen = {}, {}, {}, {}
    whole: list[Pick] = []
    for n in sorted(EVALUATIONS, reverse=True):
        if not whole or not method.startswith(GROWING):
            oracle = Oracle(bench.problem, bench.losses, n)
            with contextlib.suppress(SpentError):
                search(oracle, budgets(bench.problem, BUDGETS), seed)
            whole = list(oracle.asked)
        rows = [bench.row[pick] for pick in whole[:n]]
        spent[n], by_loss[n] = len(rows), round(bench.value(rows, -bench.judged.loss), 7)
        by_accuracy[n] = round(bench.value(rows, bench.judged.accuracy), 7)
        seen[n] = round(bench.value(rows, bench.judged.accuracy, bench.judged.accuracy), 7)
    return {"method": method, "seed": seed, "hypervolume": by_loss, "by_accuracy": by_accuracy, "seen": seen,
            "spent": spent, "seconds": round(time.perf_counter() - start, 1)}


def replay(options: argparse.Namespace) -> None:
    bench = Bench(*judged())
    settings = {"judged": hashlib.sha256(JUDGED.read_bytes()).hexdigest()[:12],
                "problem": hashlib.sha256(PROBLEM.read_bytes()).hexdigest()[:12],
                "reference": [round(value, 6) for value in bench.reference],
                "networks": len(bench.ms)}
    lines = standing(options.out, settings)
    done = {(line["method"], line["seed"]) for line in lines}
    left = [(method, seed) for method in options.methods for seed in range(options.seeds)
            if (method, seed) not in done]
    with TerminalProgress().task("searches", len(lines) + len(left), len(lines)) as task:
        for method, seed in left:
            lines.append(measure(bench, method, seed) | {"settings": settings})
            keep(options.out, lines)
            task.advance(seconds=lines[-1]["seconds"])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "replay.jsonl")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="NAME", help=f"of {', '.join(METHODS)}")
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    if unknown := [name for name in options.methods if name not in METHODS]:
        parser.error(f"--methods {unknown[0]}: no such method; {nearest(unknown[0], METHODS)}")
    return options


def main() -> None:
    options = arguments()
    with told():
        replay(options)


if __name__ == "__main__":
    main()
