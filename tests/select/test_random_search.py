from __future__ import annotations

import random

import numpy as np
import pytest
from every import every
from truths import Additive, smooth_truth

from nas.errors import UserError
from nas.select.problem import Limits, Problem, budgets
from nas.select.random_search import select_random


def unasked(limits: Limits) -> tuple[np.ndarray, ...]:
    raise AssertionError("a control needs no scores")


def test_as_many_at_every_budget_and_the_lowest_loss_first(problem: Problem) -> None:
    limits: list[Limits] = [{"gpu": budget} for budget in budgets(problem, 4)[1:]]
    judge = Additive(problem, smooth_truth(problem, 5))
    ranked = select_random(problem, limits, unasked, judge, 60, random.Random(0))
    assert len(judge.asked) == 60
    for bound, archs in zip(limits, ranked, strict=True):
        losses = [judge.loss(arch) for arch in archs]
        near = [arch for arch in archs if problem.cost(arch, "gpu") >= 0.9 * bound["gpu"]]
        assert losses == sorted(losses)
        assert len(near) >= 15  # of 20: some are drawn twice
        assert every(problem.cost(arch, "gpu") <= bound["gpu"] for arch in archs)


def test_the_same_seed_draws_the_same(problem: Problem) -> None:
    def drawn(seed: int) -> list[str]:
        judge = Additive(problem, smooth_truth(problem, 5))
        select_random(problem, [{"gpu": 2.0}], unasked, judge, 20, random.Random(seed))
        return judge.asked

    assert drawn(1) == drawn(1) != drawn(2)


def test_it_ends_where_hardly_any_network_is_left(problem: Problem, picks: list[list[int]]) -> None:
    bound = problem.smallest("gpu") * 1.2
    judge = Additive(problem, smooth_truth(problem, 5))
    ranked = select_random(problem, [{"gpu": bound}], unasked, judge, 500, random.Random(0))
    assert ranked[0] and len(judge.asked) <= sum(problem.fits(pick, {"gpu": bound}) for pick in picks) < 500


def test_a_budget_out_of_reach_is_refused_first(problem: Problem) -> None:
    judge = Additive(problem, smooth_truth(problem, 5))
    with pytest.raises(UserError, match="smallest reachable"):
        select_random(problem, [{"gpu": 2.0}, {"gpu": 0.01}], unasked, judge, 20, random.Random(0))
    assert judge.asked == []
