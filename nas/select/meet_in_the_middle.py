"""Solves knapsacks under several limits at once, where branch and bound is slow, by listing what the LP's duals leave.

With multipliers ``y >= 0`` for the limits, a network's regret is a bound ``L(y)`` plus the sum of its choices' reduced
regrets (each 0 or more) plus ``y`` times the room it leaves. So all networks within ``t`` of the bound consist of
choices of reduced regret ``t`` at most, few and small ones; they are listed half by half and joined (Horowitz and
Sahni, JACM 1974). The best that is found within ``t`` is the optimum, whatever else there is: the proof needs no tree.
``t`` grows from round to round; what a round finds too far out to be proven limits all that the next one looks at.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_array

MOST = 2_500_000_000  # networks whose reduced regrets are within reach, as a histogram counts them
_BINS = 256
_CHUNK = 2**17  # pairs of halves looked at in one go, few enough for the processor's cache
_PAIRS = 200_000_000  # of a round, some 2 s: 13 times what five limits on 10^105 networks ever asked for (n = 48)
_ROUNDING = 1e-12  # share of what is summed; sums of 100 numbers are right to a hundredth of it
_FIRST, _GROWTH = 10**4, 12  # networks in reach at first, and how many times more next


@dataclass(frozen=True)
class Additive:
    """States a problem: the choices, one a slot, of the least sum of ``regret[slot][choice]``, where the sum of
    ``use[row][slot][choice]`` is at most ``room[row]`` in every row.

    Sums round otherwise in another order, so one that is over the room by 1e-12 of what is summed counts as within: who
    needs a limit exact checks the answer, cuts it off and asks again, as ``Knapsack.best`` does.
    """

    regret: Sequence[np.ndarray]
    use: Sequence[Sequence[np.ndarray]]
    room: np.ndarray


def optimum(problem: Additive) -> list[int] | None:
    """Returns the proven optimum, a choice a slot; None where too much is within reach, or nothing is feasible."""
    multipliers = _multipliers(problem)
    if multipliers is None:
        return None
    summed = np.array([sum(float(np.abs(use).max()) for use in row) for row in problem.use])
    room = problem.room + _ROUNDING * (np.abs(problem.room) + summed)
    priced = [regret + sum(y * row[slot] for y, row in zip(multipliers, problem.use, strict=True))
              for slot, regret in enumerate(problem.regret)]
    bound = float(sum(row.min() for row in priced) - multipliers @ room)
    slack = _ROUNDING * float(sum(np.abs(row).max() for row in priced) + multipliers @ np.abs(room))
    join = _Join([problem.regret, *problem.use], room, [row - row.min() for row in priced], multipliers, bound, slack)
    reach, best, pick = -1.0, math.inf, None
    for aim in itertools.accumulate(itertools.repeat(_GROWTH), lambda n, times: n * times, initial=_FIRST):
        # within the regret of the best so far all that could be better is found: no round needs to reach further
        before, reach = reach, min(_reach(join.reduced, min(aim, MOST), slack), best - bound)
        if reach > before:
            try:
                best, pick = join.within(reach, best, pick)
            except _TooManyPairs:
                return None
        if best - bound <= reach:
            return pick
        if aim >= MOST or reach == math.inf:
            return None
    return None


def _multipliers(problem: Additive) -> np.ndarray | None:
    """Returns the duals of the LP relaxation; any from 0 on give a bound, so tolerances only make it weaker."""
    sizes = [len(row) for row in problem.regret]
    slots = np.repeat(np.arange(len(sizes)), sizes)
    once = csr_array((np.ones(len(slots)), (slots, np.arange(len(slots)))))
    use = csr_array(np.array([np.concatenate(list(row)) for row in problem.use]))
    answer = linprog(np.concatenate(list(problem.regret)), A_ub=use, b_ub=problem.room, A_eq=once,
                     b_eq=np.ones(len(sizes)), bounds=(0, None), method="highs-ds")
    return np.maximum(0.0, -answer.ineqlin.marginals) if answer.status == 0 else None


def _reach(reduced: Sequence[np.ndarray], most: float, slack: float) -> float:
    """Returns the largest sum of reduced regrets within which a histogram counts at most ``most`` networks.

    Infinite where that is all of them, below 0 where the ties at 0 are more; what is less than ``slack`` further out
    counts as within, as it does where networks are listed: equal scores have reduced regrets of 1e-13, not of 0.
    """
    if math.prod(len(row) for row in reduced) <= most:
        return math.inf
    if _count(reduced, slack) > most:
        return -1.0
    low, high = 0.0, sum(float(row.max()) for row in reduced)
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if _count(reduced, middle + slack) <= most else (low, middle)
    return low


def _count(reduced: Sequence[np.ndarray], reach: float) -> float:
    """Counts the combinations of one value a slot whose sum is at most ``reach``, from a histogram of the sums.

    ``reduced`` are the values by slot. They are rounded down to bins, so that the count is never too low.
    """
    counts = np.ones(1)
    for row in reduced:
        bins = np.minimum((row[row <= reach] / (reach or 1.0) * _BINS).astype(int), _BINS)
        counts = np.convolve(counts, np.bincount(bins))[:_BINS + 1]
    return float(counts.sum())


class _TooManyPairs(Exception):
    pass


@dataclass(frozen=True)
class _Half:
    """Holds the combinations of choices of half of the slots that a solution may have, in the order of their bounds.

    The bound is the sum of the reduced regrets; what is above a ``reach`` is left out.
    """

    sums: np.ndarray
    used: np.ndarray  # [row, way]; the first row is the regret
    steps: list[tuple[int, np.ndarray, np.ndarray]]  # slot; of each way to it, the way before and the choice
    order: np.ndarray  # [way]; its number in the last of the steps

    def choices(self, way: int) -> Iterator[tuple[int, int]]:
        """Yields (slot, choice) of one combination."""
        at = int(self.order[way])
        for slot, before, choice in reversed(self.steps):
            yield slot, int(choice[at])
            at = int(before[at])


@dataclass(frozen=True)
class _Join:
    """Joins combinations for two halves of the slots into whole networks; holds what all rounds of that share.

    The regret is the first of the rows: once some network is found, others have to stay below its regret.
    """

    rows: Sequence[Sequence[np.ndarray]]  # [row][slot][choice]
    room: np.ndarray  # of all rows but the first
    reduced: Sequence[np.ndarray]  # [slot][choice]
    multipliers: np.ndarray  # of all rows but the first
    bound: float  # no network's regret is less
    slack: float  # more than what a sum of regrets is off by rounding, so that nothing better is passed over

    def within(self, reach: float, best: float, pick: list[int] | None) -> tuple[float, list[int] | None]:
        """Finds the network of the least regret among those whose bound is at most ``reach`` above the least bound.

        Returns its regret and its choices; those of ``best`` and ``pick``, known before, where none has less. Raises
        _TooManyPairs where joining would take too long, as where no network keeps the limits together.
        """
        # what is beyond the reach may limit the next one, if it is not too far
        goal = min(best, self.bound + 2 * reach)
        room = np.array([goal + self.slack, *self.room])
        left, right = (self._half(slots, reach, room) for slots in _split(self.reduced, reach))
        if not len(left.sums) or not len(right.sums):
            return best, pick
        # room that is left counts as regret, so a way needs one that uses nearly all it leaves of the dearest limit
        row = 1 + int(np.argmax(self.multipliers * np.ptp(right.used[1:], axis=1)))
        price = float(self.multipliers[row - 1])
        pair, looked_at = None, 0
        for start, stop in itertools.pairwise(_blocks(len(right.sums))):
            order = start + np.argsort(right.used[row, start:stop], kind="stable")
            used = right.used[row, order]
            at, end = 0, len(left.sums)
            while at < end:
                rest = goal - self.bound + self.slack - right.sums[start]
                end = int(np.searchsorted(left.sums, min(rest, reach + self.slack - right.sums[start]), side="right"))
                chunk = slice(at, min(end, at + _CHUNK))
                high = room[row] - left.used[row, chunk]
                low = high - (rest - left.sums[chunk]) / price if price > 0 else np.full(len(high), -np.inf)
                first = np.searchsorted(used, low, side="left")
                counts = np.maximum(0, np.searchsorted(used, high, side="right") - first)
                taken = max(1, int(np.searchsorted(np.cumsum(counts), _CHUNK, side="right")))
                looked_at += int(counts[:taken].sum())
                if looked_at > _PAIRS:
                    raise _TooManyPairs
                lefts, rights = _ranges(first[:taken], counts[:taken])
                lefts, rights = lefts + at, order[rights]
                at += taken
                for i, most in enumerate(room):
                    near = left.used[i, lefts] + right.used[i, rights] <= most
                    lefts, rights = lefts[near], rights[near]
                regret = left.used[0, lefts] + right.used[0, rights]
                if len(lefts) and regret.min() < goal:
                    lowest = int(np.argmin(regret))
                    goal, pair = float(regret[lowest]), (int(lefts[lowest]), int(rights[lowest]))
                    room[0] = goal  # exactly: what is compared with it are the very sums it comes from
        if pair is None:
            return best, pick
        chosen = dict([*left.choices(pair[0]), *right.choices(pair[1])])
        return goal, [chosen[slot] for slot in range(len(self.reduced))]

    def _half(self, slots: list[int], reach: float, room: np.ndarray) -> _Half:
        least = np.array([[float(row[slot].min()) for slot in range(len(self.reduced))] for row in self.rows])
        rest = least.sum(axis=1)
        sums, used = np.zeros(1), np.zeros((len(self.rows), 1))
        steps = []
        for slot in slots:
            rest = rest - least[:, slot]
            ops = np.argsort(self.reduced[slot], kind="stable")
            counts = np.searchsorted(self.reduced[slot][ops], reach + self.slack - sums, side="right")
            before, choice = _ranges(np.zeros(len(counts), int), counts)
            choice = ops[choice]
            for i, row in enumerate(self.rows):
                near = used[i, before] + row[slot][choice] + rest[i] <= room[i]
                before, choice = before[near], choice[near]
            sums = sums[before] + self.reduced[slot][choice]
            used = used[:, before] + np.array([row[slot] for row in self.rows])[:, choice]
            steps.append((slot, before, choice))
        order = np.argsort(sums, kind="stable")
        return _Half(sums[order], used[:, order], steps, order)


def _ranges(first: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns pairs ``(i, j)`` of each i with the ``counts[i]`` numbers j from ``first[i]`` on."""
    i = np.repeat(np.arange(len(counts)), counts)
    return i, np.arange(len(i)) - np.repeat(np.cumsum(counts) - counts - first, counts)


def _blocks(n: int) -> list[int]:
    """Divides ``n`` combinations into blocks, each larger than the one before, and returns their bounds.

    Combinations are in ascending order, so where few of them can be used, only the first small blocks are looked at.
    """
    bounds = [0]
    while bounds[-1] < n:
        bounds.append(min(n, max(64, 4 * bounds[-1])))
    return bounds


def _split(reduced: Sequence[np.ndarray], reach: float) -> tuple[list[int], list[int]]:
    """Divides the slots into two halves with about as many combinations, each slot weighing as in the count of all."""
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
