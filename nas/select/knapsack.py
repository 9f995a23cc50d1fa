"""Solves multiple-choice knapsacks to proven optimality: one choice a slot, best sum of scores, hard limits on costs.

HiGHS (Huangfu & Hall, Math. Prog. Comp. 2018) solves them through ``scipy.optimize.milp``, under several limits at once
``nas.select.meet_in_the_middle`` does where it can. Both work to tolerances, the limits here are exact: rows are scaled
so that the tolerance is about 1e-9 of the room, and an answer whose exact cost is over a limit is cut off and the rest
solved again.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from nas.errors import UserError
from nas.select.meet_in_the_middle import Additive, optimum
from nas.select.problem import Cost, Scores

Pick = tuple[int, ...]
Cut = tuple[Pick, int]  # at most so many choices equal to those of the pick
_LIBC = ctypes.CDLL(None if os.name == "posix" else "ucrtbase")
End = tuple[Cost, float]  # a lower end of a cost
_ROOM = 1000.0  # right-hand side of a scaled limit
_SLACK = 1e-9  # share of the room: what lies on the limit is let in, exactness is checked afterwards
_REFUSED = 40  # networks that are not admitted and are cut off one by one before nothing more is looked for
_OVER = 8  # answers over a limit that are cut off one by one before the limit is tightened


def admit_all(pick: Sequence[int]) -> bool:
    """Admits every network."""
    return True


@dataclass
class Knapsack:
    """Finds the network of the best score within exact upper limits (``Cost.name`` -> value), without ``banned`` ones.

    An answer is the optimum, proven, unless HiGHS was stopped after ``seconds``; then it lies ``gap`` at most below it.
    """

    scores: Scores
    costs: Sequence[Cost]
    limits: Mapping[str, float]
    banned: frozenset[Pick] = frozenset()
    admits: Callable[[Pick], bool] = admit_all  # expensive: asked last
    seconds: float = math.inf  # of one call of HiGHS
    gap: float = 0.0  # in units of the scores: the largest of all answers so far
    _excluded: list[Pick] = field(default_factory=list)
    _over: int = 0
    _refused: int = 0

    def __post_init__(self) -> None:
        assert all(np.isfinite(row).all() for row in self.scores)
        self.costs = [cost for cost in self.costs if math.isfinite(self.limits.get(cost.name, math.inf))]
        self._dominates: dict[tuple[str, ...], list[np.ndarray]] = {}

    def best(self, cuts: Sequence[Cut], at_least: Sequence[End]) -> Pick | None:
        """Returns the best network that the cuts leave, exactly within the limits, not banned and admitted.

        None if there is none, or if too many were not admitted: each rules out no more than itself.
        """
        while self._refused < _REFUSED:
            without = [*cuts, *((pick, len(pick) - 1) for pick in self._excluded)]
            pick = self._relaxed(without, at_least, tight=self._over > _OVER)
            if pick is None:
                return None
            fits = self._fits(pick)
            if fits and pick not in self.banned:
                if self.admits(pick):
                    return pick
                self._refused += 1
            self._excluded.append(pick)
            self._over += not fits
        return None

    def _fits(self, pick: Pick) -> bool:
        return all(cost.of(pick) <= self.limits[cost.name] for cost in self.costs)

    def _relaxed(self, cuts: Sequence[Cut], ends: Sequence[End], tight: bool) -> Pick | None:
        """Returns the best network within the limits as HiGHS rounds them, or None.

        First without the lower ends, then with them in place of the upper limits on the same costs: then only choices
        that nothing dominates are needed, a tenth of all. Only if neither answer happens to be within everything, all.
        """
        pick = self._solve(self.costs, [], cuts, tight)
        if pick is None or all(cost.of(pick) >= low for cost, low in ends):
            return pick
        floored = {cost.name for cost, _ in ends}
        pick = self._solve([cost for cost in self.costs if cost.name not in floored], ends, cuts, tight)
        if pick is None or self._fits(pick):
            return pick
        return self._solve(self.costs, ends, cuts, tight)

    def _solve(self, capped: Sequence[Cost], ends: Sequence[End], cuts: Sequence[Cut], tight: bool) -> Pick | None:
        rows = [*(_upper(cost, self.limits[cost.name], tight) for cost in capped), *map(_lower, ends)]
        kept = self._kept(capped, [cost for cost, _ in ends], cuts)
        kept = [ops[_possible(ops, slot, rows)] for slot, ops in enumerate(kept)]
        if not all(len(ops) for ops in kept):
            return None
        pick = _joined(self.scores, kept, rows, cuts) if len(capped) > 1 and not ends else None
        if pick is None:
            pick, gap = _solve(self.scores, kept, rows, cuts, self.seconds)
            self.gap = max(self.gap, gap)
        return pick

    def _kept(self, capped: Sequence[Cost], floored: Sequence[Cost], cuts: Sequence[Cut]) -> list[np.ndarray]:
        """Returns per slot the choices that no other one dominates, which are enough for an optimum.

        A choice that a cut names dominates nothing: taking it may cost overlap.
        """
        if {cost.name for cost in capped} & {cost.name for cost in floored}:
            return [np.arange(len(row)) for row in self.scores]
        kept = []
        for slot, matrix in enumerate(self._dominance(capped, floored)):
            free = np.ones(len(matrix), bool)
            free[[pick[slot] for pick, _ in cuts]] = False
            kept.append(np.flatnonzero(~matrix[free].any(axis=0)))
        return kept

    def _dominance(self, capped: Sequence[Cost], floored: Sequence[Cost]) -> list[np.ndarray]:
        key = (*(cost.name for cost in capped), "", *(cost.name for cost in floored))
        if key not in self._dominates:
            self._dominates[key] = [
                _dominates(score, [*(c.per_op[slot] for c in capped), *(-c.per_op[slot] for c in floored)])
                for slot, score in enumerate(self.scores)]
        return self._dominates[key]


@dataclass(frozen=True)
class _Row:
    """Bounds a cost: ``low <= sum of values <= high`` over the chosen operators, less each slot's smallest cost."""

    values: list[np.ndarray]
    low: float
    high: float


