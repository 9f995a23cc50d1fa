"""Chooses networks that grow: that of each budget keeps what that of the next smaller one has, and adds to it.

Picks are trained from the smallest to the largest, each from the weights of those before. One that keeps all of these
goes on learning where they ended; one with other operators has to learn again what they knew (docs/decisions.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from nas.arch import Arch
from nas.select.problem import USED, Ledger, Limits, Problem, Scores, uses

LARGER = 1.1  # times as much as the next smaller pick a network costs at least that is taken though it uses no budget
Solve = Callable[..., list[list[int]]]  # nas.select.ilp.solve
Fit = Callable[[int], Scores]  # the scores, by all that was judged, of the budget at a place


def choose_grown(problem: Problem, limits_list: Sequence[Limits], ledger: Ledger, fit: Fit,
                 solve: Solve) -> list[list[Arch]]:
    """Returns per budget the judged networks within it, lowest loss first: those that keep the next smaller pick, then
    the others, if there have to be any.

    What evaluations the ledger has left are spent on the answers of ``solve`` that keep it.
    """
    name = problem.costs[0].name
    order = sorted(range(len(limits_list)), key=lambda place: limits_list[place].get(name, math.inf))
    answers: dict[int, list[Arch]] = {}
    base: list[int] | None = None
    for left, place in zip(range(len(order), 0, -1), order, strict=True):
        limits, count = limits_list[place], math.ceil(ledger.left / left)
        if count:
            ledger.judge(_answers(problem, limits, base, fit(place), count, ledger, solve))
        budget = {name: limits[name]} if name in limits else {}
        answers[place] = _ranked(problem, ledger.ranked(limits), base, budget)
        if answers[place]:
            used = (arch for arch in answers[place] if uses(problem, arch, budget))
            base = problem.indices(next(used, answers[place][0]))
    return [answers[place] for place in range(len(limits_list))]


def _ranked(problem: Problem, archs: Sequence[Arch], base: Sequence[int] | None, budget: Limits) -> list[Arch]:
    """Returns networks in the order in which a budget wants them: first those that keep ``base``.

    Where none of these uses the budget, but some are clearly larger than ``base``, they are the only ones.
    """
    keeping = [arch for arch in archs if _keeps(problem, arch, base)]
    if base is not None and not any(uses(problem, arch, budget) for arch in keeping):
        cost = problem.costs[0]
        if larger := [arch for arch in keeping if cost.of(problem.indices(arch)) >= LARGER * cost.of(base)]:
            return larger
    return sorted(archs, key=lambda arch: arch not in keeping)  # stable


def _keeps(problem: Problem, arch: Arch, base: Sequence[int] | None) -> bool:
    """Tells whether a network keeps what another one has, in every slot."""
    return base is None or all(op.contains(of_base)
                               for op, of_base in zip(arch.ops, problem.arch(base).ops, strict=True))


def _answers(problem: Problem, limits: Limits, base: Sequence[int] | None, scores: Scores, count: int, ledger: Ledger,
             solve: Solve) -> list[list[int]]:
    """Returns the networks of highest score within the limits that keep what ``base`` has and are not judged yet."""
    kept = problem.containing(base) if base is not None else [np.arange(len(ops)) for ops in problem.allowed]
    costs = [replace(cost, per_op=_narrowed(cost.per_op, kept)) for cost in problem.costs]
    position = [{int(index): i for i, index in enumerate(which)} for which in kept]
    judged = [[at.get(index) for at, index in zip(position, pick, strict=True)] for pick in ledger.losses]

    def whole(pick: Sequence[int]) -> list[int]:
        return [int(which[i]) for which, i in zip(kept, pick, strict=True)]

    name = problem.costs[0].name
    picks = solve(_narrowed(scores, kept), costs, limits, k=count, avoid=[pick for pick in judged if None not in pick],
                  at_least={name: USED * limits[name]} if name in limits else {},
                  admits=lambda pick: problem.admitted(whole(pick)))
    return [whole(pick) for pick in picks]


def _narrowed(rows: Sequence[np.ndarray], kept: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    return tuple(row[which] for row, which in zip(rows, kept, strict=True))
