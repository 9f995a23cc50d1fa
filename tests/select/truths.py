"""Losses that are known: what the selectors' tests judge by."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from every import every

from nas.arch import Arch
from nas.plan import Layout
from nas.select.problem import Limits, Problem, Scores, Selector


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


def flat(problem: Problem) -> Scores:
    """Scores that say nothing."""
    return tuple(np.zeros(len(ops)) for ops in problem.allowed)


def chosen_by(select: Selector, problem: Problem, judge: Additive, limits: list[Limits], evaluations: int,
              seed: int) -> list[list[str]]:
    """Ids of what a selector chooses without scores, checked: best first, and within the limits."""
    chosen = select(problem, limits, lambda _: flat(problem), judge, evaluations, random.Random(seed))
    for bound, archs in zip(limits, chosen, strict=True):
        losses = [judge.loss(arch) for arch in archs]
        assert losses == sorted(losses)
        assert every(problem.fits(problem.indices(arch), bound) for arch in archs)
    return [[arch.id for arch in archs] for archs in chosen]
