from __future__ import annotations

import itertools
import logging
import random

import numpy as np
import optuna
import pytest
from truths import Additive, smooth_truth

from nas.errors import UserError
from nas.select import SELECTORS, get
from nas.select.evolution import _rescale, select_evolution
from nas.select.problem import Limits, Problem, Scores, budgets


def flat(problem: Problem) -> Scores:
    return tuple(np.zeros(len(ops)) for ops in problem.allowed)


def run(problem: Problem, judge: Additive, limits: list[Limits], evaluations: int, seed: int) -> list[list[str]]:
    chosen = select_evolution(problem, limits, lambda _: flat(problem), judge, evaluations, random.Random(seed))
    for bound, archs in zip(limits, chosen, strict=True):
        losses = [judge.loss(arch) for arch in archs]
        assert losses == sorted(losses)
        assert all(problem.fits(problem.indices(arch), bound) for arch in archs)
    return [[arch.id for arch in archs] for archs in chosen]


def test_reaches_the_optimum_of_an_additive_loss(problem: Problem, picks: list[list[int]]) -> None:
    judge = Additive(problem, smooth_truth(problem, 5))
    limits: list[Limits] = [{"gpu": 2.0}]
    chosen = run(problem, judge, limits, 300, seed=0)
    assert len(judge.asked) == 300 < len(picks) / 40
    within = [problem.arch(pick) for pick in picks if problem.fits(pick, limits[0])]
    assert chosen[0][0] == min(within, key=judge.loss).id


def test_is_deterministic_and_judges_only_what_fits_a_budget(problem: Problem) -> None:
    limits: list[Limits] = [{"gpu": budget, "macs": 502.5} for budget in budgets(problem, 4)]
    first, again, other = (Additive(problem, smooth_truth(problem, 5)) for _ in range(3))
    chosen = run(problem, first, limits, 70, seed=1)
    assert chosen == run(problem, again, limits, 70, seed=1)
    assert first.asked == again.asked
    run(problem, other, limits, 70, seed=2)
    assert first.asked != other.asked
    assert len(first.asked) == 70 and set(first.asked) == {id for ids in chosen for id in ids}


def test_ends_where_the_space_does(problem: Problem, picks: list[list[int]]) -> None:
    limits: list[Limits] = [{"gpu": problem.smallest("gpu") * 1.2}]
    judge = Additive(problem, smooth_truth(problem, 5))
    run(problem, judge, limits, 500, seed=0)
    assert 0 < len(judge.asked) <= sum(problem.fits(pick, limits[0]) for pick in picks) < 500


def test_infeasible_budgets_are_refused_first(problem: Problem) -> None:
    judge = Additive(problem, smooth_truth(problem, 5))
    with pytest.raises(UserError, match="smallest reachable"):
        run(problem, judge, [{"gpu": 2.0}, {"gpu": 0.01}], 20, seed=0)
    assert judge.asked == []


def test_widths_survive_the_coding() -> None:
    for few, many in itertools.combinations_with_replacement(range(1, 30), 2):
        assert [_rescale(_rescale(i, few, many), many, few) for i in range(few)] == list(range(few))


@pytest.mark.filterwarnings("error")
def test_nothing_is_printed_logged_or_warned(problem: Problem, capfd: pytest.CaptureFixture[str]) -> None:
    optuna.logging.set_verbosity(logging.INFO)
    run(problem, Additive(problem, smooth_truth(problem, 5)), [{"gpu": 2.0}], 30, seed=0)
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == logging.INFO


def test_selectors_by_name() -> None:
    assert {name: get(name) for name in SELECTORS} == SELECTORS
    with pytest.raises(UserError, match="--selector evolutoin: no such selector; did you mean 'evolution'"):
        get("evolutoin")
