"""The ILP's answers on a space that can be listed: the same optima by looking at every network, in milliseconds.

The tests of ``nas.select.ilp`` compare it with exactly this. With HiGHS a search of 300 evaluations takes most of a
minute, as networks that were judged are cut off one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from stored import Array, Pick

from nas.select import ilp
from nas.select.problem import Cost, Limits, Problem, Scores


@contextmanager
def looked_up(problem: Problem, picks: Sequence[Pick]) -> Iterator[None]:
    """``nas.select.ilp`` solves by listing ``picks``, all networks of the problem, for as long as this lasts."""
    every, row = np.array(picks), {pick: i for i, pick in enumerate(picks)}
    costs: dict[str, Array] = {cost.name: np.array([cost.of(pick) for pick in picks]) for cost in problem.costs}
    fixed = sum(len(ops) == 1 for ops in problem.allowed)
    free = len(problem.allowed) - fixed

    def solve(scores: Scores, _: Sequence[Cost], limits: Limits, *, k: int = 1, overlap: float = 0.7,
              at_least: Limits | None = None, avoid: Iterable[Sequence[int]] = (),
              admits: Callable[[Sequence[int]], bool] | None = None) -> list[list[int]]:
        total = sum(np.asarray(own)[every[:, slot]] for slot, own in enumerate(scores))
        left = np.all([costs[name] <= limit for name, limit in limits.items()], axis=0)
        left[[row[tuple(pick)] for pick in avoid]] = False
        most = fixed + min(free - 1, math.floor(overlap * free + 1e-9))
        lower = dict(at_least or {})
        found: list[list[int]] = []
        while len(found) < k and left.any():
            within = np.all([left, *(costs[name] >= low for name, low in lower.items())], axis=0)
            if not within.any():
                lower = {}
                continue
            best = every[int(np.argmax(np.where(within, total, -np.inf)))]
            found.append([int(choice) for choice in best])
            left &= (every == best).sum(axis=1) <= most
        return found

    before = ilp.solve
    ilp.solve = solve  # type: ignore[assignment]
    try:
        yield
    finally:
        ilp.solve = before
