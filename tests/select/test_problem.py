from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from every import every

from nas.arch import Arch, Op
from nas.select.problem import Cost, Ledger, Problem, budgets, random_within


def test_arch_and_indices_are_inverse(problem: Problem, picks: list[list[int]]) -> None:
    for pick in picks[::37]:
        assert problem.indices(problem.arch(pick)) == pick


def test_pruned_ops_have_no_index(problem: Problem) -> None:
    ops = tuple(slot_ops[1:] for slot_ops in problem.allowed)
    costs = tuple(replace(cost, per_op=tuple(row[1:] for row in cost.per_op)) for cost in problem.costs)
    pruned = Problem(problem.layout, ops, costs)
    assert pruned.indices(pruned.arch([0, 0, 0, 0])) == [0, 0, 0, 0]
    with pytest.raises(KeyError):
        pruned.indices(problem.arch([0, 0, 0, 0]))


def test_cost_is_the_sum_and_its_range_is_exact(problem: Problem, picks: list[list[int]]) -> None:
    for name in ("gpu", "macs"):
        sums = [problem.cost(problem.arch(pick), name) for pick in picks]
        assert (problem.smallest(name), problem.largest(name)) == (min(sums), max(sums))
    first = problem.costs[0]
    parts = [float(row[3]) for row in first.per_op]
    assert problem.cost(problem.arch([3] * 4), "gpu") == math.fsum([0.1, *parts])


def test_an_unknown_cost_is_refused(problem: Problem) -> None:
    with pytest.raises(AssertionError):
        Cost("gpu", "ms", 0.1, (np.array([0.1, math.nan]),))
    with pytest.raises(AssertionError):
        Problem(problem.layout, problem.allowed, (Cost("gpu", "ms", 0.1, problem.costs[0].per_op[:2]),))


def test_budgets_are_geometric_and_reachable(problem: Problem) -> None:
    six = budgets(problem)
    assert len(six) == 6 and six[0] == problem.smallest("gpu") and six[-1] == problem.largest("gpu")
    ratios = [b / a for a, b in itertools.pairwise(six)]
    assert ratios == pytest.approx([ratios[0]] * 5) and budgets(problem, 1) == [problem.largest("gpu")]


def test_budgets_where_nothing_can_be_chosen_or_the_smallest_is_free(problem: Problem) -> None:
    flat = Cost("gpu", "ms", 0.5, tuple(np.zeros(len(ops)) for ops in problem.allowed))
    assert budgets(Problem(problem.layout, problem.allowed, (flat,))) == [0.5]
    free = Cost("gpu", "ms", 0.0, tuple(np.arange(len(ops), dtype=float) for ops in problem.allowed))
    assert every(b > 0 for b in budgets(Problem(problem.layout, problem.allowed, (free,))))


def test_branches_group_the_widths(problem: Problem) -> None:
    for ops, groups in zip(problem.allowed, problem.branches, strict=True):
        assert sorted(i for group in groups for i in group) == list(range(len(ops)))
        for group in groups:
            assert len({ops[i].without("hidden") for i in group}) == 1
            hidden: list[Any] = [ops[i].get("hidden") for i in group]
            assert hidden == [None] or hidden == sorted(hidden)
    assert Op.of("skip") in {problem.allowed[0][group[0]] for group in problem.branches[0]}


def test_random_networks_lie_near_their_budget(problem: Problem) -> None:
    rng = random.Random(0)
    found = {tuple(random_within(problem, {"gpu": 2.0, "macs": 502.5}, rng) or ()) for _ in range(40)}
    assert len(found) > 20
    for pick in found:
        assert problem.fits(pick, {"gpu": 2.0, "macs": 502.5}) and problem.costs[0].of(pick) >= 1.8
    assert random_within(problem, {"gpu": 0.01}, rng, tries=50) is None


def test_the_ledger_judges_once_and_stops_in_time(problem: Problem) -> None:
    calls: list[int] = []

    def judge(archs: Sequence[Arch]) -> list[float]:
        calls.append(len(archs))
        return [math.nan] * len(archs)

    ledger = Ledger(problem, judge, 3)
    assert ledger.judge([[0] * 4, [0] * 4, [1] * 4]) == 2
    assert ledger.judge([[1] * 4]) == 0
    assert ledger.judge([[1] * 4, [2] * 4, [3] * 4]) == 1
    assert calls == [2, 1] and ledger.left == 0
    assert [1] * 4 in ledger and [3] * 4 not in ledger
    assert set(ledger.losses.values()) == {math.inf} and ledger.finite() == ([], [])


def test_ranked_is_within_the_limit_and_by_loss(problem: Problem, picks: list[list[int]]) -> None:
    losses = {problem.arch(pick).id: float(i % 7) for i, pick in enumerate(picks[:50])}

    def judge(archs: Sequence[Arch]) -> list[float]:
        return [losses[arch.id] for arch in archs]

    ledger = Ledger(problem, judge, 50)
    ledger.judge(picks[:50])
    limit = sorted(problem.costs[0].of(pick) for pick in picks[:50])[20]
    ranked: list[Arch] = ledger.ranked({"gpu": limit})
    assert len(ranked) == 21
    keys = [(losses[arch.id], problem.cost(arch, "gpu")) for arch in ranked]
    assert keys == sorted(keys)


def test_what_is_over_one_of_several_limits_does_not_fit(problem: Problem, picks: list[list[int]]) -> None:
    """For each limit there are networks that it alone keeps out."""
    limits = {cost.name: sorted(cost.of(pick) for pick in picks)[len(picks) // 2] for cost in problem.costs}
    ledger = Ledger(problem, lambda archs: [0.0] * len(archs), len(picks))
    ledger.judge(picks)
    ranked = {arch.id for arch in ledger.ranked(limits)}
    for cost in problem.costs:
        other = next(one for one in problem.costs if one is not cost)
        over = [pick for pick in picks if cost.of(pick) > limits[cost.name] and other.of(pick) <= limits[other.name]]
        assert over and not any(problem.fits(pick, limits) for pick in over)
        assert not ranked & {problem.arch(pick).id for pick in over}
    assert ranked == {problem.arch(pick).id for pick in picks
                      if all(cost.of(pick) <= limits[cost.name] for cost in problem.costs)}