def _upper(cost: Cost, limit: float, tight: bool) -> _Row:
    """Turns an upper limit into a row scaled to a room of 1000, because HiGHS works to a tolerance of 1e-6.

    It is loose by what rounding may take, or safely ``tight``.
    """
    values, room, ulp = _scaled(cost, limit)
    slack = max(_SLACK * _ROOM, ulp)
    return _Row(values, -np.inf, max(0.0, room - 4 * slack) if tight else room + slack)


def _lower(end: End) -> _Row:
    """Turns a lower end into a row; a value over the room counts as the room, because it covers the row alone either
    way.
    """
    values, room, _ = _scaled(*end)
    return _Row([np.minimum(row, max(0.0, room)) for row in values], room, np.inf)


def _scaled(cost: Cost, bound: float) -> tuple[list[np.ndarray], float, float]:
    """Returns the cost above each slot's smallest, the room that the bound leaves for it, and the bound's rounding."""
    room, ulp = bound - cost.smallest, math.ulp(bound)
    unit = max(room, 64 * ulp, 1e-200) / _ROOM
    return [(row - row.min()) / unit for row in cost.per_op], room / unit, ulp / unit


def _dominates(score: np.ndarray, costs: Sequence[np.ndarray]) -> np.ndarray:
    """Returns ``[i, j]``: choice i scores at least as well as j and costs no more in anything; of equals, the first."""
    at_least = score[:, None] >= score[None, :]
    better = score[:, None] > score[None, :]
    for cost in costs:
        at_least &= cost[:, None] <= cost[None, :]
        better |= cost[:, None] < cost[None, :]
    first = np.arange(len(score))[:, None] < np.arange(len(score))[None, :]
    result: np.ndarray = at_least & (better | first)
    return result


