"""Counts, samples, mutates, crosses and encodes the networks of a layout, for the selectors. There is no torch here."""

from __future__ import annotations

import math
import random

from nas.arch import SKIP, Arch, Op
from nas.plan import Layout, Slot


def count(layout: Layout) -> int:
    """Counts the networks of a layout (an exact integer)."""
    return math.prod(len(slot.ops) for slot in layout.slots)


def sample_op(slot: Slot, rng: random.Random) -> Op:
    """Draws a branch uniformly, then one of its widths, so that branches of many widths do not crowd out ``skip``."""
    return rng.choice(rng.choice(slot.branches).ops)


def sample(layout: Layout, rng: random.Random) -> Arch:
    return _arch(layout, [sample_op(slot, rng) for slot in layout.slots])


def sample_thinned(layout: Layout, rng: random.Random) -> Arch:
    """Draws a network of random depth: slots are skipped, where they may be, with a probability that is drawn first."""
    skipped = rng.random()
    return _arch(layout, [SKIP if SKIP in slot.ops and rng.random() < skipped else sample_op(slot, rng)
                          for slot in layout.slots])


def mutate(layout: Layout, arch: Arch, rng: random.Random, probability: float = 0.1) -> Arch:
    """Returns a copy of a network in which each slot is drawn anew with ``probability``."""
    ops = [sample_op(slot, rng) if rng.random() < probability else op
           for slot, op in zip(layout.slots, arch.ops, strict=True)]
    return _arch(layout, ops)


def cross_over(layout: Layout, first: Arch, second: Arch, rng: random.Random) -> Arch:
    """Returns a network that takes each slot from either parent at random."""
    return _arch(layout, [rng.choice(pair) for pair in zip(first.ops, second.ops, strict=True)])


def encode(layout: Layout, arch: Arch) -> list[int]:
    """Returns the index of each slot's operator in ``slot.ops``; for solvers only, never stored."""
    return [slot.ops.index(op) for slot, op in zip(layout.slots, arch.ops, strict=True)]


def decode(layout: Layout, indices: list[int]) -> Arch:
    return _arch(layout, [slot.ops[i] for slot, i in zip(layout.slots, indices, strict=True)])


def smallest(layout: Layout) -> Arch:
    """Returns the network with ``skip`` in every slot that admits it, else the first branch at its smallest width."""
    return _arch(layout, [SKIP if SKIP in slot.ops else slot.branches[0].ops[0] for slot in layout.slots])


def _arch(layout: Layout, ops: list[Op]) -> Arch:
    return Arch(layout.space, layout.task.size, tuple(ops))
