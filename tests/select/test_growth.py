"""Picks that grow: each keeps what that of the next smaller budget has."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from every import every
from truths import Additive, flat, smooth_truth

from nas.arch import Arch, Op
from nas.select.ilp import select_auto, select_ilp
from nas.select.problem import Problem, Selector, budgets, uses


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


def keeps(arch: Arch, base: Arch) -> bool:
    return every(op.contains(before) for op, before in zip(arch.ops, base.ops, strict=True))


def test_a_network_uses_a_budget_from_nine_tenths_of_it_on(problem: Problem) -> None:
    arch = problem.arch([0] * len(problem.allowed))
    cost = problem.cost(arch, "gpu")
    assert uses(problem, arch, {"gpu": cost / 0.9}) and not uses(problem, arch, {"gpu": 1.001 * cost / 0.9})
    assert uses(problem, arch, {"macs": 1e9, "gpu": cost}) and not uses(problem, arch, {})
