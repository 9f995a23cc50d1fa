"""Several input sizes: which budgets each is asked for, and that one ILP a size finds the best of all networks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from truths import table

from nas.errors import UserError
from nas.pipeline.budgets import requests_by_size
from nas.plan import Layout, resized
from nas.select.ilp import solve
from nas.select.problem import Cost, Problem, Scores, budgets


@pytest.fixture
def sizes(problem: Problem, tiny: Layout) -> list[Problem]:
    """The tiny space at 16 pixels, and at 8, where each operator costs about half."""
    half = [Cost(cost.name, cost.unit, cost.fixed / 2, tuple(
        row * np.random.default_rng(slot).uniform(0.4, 0.6, len(row)) for slot, row in enumerate(cost.per_op)))
        for cost in problem.costs]
    return [problem, Problem(resized(tiny, 8), problem.allowed, tuple(half))]


def test_an_ilp_a_size_equals_all_networks_of_all_sizes(sizes: list[Problem], tiny: Layout,
                                                        picks: list[list[int]]) -> None:
    scores: list[Scores] = [tuple(row + 0.3 for row in table(tiny, 7)), table(tiny, 8)]  # larger is better
    grid = budgets(sizes[0], 6, (sizes[1].costs[0].smallest, sizes[0].costs[0].largest))
    limits = [{"gpu": budget} for budget in grid]
    found: dict[int, list[tuple[float, int, tuple[int, ...]]]] = {index: [] for index in range(len(grid))}
    for asking in requests_by_size(sizes, limits):
        at = sizes.index(asking.problem)
        for own, indices in zip(asking.limits, asking.budgets, strict=True):
            (pick,) = solve(scores[at], asking.problem.costs, own)
            total = sum(float(row[i]) for row, i in zip(scores[at], pick, strict=True))
            for index in indices:
                found[index].append((total, at, tuple(pick)))
    for index, budget in enumerate(grid):
        every = [(sum(float(row[i]) for row, i in zip(scores[at], pick, strict=True)), at, tuple(pick))
                 for at, one in enumerate(sizes) for pick in picks if one.costs[0].of(pick) <= budget]
        assert max(found[index])[1:] == max(every)[1:]
    assert {max(rows)[1] for rows in found.values()} == {0, 1}  # both sizes have the best for some budget


def test_a_size_is_asked_for_what_it_reaches_and_for_nothing_twice(sizes: list[Problem]) -> None:
    large, small = sizes
    most, least = small.largest("gpu"), large.smallest("gpu")
    assert small.smallest("gpu") < least < most < large.largest("gpu")
    below, above = (small.smallest("gpu") + least) / 2, (most + large.largest("gpu")) / 2
    of_large, of_small = requests_by_size(sizes, [{"gpu": below}, {"gpu": above}, {"gpu": large.largest("gpu")}])
    assert (of_large.limits, of_large.budgets) == ([{"gpu": above}, {"gpu": large.largest("gpu")}], [[1], [2]])
    assert (of_small.limits, of_small.budgets) == ([{"gpu": below}, {"gpu": most}], [[0], [1, 2]])
    (only,) = requests_by_size(sizes, [{"gpu": below}])
    assert only.problem is small
    with pytest.raises(UserError, match=r"budget_ms=0.01 is below the smallest reachable"):
        requests_by_size(sizes, [{"gpu": 0.01}])


def test_one_size_is_asked_as_it_always_was(problem: Problem) -> None:
    limits = [{"gpu": 1e-3}, {"gpu": 50.0}, {"gpu": 50.0}]  # also what it cannot reach: the selector refuses it
    (asking,) = requests_by_size([problem], limits)
    assert (asking.limits, asking.budgets) == (limits, [[0], [1], [2]])
    assert list(itertools.chain(*asking.budgets)) == [0, 1, 2]
