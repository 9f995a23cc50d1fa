"""An exact answer under several limits at once, where branch and bound is slow: enumerate what the LP's duals leave.

With multipliers ``y >= 0`` for the limits, a network's regret is a bound ``L(y)`` plus the sum of its choices' reduced
regrets (each 0 or more) plus ``y`` times the room it leaves. So all networks within ``t`` of the bound consist of
choices of reduced regret ``t`` at most, few and small ones; they are listed half by half and joined (Horowitz and
Sahni, JACM 1974). The best that is found within ``t`` is the optimum, whatever else there is: the proof needs no tree.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_array

MOST = 250_000_000  # networks whose reduced regrets are within reach, as a histogram counts them; about 15 s
_BINS = 256
_CHUNK = 2**21  # pairs of halves looked at in one go
_FIRST, _GROWTH = 10**4, 12  # networks in reach at first, and how many times more next


@dataclass(frozen=True)
class Additive:
    """Least sum of ``regret[slot][choice]`` where that of ``use[row][slot][choice]`` is at most ``room[row]``."""

    regret: Sequence[np.ndarray]
    use: Sequence[Sequence[np.ndarray]]
    room: np.ndarray


def least(problem: Additive) -> list[int] | None:
    """The optimum, proven; None where nothing is known, as where too much is within reach or nothing is feasible."""
    multipliers = _multipliers(problem)
    if multipliers is None:
        return None
    reduced = []
    for slot, regret in enumerate(problem.regret):
        priced = regret + sum(y * row[slot] for y, row in zip(multipliers, problem.use, strict=True))
        reduced.append(priced - priced.min())
    reach = -1.0
    for aim in itertools.accumulate(itertools.repeat(_GROWTH), lambda n, times: n * times, initial=_FIRST):
        before, reach = reach, _reach(reduced, min(aim, MOST))
        found = _joined(problem, reduced, multipliers, reach) if reach > before else None
        if found is not None or aim >= MOST or reach == math.inf:
            return found
    return None


def _multipliers(problem: Additive) -> np.ndarray | None:
    """The duals of the relaxation; any that are 0 or more give a bound, so tolerances only make it weaker."""
    sizes = [len(row) for row in problem.regret]
    slots = np.repeat(np.arange(len(sizes)), sizes)
    one = csr_array((np.ones(len(slots)), (slots, np.arange(len(slots)))))
    use = csr_array(np.array([np.concatenate(list(row)) for row in problem.use]))
    answer = linprog(np.concatenate(list(problem.regret)), A_ub=use, b_ub=problem.room, A_eq=one,
                     b_eq=np.ones(len(sizes)), bounds=(0, None), method="highs-ds")
    return np.maximum(0.0, -answer.ineqlin.marginals) if answer.status == 0 else None


def _reach(reduced: Sequence[np.ndarray], most: float) -> float:
    """The largest sum of reduced regrets, by halving, within which a histogram counts at most ``most`` networks.

    Infinite where that is all of them.
    """
    if math.prod(len(row) for row in reduced) <= most:
        return math.inf
    low, high = 0.0, sum(float(row.max()) for row in reduced)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _count(reduced, middle) <= most else (low, middle)
    return low


def _count(reduced: Sequence[np.ndarray], reach: float) -> float:
    """Networks whose reduced regrets sum to ``reach`` at most, each rounded down to one of the bins: none is missed."""
    counts = np.zeros(_BINS + 1)
    counts[0] = 1.0
    for row in reduced:
        bins = np.minimum((row[row <= reach] / (reach or 1.0) * _BINS).astype(int), _BINS)
        moved = np.zeros(_BINS + 1)
        for step, times in zip(*np.unique(bins, return_counts=True), strict=True):
            moved[step:] += times * counts[:_BINS + 1 - step]
        counts = moved
    return float(counts.sum())


@dataclass(frozen=True)
class _Half:
    """All ways through some of the slots within reach, by ascending sum of reduced regrets."""

    slots: list[int]
    sums: np.ndarray
    used: np.ndarray  # [row, way]
    ways: np.ndarray  # [way, slot of this half]


def _joined(problem: Additive, reduced: Sequence[np.ndarray], multipliers: np.ndarray,
            reach: float) -> list[int] | None:
    least_use = np.array([[float(row[slot].min()) for slot in range(len(reduced))] for row in problem.use])
    left, right = (_half(problem, reduced, slots, reach, least_use) for slots in _split(reduced, reach))
    best, pair = reach * (1 + 1e-12), None
    at = 0
    while at < len(left.sums) and len(right.sums):
        # ways of the right half that each of the next ways of the left half can be joined with
        counts = np.searchsorted(right.sums, best - left.sums[at:at + _CHUNK], side="right")
        ends = np.cumsum(counts)
        taken = max(1, int(np.searchsorted(ends, _CHUNK, side="right")))
        counts = counts[:taken]
        first = np.repeat(np.arange(at, at + taken), counts)
        second = np.arange(len(first)) - np.repeat(ends[:taken] - counts, counts)
        at += taken
        for row, room in enumerate(problem.room):
            within = left.used[row, first] + right.used[row, second] <= room
            first, second = first[within], second[within]
        if len(first):
            spare = problem.room[:, None] - left.used[:, first] - right.used[:, second]
            over = left.sums[first] + right.sums[second] + multipliers @ spare
            lowest = int(np.argmin(over))
            if over[lowest] <= best:
                best, pair = float(over[lowest]), (int(first[lowest]), int(second[lowest]))
    if pair is None:
        return None
    chosen = dict(zip([*left.slots, *right.slots], [*left.ways[pair[0]], *right.ways[pair[1]]], strict=True))
    return [int(chosen[slot]) for slot in range(len(reduced))]


def _split(reduced: Sequence[np.ndarray], reach: float) -> tuple[list[int], list[int]]:
    """Slots in two halves of about as many ways, each slot weighing as in the saddle point of the count of all."""
    shares = [row[row <= reach] / (reach or 1.0) for row in reduced]

    def weights(tilt: float) -> list[float]:
        return [float(np.log(np.exp(-tilt * row).sum())) for row in shares]

    weight_of = weights(min((2.0**power for power in range(8)), key=lambda tilt: tilt + sum(weights(tilt))))
    halves: tuple[list[int], list[int]] = ([], [])
    weight = [0.0, 0.0]
    for slot in sorted(range(len(reduced)), key=lambda slot: -weight_of[slot]):
        side = int(weight[1] < weight[0])
        halves[side].append(slot)
        weight[side] += weight_of[slot]
    return halves


def _half(problem: Additive, reduced: Sequence[np.ndarray], slots: list[int], reach: float,
          least_use: np.ndarray) -> _Half:
    rest = least_use.sum(axis=1)
    sums, used = np.zeros(1), np.zeros((len(problem.room), 1))
    ways = np.zeros((1, 0), np.int32)
    for slot in slots:
        near = np.flatnonzero(reduced[slot] <= reach)
        rest = rest - least_use[:, slot]
        use = np.array([row[slot][near] for row in problem.use])
        total = (sums[:, None] + reduced[slot][near]).ravel()
        spent = (used[:, :, None] + use[:, None, :]).reshape(len(use), -1)
        # sums in another order may round otherwise, hence the slack; what is returned is checked exactly
        kept = np.flatnonzero((total <= reach) & (spent + rest[:, None] <= problem.room[:, None] + 1e-6).all(axis=0))
        before, choice = np.divmod(kept, len(near))
        sums, used = total[kept], spent[:, kept]
        ways = np.hstack([ways[before], near[choice, None].astype(np.int32)])
    order = np.argsort(sums, kind="stable")
    return _Half(slots, sums[order], used[:, order], ways[order])
