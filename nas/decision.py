"""What a supernet runs and what it costs, as one value that is passed to both.

A ``Decision`` lists, slot by slot, the branches that run, at which hidden width and with which weight. Soft ones come
from the gates, one-hot ones from an ``Arch``. ``Prices`` are the milliseconds of every operator of every slot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nas.arch import Arch, Op
from nas.plan import Layout, OpKey, Slot, candidates

Weight = Tensor | float


@dataclass(frozen=True)
class Choice:
    """A branch of a slot (its op without ``hidden``) at one hidden width (None where it has none), with its weight."""

    branch: Op
    hidden: int | None
    weight: Weight = 1.0


@dataclass(frozen=True)
class Decision:
    """The choices that run in each slot; a branch that is not listed is not computed."""

    slots: tuple[tuple[Choice, ...], ...]


@dataclass(frozen=True)
class Prices:
    """Milliseconds: ``fixed`` for stem and head together, ``ms[slot][op]`` for every operator of every slot."""

    fixed: float
    ms: tuple[dict[Op, float], ...]


def prices(layout: Layout, ms: Callable[[list[OpKey]], list[float]]) -> Prices:
    """Asks a cost model once for every candidate. ``skip`` costs nothing because it is nothing."""
    keys = candidates(layout)
    known: dict[OpKey | None, float] = dict(zip(keys, ms(keys), strict=True))
    known[None] = 0.0
    table = tuple({op: known[slot.key(op)] for op in slot.ops} for slot in layout.slots)
    return Prices(sum(known[key] for key in layout.fixed), table)


def efficient(layout: Layout, every: Sequence[Prices]) -> list[list[Op]]:
    """Operators per slot but for widths that nobody has a reason for: a wider one of the branch costs no more.

    What a device computes with full lanes (16 channels of AVX-512, 32 of a GPU's tile) so comes from its prices.
    ``every`` are those of all targets and input sizes: the wider one must cost no more by any of them.
    """
    return [[op for branch in slot.branches for i, op in enumerate(branch.ops)
             if not any(_no_dearer(wider, op, slot, every) for wider in branch.ops[i + 1:])] for slot in layout.slots]


def _no_dearer(wider: Op, op: Op, slot: Slot, every: Sequence[Prices]) -> bool:
    return all(prices.ms[slot.index][wider] <= prices.ms[slot.index][op] for prices in every)


def largest(layout: Layout, prices: Prices) -> Arch:
    """The network that costs most, each operator at its largest width."""
    return _picked(layout, lambda slot: max((b.ops[-1] for b in slot.branches), key=prices.ms[slot.index].__getitem__))


def smallest(layout: Layout, prices: Prices) -> Arch:
    """The network that costs least."""
    return _picked(layout, lambda slot: min(slot.ops, key=lambda op: prices.ms[slot.index][op]))


def _picked(layout: Layout, pick: Callable[[Slot], Op]) -> Arch:
    return Arch(layout.space, layout.task.size, tuple(pick(slot) for slot in layout.slots))


def one_hot(arch: Arch) -> Decision:
    """The decision that runs exactly this network."""
    return Decision(tuple((choice_of(op),) for op in arch.ops))


def choice_of(op: Op) -> Choice:
    """The choice that an operator stands for."""
    hidden = op.get("hidden")
    return Choice(op.without("hidden"), hidden if isinstance(hidden, int) else None)


def op_of(choice: Choice) -> Op:
    """The operator that a choice stands for."""
    return choice.branch if choice.hidden is None else choice.branch.with_knobs(hidden=choice.hidden)


def arch_of(layout: Layout, decision: Decision) -> Arch:
    """The network of the heaviest choice of every slot."""
    ops = [op_of(max(choices, key=lambda choice: as_float(choice.weight))) for choices in decision.slots]
    return Arch(layout.space, layout.task.size, tuple(ops))


def expected_ms(layout: Layout, decision: Decision, prices: Prices) -> Weight:
    """Sum over slots of weight times milliseconds, plus the fixed parts; differentiable in the weights.

    For ``one_hot(arch)`` it is the sum of the costs over ``plan(layout, arch)``.
    """
    total: Weight = prices.fixed
    for slot, choices in zip(layout.slots, decision.slots, strict=True):
        for choice in choices:
            total = total + choice.weight * prices.ms[slot.index][op_of(choice)]
    return total


def as_float(weight: Weight) -> float:
    return float(weight.detach()) if isinstance(weight, torch.Tensor) else float(weight)
