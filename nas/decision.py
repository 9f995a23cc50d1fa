"""What a supernet runs and what it costs, as one value that is passed to both.

A ``Decision`` lists, slot by slot, the branches that run, at which hidden width and with which weight. Soft ones come
from the gates, one-hot ones from an ``Arch``. ``Prices`` are the milliseconds of every choice, as plain arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nas.arch import Arch, Op
from nas.plan import Layout, OpKey, Slot

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
    """Milliseconds: ``fixed`` for stem and head; ``ms[slot][branch][width]`` for the choices."""

    fixed: float
    ms: tuple[tuple[np.ndarray, ...], ...]

    def of(self, slot: Slot, choice: Choice) -> float:
        """Milliseconds of one choice; raises LookupError if the slot does not have it."""
        for branch, ms in zip(slot.branches, self.ms[slot.index], strict=True):
            if branch.op == choice.branch:
                return float(ms[0 if choice.hidden is None else branch.widths.index(choice.hidden)])
        raise LookupError(f"slot {slot.index} does not admit {choice.branch}")


def prices(layout: Layout, ms: Callable[[list[OpKey]], list[float]]) -> Prices:
    """Asks a cost model once for every candidate. ``skip`` costs nothing because it is nothing."""
    keys = list(dict.fromkeys(key for slot in layout.slots for op in slot.ops if (key := slot.key(op)) is not None))
    known: dict[OpKey | None, float] = dict(zip(keys, ms(keys), strict=True))
    known[None] = 0.0
    table = tuple(tuple(np.array([known[slot.key(op)] for op in branch.ops]) for branch in slot.branches)
                  for slot in layout.slots)
    return Prices(float(sum(ms(list(layout.fixed)))), table)


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
            total = total + choice.weight * prices.of(slot, choice)
    return total


def as_float(weight: Weight) -> float:
    return float(weight.detach()) if isinstance(weight, torch.Tensor) else float(weight)
