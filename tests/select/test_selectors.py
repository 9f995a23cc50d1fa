"""What holds for every selector: a new one is held to it as soon as it has a name."""

from __future__ import annotations

import random
from typing import get_args

import pytest
from truths import Additive, chosen_by, flat, smooth_truth

from nas.config.search import Config
from nas.errors import UserError
from nas.select import SELECTORS
from nas.select.problem import Limits, Problem

BY_NAME = pytest.mark.parametrize("name", SELECTORS)
EVALUATIONS = 12


def test_a_search_can_ask_for_each_of_them() -> None:
    assert set(get_args(Config.model_fields["selector"].annotation)) == set(SELECTORS)


@BY_NAME
def test_what_it_chooses_is_ranked_within_the_budget_and_judged_no_more_often_than_allowed(
        problem: Problem, name: str) -> None:
    judge, limits = Additive(problem, smooth_truth(problem, 5)), [{"gpu": 1.8}, {"gpu": 2.4}]
    chosen = chosen_by(SELECTORS[name], problem, judge, limits, EVALUATIONS, seed=0)
    assert len(chosen) == len(limits) and all(chosen) and 0 < len(judge.asked) <= EVALUATIONS


@BY_NAME
def test_the_same_seed_chooses_the_same(problem: Problem, name: str) -> None:
    def asked() -> list[str]:
        judge = Additive(problem, smooth_truth(problem, 5))
        chosen_by(SELECTORS[name], problem, judge, [{"gpu": 2.0}], EVALUATIONS, seed=1)
        return judge.asked

    assert asked() == asked()


@BY_NAME
def test_a_budget_out_of_reach_is_refused_before_anything_is_judged(problem: Problem, name: str) -> None:
    judge, limits = Additive(problem, smooth_truth(problem, 5)), [{"gpu": 2.0}, {"gpu": 0.01}]
    bounds: list[Limits] = [dict(limit) for limit in limits]
    with pytest.raises(UserError, match="smallest reachable"):
        SELECTORS[name](problem, bounds, lambda _: flat(problem), judge, EVALUATIONS, random.Random(0))
    assert not judge.asked
