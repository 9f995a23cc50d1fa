"""Losses that are known: what the selectors' tests judge by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nas.arch import Arch
from nas.plan import Layout
from nas.select.problem import Problem, Scores


def table(layout: Layout, seed: int) -> Scores:
    generator = np.random.default_rng(seed)
    return tuple(generator.uniform(0.05, 1.0, len(slot.ops)) for slot in layout.slots)


class Additive:
    """A judge whose loss is an additive truth, and which fails if it is asked twice for the same network."""

    def __init__(self, problem: Problem, truth: Scores) -> None:
        self.problem, self.truth = problem, truth
        self.asked: list[str] = []

    def loss(self, arch: Arch) -> float:
        return float(sum(row[i] for row, i in zip(self.truth, self.problem.indices(arch), strict=True)))

    def __call__(self, archs: Sequence[Arch]) -> list[float]:
        assert archs
        self.asked += [arch.id for arch in archs]
        assert len(set(self.asked)) == len(self.asked), "judged twice"
        return [self.loss(arch) for arch in archs]


def smooth_truth(problem: Problem, seed: int) -> Scores:
    """Losses per op: each branch its own offset, falling with the width and flattening."""
    generator = np.random.default_rng(seed)
    truth = []
    for slot, ops in zip(problem.layout.slots, problem.allowed, strict=True):
        offsets = {branch.op: generator.uniform(0, 0.3) for branch in slot.branches}
        gain = generator.uniform(0.05, 0.3)
        truth.append(np.array([offsets[op.without("hidden")] - gain * np.log1p(int(op.get("hidden") or 0) / slot.in_ch)
                               for op in ops]))
    return tuple(truth)
