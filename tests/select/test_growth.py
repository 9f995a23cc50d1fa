"""Picks that grow: each keeps what that of the next smaller budget has."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from every import every
from truths import Additive, flat, smooth_truth

from nas.arch import Arch, Op
from nas.select import growth
from nas.select.ilp import select_auto, select_ilp
from nas.select.problem import Cost, Problem, Selector, budgets, uses


@pytest.mark.parametrize(("op", "other", "contains"), [
    ("ghost(cheap=3, hidden=72)", "ghost(cheap=3, hidden=48)", True),
    ("ghost(cheap=3, hidden=72)", "ghost(cheap=3, hidden=72)", True),
    ("ghost(cheap=3, hidden=72)", "skip", True),
    ("skip", "skip", True),
    ("ghost(cheap=3, hidden=48)", "ghost(cheap=3, hidden=72)", False),  # narrower
    ("ghost(cheap=5, hidden=72)", "ghost(cheap=3, hidden=48)", False),  # another branch
    ("mbconv(hidden=72)", "ghost(hidden=48)", False),
    ("skip", "ghost(cheap=3, hidden=48)", False),
])
def test_an_operator_contains_a_narrower_one_of_its_branch(op: str, other: str, contains: bool) -> None:
    assert Op.parse(op).contains(Op.parse(other)) is contains


def test_the_choices_that_keep_a_network_are_those_that_contain_its_operators(problem: Problem) -> None:
    base = [len(ops) // 2 for ops in problem.allowed]
    for ops, index, kept in zip(problem.allowed, base, problem.containing(base), strict=True):
        assert [ops[i] for i in kept] == [op for op in ops if op.contains(ops[index])]
        assert index in kept


@pytest.mark.parametrize("select", [select_ilp, select_auto])
@pytest.mark.parametrize("seed", range(3))
def test_each_pick_keeps_what_the_next_smaller_one_has(problem: Problem, picks: list[list[int]], select: Selector,
                                                       seed: int) -> None:
    """Where any network of the space does that, keeps its budget, and uses it."""
    growing, judge = replace(problem, grows=True), Additive(problem, smooth_truth(problem, seed))
    limits = [{"gpu": budget} for budget in budgets(problem, 5)]
    shuffled = random.Random(seed).sample(limits, len(limits))
    chosen = select(growing, shuffled, lambda _: flat(problem), judge, 60, random.Random(seed))
    assert len(judge.asked) <= 60
    base, kept = None, 0
    for bound, archs in sorted(zip(shuffled, chosen, strict=True), key=lambda pair: pair[0]["gpu"]):
        assert every(problem.fits(problem.indices(arch), bound) for arch in archs)
        pick = next((arch for arch in archs if uses(problem, arch, bound)), archs[0])
        if base is not None:
            could = [other for other in map(problem.arch, picks) if keeps(other, base) and uses(problem, other, bound)
                     and problem.fits(problem.indices(other), bound)]
            assert keeps(pick, base) or not could
            kept += keeps(pick, base)
        base = pick
    assert kept


@pytest.mark.parametrize(("costs", "expected"), [
    ([1.0, 1.05, 1.5, 3.9], [2]),  # none that keeps the base uses 4: the one of them that is clearly larger, alone
    ([1.0, 1.05, 3.7, 3.9], [0, 1, 2, 3]),  # those that keep it, in their order, then the other
    ([1.0, 1.05, 1.09, 3.9], [0, 1, 2, 3]),  # none is clearly larger
])
def test_a_larger_network_that_keeps_the_smaller_pick_goes_before_one_that_only_uses_the_budget(
        costs: list[float], expected: list[int]) -> None:
    """The networks have one slot: the base, two wider ones of its branch, and one of another, which ranks best."""
    ops = (*(Op.of("ghost", hidden=8 * width) for width in (1, 2, 3)), Op.of("mbconv", hidden=8))
    layout: Any = SimpleNamespace(space="s", task=SimpleNamespace(size=16), slots=[None])
    problem = Problem(layout, (ops,), (Cost("gpu", "ms", 0.0, (np.array(costs),)),))
    archs = [problem.arch([i]) for i in (3, 0, 1, 2)]
    ranked = growth._ranked(problem, archs, [0], {"gpu": 4.0})
    assert [problem.indices(arch) for arch in ranked] == [[i] for i in expected]


def keeps(arch: Arch, base: Arch) -> bool:
    return every(op.contains(before) for op, before in zip(arch.ops, base.ops, strict=True))


def test_a_network_uses_a_budget_from_nine_tenths_of_it_on(problem: Problem) -> None:
    arch = problem.arch([0] * len(problem.allowed))
    cost = problem.cost(arch, "gpu")
    assert uses(problem, arch, {"gpu": cost / 0.9}) and not uses(problem, arch, {"gpu": 1.001 * cost / 0.9})
    assert uses(problem, arch, {"macs": 1e9, "gpu": cost}) and not uses(problem, arch, {})