def _joined(scores: Scores, kept: Sequence[np.ndarray], rows: Sequence[_Row], cuts: Sequence[Cut]) -> Pick | None:
    """Solves under several upper limits by meeting in the middle; None where that method fails, solvable or not."""
    regret, scale = _regret(scores, kept)
    use = [[row.values[slot][ops] for slot, ops in enumerate(kept)] for row in rows]
    same = [[(ops == pick[slot]).astype(float) for slot, ops in enumerate(kept)] for pick, _ in cuts]
    room = np.array([*(row.high for row in rows), *(float(most) for _, most in cuts)])
    with _silent():
        chosen = optimum(Additive([row * scale for row in regret], [*use, *same], room))
    return None if chosen is None else tuple(int(ops[i]) for ops, i in zip(kept, chosen, strict=True))


def _solve(scores: Scores, kept: Sequence[np.ndarray], rows: Sequence[_Row], cuts: Sequence[Cut],
           seconds: float) -> tuple[Pick | None, float]:
    """Solves by HiGHS, a binary variable a choice; returns the pick and by how much score it may miss the optimum.

    Raises RuntimeError unless HiGHS proves optimality or that nothing is feasible, or is stopped after ``seconds``;
    UserError where it has no network by then.
    """
    slots = np.repeat(np.arange(len(kept)), [len(ops) for ops in kept])
    ops = np.concatenate(kept)
    regret, scale = _regret(scores, kept)
    limit = {"time_limit": seconds} if math.isfinite(seconds) else {}
    with _silent():
        result = milp(np.concatenate(regret) * scale, integrality=np.ones(len(ops)), bounds=Bounds(0, 1),
                      constraints=_constraints(slots, ops, rows, cuts),
                      options={"mip_rel_gap": 0, "disp": False, **limit})
    if result.status == 2:
        return None, 0.0
    if result.status == 1 and result.x is None:
        raise UserError(f"the selection found no network within its limits in {seconds:g} s; give fewer limits at once")
    if result.status not in (0, 1) or result.x is None:
        raise RuntimeError(f"HiGHS ended without a proof (status {result.status}): {result.message}")
    gap = max(0.0, float(result.fun - result.mip_dual_bound)) / scale if result.status == 1 else 0.0
    return tuple(int(ops[slots == slot][np.argmax(result.x[slots == slot])]) for slot in range(len(kept))), gap


def _regret(scores: Scores, kept: Sequence[np.ndarray]) -> tuple[list[np.ndarray], float]:
    """Returns what each choice scores below its slot's best, and the factor that makes their largest sum 10,000."""
    regret = [row[ops].max() - row[ops] for row, ops in zip(scores, kept, strict=True)]
    return regret, 1e4 / (sum(row.max() for row in regret) or 1.0)


@contextmanager
def _silent() -> Iterator[None]:
    """Sends file descriptor 1 into nothing: HiGHS prints debugging lines from C++ at times, whatever ``disp`` says."""
    _LIBC.fflush(None)  # what C code printed before is let out, and below what HiGHS left in the buffer is let go
    try:
        before = os.dup(1)
    except OSError:  # there is no stdout
        yield
        return
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.close(nothing)
    try:
        yield
    finally:
        _LIBC.fflush(None)
        os.dup2(before, 1)
        os.close(before)


def _possible(ops: np.ndarray, slot: int, rows: Sequence[_Row]) -> np.ndarray:
    """Marks the choices that break no upper limit on their own."""
    possible = np.ones(len(ops), bool)
    for row in rows:
        possible &= row.values[slot][ops] <= row.high
    return possible


def _constraints(slots: np.ndarray, ops: np.ndarray, rows: Sequence[_Row], cuts: Sequence[Cut]) -> LinearConstraint:
    n = int(slots.max()) + 1
    lines = [(slots == slot).astype(float) for slot in range(n)]
    low, high = [1.0] * n, [1.0] * n
    for row in rows:
        lines.append(np.array([row.values[slot][op] for slot, op in zip(slots, ops, strict=True)]))
        low.append(row.low)
        high.append(row.high)
    for pick, most in cuts:
        lines.append((np.array(pick)[slots] == ops).astype(float))
        low.append(-np.inf)
        high.append(float(most))
    return LinearConstraint(coo_array(np.array(lines)).tocsc(), np.array(low), np.array(high))
