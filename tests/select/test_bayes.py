from __future__ import annotations

import itertools
import logging
import random
from dataclasses import replace
from functools import partial

import numpy as np
import optuna
import pytest
from every import every
from truths import Additive, chosen_by, flat, smooth_truth

from nas.errors import UserError
from nas.select.bayes import Coding, rescale, select_bayes
from nas.select.problem import Cost, Limits, Problem
from nas.select.random_search import select_random

run = partial(chosen_by, select_bayes)


def test_few_evaluations_come_nearer_to_the_optimum_than_random_ones(problem: Problem, picks: list[list[int]]) -> None:
    limits: list[Limits] = [{"gpu": 2.0}]
    ours, control = (Additive(problem, smooth_truth(problem, 5)) for _ in range(2))
    losses = {arch.id: ours.loss(arch) for pick in picks if problem.fits(pick, limits[0])
              for arch in [problem.arch(pick)]}
    run(problem, ours, limits, 30, seed=0)
    select_random(problem, limits, lambda _: flat(problem), control, 30, random.Random(0))
    found = [min(losses[id] for id in judge.asked) for judge in (ours, control)]
    better = [sum(loss < best for loss in losses.values()) for best in found]
    assert len(ours.asked) == len(control.asked) == 30
    assert better[0] < better[1] / 4 and better[0] < len(losses) / 500


def test_is_deterministic_and_judges_only_what_fits_a_budget(problem: Problem) -> None:
    limits: list[Limits] = [{"gpu": budget, "macs": 502.5} for budget in (1.8, 2.4)]
    first, again, other = (Additive(problem, smooth_truth(problem, 5)) for _ in range(3))
    chosen = run(problem, first, limits, 12, seed=1)
    assert chosen == run(problem, again, limits, 12, seed=1)
    assert first.asked == again.asked
    run(problem, other, limits, 12, seed=2)
    assert first.asked != other.asked
    assert len(first.asked) == 12 and set(first.asked) == {id for ids in chosen for id in ids}


def test_the_space_is_judged_to_its_end_and_no_further(problem: Problem, picks: list[list[int]]) -> None:
    ms = sorted(map(problem.costs[0].of, picks))
    limits: list[Limits] = [{"gpu": ms[9]}]
    judge = Additive(problem, smooth_truth(problem, 5))
    [chosen] = run(problem, judge, limits, 500, seed=0)
    assert len(chosen) == len(judge.asked) == 10


def test_what_is_not_admitted_is_neither_judged_nor_returned(problem: Problem) -> None:
    some = replace(problem, admits=lambda arch: int(arch.id, 16) % 2 == 0)
    judge = Additive(some, smooth_truth(problem, 5))
    run(some, judge, [{"gpu": 2.0}], 9, seed=0)
    assert len(judge.asked) == 9 and every(int(id, 16) % 2 == 0 for id in judge.asked)


def test_infeasible_budgets_are_refused_first(problem: Problem) -> None:
    judge = Additive(problem, smooth_truth(problem, 5))
    with pytest.raises(UserError, match="smallest reachable"):
        run(problem, judge, [{"gpu": 2.0}, {"gpu": 0.01}], 20, seed=0)
    assert judge.asked == []


def test_a_space_of_one_network_and_a_judge_that_knows_nothing(problem: Problem) -> None:
    one = Problem(problem.layout, tuple(ops[:1] for ops in problem.allowed),
                  (Cost("gpu", "ms", 0.1, tuple(np.ones(1) for _ in problem.allowed)),))
    assert select_bayes(one, [{"gpu": 9.0}], lambda _: flat(one), lambda archs: [1.0] * len(archs), 5,
                        random.Random(0)) == [[one.arch([0] * 4)]]
    chosen = select_bayes(problem, [{"gpu": 2.0}], lambda _: flat(problem), lambda archs: [float("nan")] * len(archs),
                          9, random.Random(0))
    assert len(chosen[0]) == 9


def test_widths_survive_the_coding() -> None:
    for few, many in itertools.combinations_with_replacement(range(1, 30), 2):
        assert [rescale(rescale(i, few, many), many, few) for i in range(few)] == list(range(few))


def test_nearness_by_hand() -> None:
    coding = Coding((((0, 1, 2), (3,)),), (3,))
    assert coding.nearness([0])[0].tolist() == [1, 0.75, 0.5, 0]
    assert coding.nearness([1])[0].tolist() == [0.75, 1, 0.75, 0]
    assert coding.nearness([3])[0].tolist() == [0, 0, 0, 1]


@pytest.mark.filterwarnings("error")
def test_nothing_is_printed_logged_or_warned(problem: Problem, capfd: pytest.CaptureFixture[str]) -> None:
    optuna.logging.set_verbosity(logging.INFO)
    run(problem, Additive(problem, smooth_truth(problem, 5)), [{"gpu": 2.0}], 9, seed=0)
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == logging.INFO
