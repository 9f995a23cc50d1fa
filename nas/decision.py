"""Says what a supernet is to run, as a value from which both its output and its cost are computed.

A ``Decision`` lists, slot by slot, the branches that run, at which hidden width and with which weight. Gates make
decisions of several weighted branches, an ``Arch`` one of a single branch a slot. ``Prices`` are the milliseconds of
every operator of every slot.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nas.arch import SKIP, Arch, Op
from nas.plan import Layout, OpKey, Slot, candidates

Weight = Tensor | float


@dataclass(frozen=True)
class Choice:
    """Names a branch of a slot (its op without ``hidden``), its hidden width (None where it has none), its weight."""

    branch: Op
    hidden: int | None
    weight: Weight = 1.0


@dataclass(frozen=True)
class Decision:
    """Lists the choices that run in each slot; a branch that is not listed is not computed."""

    slots: tuple[tuple[Choice, ...], ...]


@dataclass(frozen=True)
class Prices:
    """Holds milliseconds: ``fixed`` for stem and head together, ``ms[slot][op]`` for every operator of every slot."""

    fixed: float
    ms: tuple[dict[Op, float], ...]


def prices(layout: Layout, ms: Callable[[list[OpKey]], list[float]]) -> Prices:
    """Looks up the milliseconds of every operator of a layout, in one call of ``ms``; ``skip`` costs nothing."""
    keys = candidates(layout)
    known: dict[OpKey | None, float] = dict(zip(keys, ms(keys), strict=True))
    known[None] = 0.0
    table = tuple({op: known[slot.key(op)] for op in slot.ops} for slot in layout.slots)
    return Prices(sum(known[key] for key in layout.fixed), table)


def efficient(layout: Layout, every: Sequence[Prices]) -> list[list[Op]]:
    """Lists the operators of each slot without the widths for which a wider one of the same branch costs no more.

    So the widths that fill a device's lanes (16 channels of AVX-512, 32 of a GPU's tile) follow from its prices.
    ``every`` are those of all targets and input sizes: the wider one must cost no more by any of them.
    """
    return [[op for branch in slot.branches for i, op in enumerate(branch.ops)
             if not any(_no_dearer(wider, op, slot, every) for wider in branch.ops[i + 1:])] for slot in layout.slots]


def affordable(layout: Layout, prices: Prices, most_ms: float) -> list[list[Op]]:
    """Lists the operators of each slot up to an equal share of the widths of every branch: the smallest such share at
    which the dearest network costs ``most_ms`` or more.

    A network within a smaller budget can hardly use the others, and the dearest one, from which all learn, trains
    faster without them.
    """
    most = max((len(branch.ops) for slot in layout.slots for branch in slot.branches), default=1)
    for part in range(1, most + 1):
        keep = [[op for branch in slot.branches for op in branch.ops[:-(-len(branch.ops) * part // most)]]
                for slot in layout.slots]
        dearest = math.fsum([prices.fixed, *(max(prices.ms[slot.index][op] for op in ops)
                                             for slot, ops in zip(layout.slots, keep, strict=True))])
        if dearest >= most_ms:
            break
    return keep


def common_branches(layout: Layout) -> list[Op]:
    """Lists the branches, without ``skip``, of the slot that has most of them."""
    each = [[branch.op for branch in slot.branches if branch.op != SKIP] for slot in layout.slots]
    return max(each, key=len, default=[])


def of_branches(layout: Layout, branches: Sequence[Op]) -> list[list[Op]]:
    """Lists the operators of each slot that are of one of the ``branches``, and ``skip``.

    Where a slot has no such branch, it is the one of the same name with most knobs alike; where it has none of the name
    of any, all of its operators are listed.
    """
    def nearest(slot: Slot, wanted: Op) -> list[Op]:
        named = [branch.op for branch in slot.branches if branch.op.name == wanted.name]
        return [max(named, key=lambda op: len(set(op.knobs) & set(wanted.knobs)))] if named else []

    def kept(slot: Slot) -> list[Op]:
        chosen = [op for wanted in branches for op in nearest(slot, wanted)]
        return [op for branch in slot.branches if not chosen or branch.op in (*chosen, SKIP) for op in branch.ops]

    return [kept(slot) for slot in layout.slots]


def _no_dearer(wider: Op, op: Op, slot: Slot, every: Sequence[Prices]) -> bool:
    return all(prices.ms[slot.index][wider] <= prices.ms[slot.index][op] for prices in every)


def largest(layout: Layout, prices: Prices) -> Arch:
    """Returns the network that costs most, each operator at its largest width."""
    return _picked(layout, lambda slot: max((b.ops[-1] for b in slot.branches), key=prices.ms[slot.index].__getitem__))


def grown(layout: Layout, prices: Prices, steps: int) -> list[Arch]:
    """Returns networks that grow to the largest one in so many steps: each has part of the next one's widths and slots.

    The first of four has a quarter of the widths and no slot that may be skipped. All others of these come in an order
    that is drawn once, so that no stage waits for another.
    """
    optional = [slot.index for slot in layout.slots if SKIP in slot.ops]
    order = random.Random(0).sample(optional, len(optional))

    def op_at(slot: Slot, step: int) -> Op:
        left_out = order[round(len(order) * (step - 1) / max(1, steps - 1)):] if step < steps else []
        branch = max(slot.branches, key=lambda b: prices.ms[slot.index][b.ops[-1]])
        return SKIP if slot.index in left_out else branch.ops[-(-len(branch.ops) * step // steps) - 1]

    return [Arch(layout.space, layout.task.size, tuple(op_at(slot, step) for slot in layout.slots))
            for step in range(1, steps + 1)]


def smallest(layout: Layout, prices: Prices) -> Arch:
    """Returns the network that costs least."""
    return _picked(layout, lambda slot: min(slot.ops, key=lambda op: prices.ms[slot.index][op]))


def _picked(layout: Layout, pick: Callable[[Slot], Op]) -> Arch:
    return Arch(layout.space, layout.task.size, tuple(pick(slot) for slot in layout.slots))


def one_hot(arch: Arch) -> Decision:
    """Returns the decision that runs exactly this network."""
    return Decision(tuple((choice_of(op),) for op in arch.ops))


def choice_of(op: Op) -> Choice:
    """Splits an operator into its branch and its hidden width."""
    hidden = op.get("hidden")
    return Choice(op.without("hidden"), hidden if isinstance(hidden, int) else None)


def op_of(choice: Choice) -> Op:
    """Joins the branch and the hidden width of a choice to an operator."""
    return choice.branch if choice.hidden is None else choice.branch.with_knobs(hidden=choice.hidden)


def arch_of(layout: Layout, decision: Decision) -> Arch:
    """Returns the network with the choice of the largest weight in every slot."""
    ops = [op_of(max(choices, key=lambda choice: as_float(choice.weight))) for choices in decision.slots]
    return Arch(layout.space, layout.task.size, tuple(ops))


def expected_ms(layout: Layout, decision: Decision, prices: Prices) -> Weight:
    """Sums weight times milliseconds over all choices, plus stem and head; differentiable in the weights.

    For ``one_hot(arch)`` it is the sum of the costs over ``plan(layout, arch)``.
    """
    total: Weight = prices.fixed
    for slot, choices in zip(layout.slots, decision.slots, strict=True):
        for choice in choices:
            total = total + choice.weight * prices.ms[slot.index][op_of(choice)]
    return total


def as_float(weight: Weight) -> float:
    return float(weight.detach()) if isinstance(weight, torch.Tensor) else float(weight)
