"""Defines what a selector is given: the choices that are left, their additive costs, and a judge that it may ask.

Architectures are handled as lists of indices into ``Problem.allowed``; no network is ever seen here. Costs are added
with ``math.fsum``: correctly rounded, so a sum does not depend on the order and grows with each of its parts.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from nas.arch import Arch, Op

if TYPE_CHECKING:  # the walk needs torch, the solvers do not
    from nas.plan import Layout

Limits = Mapping[str, float]  # cost name -> the largest admissible value
Judge = Callable[[Sequence[Arch]], list[float]]  # held-out loss of each, lower is better; expensive
Scores = tuple[np.ndarray, ...]  # additive, per slot and allowed op, higher is better
ScoresFor = Callable[[Limits], Scores]
USED = 0.9  # share of a budget that its pick takes: inherited loss favours the smallest network, fine-tuning does not
_SKIPPED = 4  # random networks that are not admitted before no other is drawn


def anything(arch: Arch) -> bool:
    """Admits every network."""
    return True


@dataclass(frozen=True, eq=False)
class Cost:
    """Adds up one cost of a network, such as milliseconds on a target: ``per_op[slot][op]``, and ``fixed`` for stem and
    head.
    """

    name: str
    unit: str
    fixed: float
    per_op: tuple[np.ndarray, ...]

    def __post_init__(self) -> None:
        assert all(np.isfinite(row).all() and (row >= 0).all() for row in (*self.per_op, np.array(self.fixed)))

    def of(self, indices: Sequence[int]) -> float:
        parts = (float(row[i]) for row, i in zip(self.per_op, indices, strict=True))
        return math.fsum((self.fixed, *parts))

    @property
    def smallest(self) -> float:
        """Returns the smallest cost of any network: ``fsum`` is monotone, so no sum is below that of the minima."""
        return math.fsum((self.fixed, *(float(row.min()) for row in self.per_op)))

    @property
    def largest(self) -> float:
        return math.fsum((self.fixed, *(float(row.max()) for row in self.per_op)))


@dataclass(frozen=True, eq=False)
class Problem:
    """Holds the operators that pruning left in each slot, and what they cost; the first cost is the budgeted ms.

    ``admits`` says of a whole network what no sum can say, such as whether its maps fit into the target's memory. It is
    expensive and remembers its answers; what it refuses is never judged. ``drawn`` are, per slot, the indices that
    networks are drawn and mutated from, if not all. Where it ``grows``, the network of each budget should keep what
    that of the next smaller one has, because that is where its training begins.
    """

    layout: Layout
    allowed: tuple[tuple[Op, ...], ...]
    costs: tuple[Cost, ...]
    admits: Callable[[Arch], bool] = anything
    drawn: tuple[frozenset[int], ...] | None = None
    grows: bool = False

    def __post_init__(self) -> None:
        assert self.costs and len(self.allowed) == len(self.layout.slots) and all(self.allowed)
        lengths = [len(ops) for ops in self.allowed]
        assert all([len(row) for row in cost.per_op] == lengths for cost in self.costs)

    @cached_property
    def branches(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """Returns per slot the indices of its (``drawn``) operators grouped by branch, hidden widths ascending."""
        drawn = self.drawn or tuple(frozenset(range(len(ops))) for ops in self.allowed)
        return tuple(_branches(ops, indices) for ops, indices in zip(self.allowed, drawn, strict=True))

    @cached_property
    def _positions(self) -> tuple[dict[Op, int], ...]:
        return tuple({op: i for i, op in enumerate(ops)} for ops in self.allowed)

    def arch(self, indices: Sequence[int]) -> Arch:
        ops = tuple(ops[i] for ops, i in zip(self.allowed, indices, strict=True))
        return Arch(self.layout.space, self.layout.task.size, ops)

    def admitted(self, indices: Sequence[int]) -> bool:
        return self.admits(self.arch(indices))

    def indices(self, arch: Arch) -> list[int]:
        """Returns a network as indices. Raises KeyError for an operator that its slot does not have."""
        return [known[op] for known, op in zip(self._positions, arch.ops, strict=True)]

    def containing(self, base: Sequence[int]) -> list[np.ndarray]:
        """Returns per slot the indices of the operators that keep what a network has there: its branch, no narrower."""
        bases = [ops[i] for ops, i in zip(self.allowed, base, strict=True)]
        return [np.flatnonzero([op.contains(of_base) for op in ops])
                for ops, of_base in zip(self.allowed, bases, strict=True)]

    def named(self, name: str) -> Cost:
        return next(cost for cost in self.costs if cost.name == name)

    def cost(self, arch: Arch, name: str) -> float:
        return self.named(name).of(self.indices(arch))

    def smallest(self, name: str) -> float:
        return self.named(name).smallest

    def largest(self, name: str) -> float:
        return self.named(name).largest

    def fits(self, indices: Sequence[int], limits: Limits) -> bool:
        return all(cost.of(indices) <= limits[cost.name] for cost in self.costs if cost.name in limits)


def uses(problem: Problem, arch: Arch, limits: Limits) -> bool:
    """Tells whether a network takes the share ``USED`` of one of the limits at least."""
    return any(problem.cost(arch, name) >= USED * bound for name, bound in limits.items())


Selector = Callable[[Problem, Sequence[Limits], ScoresFor, Judge, int, random.Random], list[list[Arch]]]


def budgets(problem: Problem, n: int = 6, ends: tuple[float, float] | None = None) -> list[float]:
    """Returns ``n`` budgets from the smallest to the largest reachable ms in geometric steps (one if they are equal).

    ``ends`` are these two where not every network is admitted.
    """
    smallest, largest = ends or (problem.costs[0].smallest, problem.costs[0].largest)
    smallest = max(smallest, largest / 1000)  # a cost that may be zero has no geometric range
    if smallest >= largest or n == 1:
        return [largest]
    steps = (smallest * (largest / smallest) ** (i / (n - 1)) for i in range(1, n - 1))
    return [smallest, *(min(step, largest) for step in steps), largest]


def random_within(problem: Problem, limits: Limits, rng: random.Random, tries: int = 4000) -> list[int] | None:
    """Draws a network of 90 % to 100 % of the first limit that is within all; None if the walk does not get there.

    One that the problem does not admit is skipped for another, a few times. Starts anywhere (branch uniform, then
    width) and redraws slots, keeping what comes no further from the limits.
    """
    walks = (_walk(problem, limits, rng, tries) for _ in range(1 + _SKIPPED))
    return next((indices for indices in walks if indices is None or problem.admitted(indices)), None)


def _walk(problem: Problem, limits: Limits, rng: random.Random, tries: int) -> list[int] | None:
    indices = [rng.choice(rng.choice(groups)) for groups in problem.branches]
    bounds = [(cost, limits[cost.name], 0.9 if cost is problem.costs[0] else 0.0)
              for cost in problem.costs if cost.name in limits]
    distance = _distance(indices, bounds)
    for _ in range(tries):
        if distance == 0:
            return indices
        slot = rng.randrange(len(indices))
        moved = indices.copy()
        moved[slot] = rng.choice(rng.choice(problem.branches[slot]))
        if (after := _distance(moved, bounds)) <= distance:
            indices, distance = moved, after
    return indices if problem.fits(indices, limits) else None


def _distance(indices: Sequence[int], bounds: Sequence[tuple[Cost, float, float]]) -> float:
    """Returns how far outside its bounds a network lies, relative to them; 0 means within all."""
    total = 0.0
    for cost, limit, share in bounds:
        value = cost.of(indices)
        total += max(0.0, value - limit, share * limit - value) / max(limit, 1e-12)
    return total


def _branches(ops: Sequence[Op], drawn: Collection[int]) -> tuple[tuple[int, ...], ...]:
    groups: dict[Op, list[tuple[int, int]]] = {}
    for i, op in enumerate(ops):
        if i not in drawn:
            continue
        hidden = op.get("hidden")
        groups.setdefault(op.without("hidden"), []).append((hidden if isinstance(hidden, int) else 0, i))
    return tuple(tuple(i for _, i in sorted(group)) for group in groups.values())


class Ledger:
    """Keeps every network judged so far and how many evaluations are left; it judges none twice."""

    def __init__(self, problem: Problem, judge: Judge, evaluations: int) -> None:
        self.problem, self.left = problem, evaluations
        self.losses: dict[tuple[int, ...], float] = {}
        self._judge = judge

    def __contains__(self, indices: Sequence[int]) -> bool:
        return tuple(indices) in self.losses

    def judge(self, candidates: Sequence[Sequence[int]]) -> int:
        """Judges the new candidates in order, as far as evaluations are left; returns how many. NaN counts as infinite.

        What the problem does not admit is left out.
        """
        new = [key for key in dict.fromkeys(map(tuple, candidates)) if key not in self.losses]
        new = list(itertools.islice((key for key in new if self.problem.admitted(key)), self.left))
        if new:
            losses = self._judge([self.problem.arch(key) for key in new])
            finite = (loss if math.isfinite(loss) else math.inf for loss in losses)
            self.losses.update(zip(new, finite, strict=True))
            self.left -= len(new)
        return len(new)

    def finite(self) -> tuple[list[Arch], list[float]]:
        """Returns the judged networks of finite loss and their losses, which a fit may use."""
        kept = {key: loss for key, loss in self.losses.items() if math.isfinite(loss)}
        return [self.problem.arch(key) for key in kept], list(kept.values())

    def ranked(self, limits: Limits) -> list[Arch]:
        """Returns all judged networks within the limits, whatever they were judged for: lowest loss first."""
        within = [key for key in self.losses if self.problem.fits(key, limits)]
        within.sort(key=lambda key: (self.losses[key], self.problem.costs[0].of(key), key))
        return [self.problem.arch(key) for key in within]
