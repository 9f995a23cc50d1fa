from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from every import every
from truths import Additive, smooth_truth

from nas.arch import Arch
from nas.select import score_models
from nas.select.ilp import select_auto
from nas.select.problem import Limits, Problem, budgets
from nas.select.scores import totals


def sampled(problem: Problem, n: int) -> list[list[int]]:
    rng = random.Random(3)
    return [[rng.choice(rng.choice(groups)) for groups in problem.branches] for _ in range(n)]


def test_the_scores_that_rank_unseen_networks_best_are_chosen(problem: Problem) -> None:
    truth = smooth_truth(problem, 2)
    picks = sampled(problem, 40)
    archs, losses = [problem.arch(pick) for pick in picks], totals(truth, picks).tolist()
    right, wrong = tuple(-row for row in truth), truth
    fits = score_models.candidates(problem, {"right": right, "wrong": wrong})
    found = score_models.agreements(problem, fits, archs, losses)
    assert set(found) == {"fit", "right", "fit on right", "wrong", "fit on wrong"}
    assert found["right"] == pytest.approx(1, abs=1e-3) and found["wrong"] < -0.8
    assert 0.5 < found["fit"] < 1 and found["fit on wrong"] == pytest.approx(found["fit"])
    assert score_models.best(problem, {"fit": fits["fit"], "wrong": fits["wrong"]}, archs, losses, "wrong") == "fit"
    assert score_models.best(problem, fits, archs[:9], losses[:9], "wrong") == "wrong"
    reversed_ = score_models.agreements(problem, fits, archs, losses, losses)
    assert reversed_["right"] == pytest.approx(-found["right"])


def test_a_network_is_scored_without_itself(problem: Problem) -> None:
    archs = [problem.arch(pick) for pick in sampled(problem, 10)]
    seen: list[list[str]] = []

    def fit(known: Sequence[Arch], losses: object) -> tuple[np.ndarray, ...]:
        seen.append([arch.id for arch in known])
        return tuple(np.zeros(len(ops)) for ops in problem.allowed)

    score_models.held_out(problem, fit, archs, [1.0] * 10)
    assert [[archs[i].id not in known for i in range(10)] for known in seen] == [
        [i % score_models.FOLDS == fold for i in range(10)] for fold in range(score_models.FOLDS)]


def test_swaps_by_hand(problem: Problem) -> None:
    truth = smooth_truth(problem, 1)
    base = [0] * len(problem.allowed)
    around = score_models.swaps(problem, base)
    assert every(sum(a != b for a, b in zip(base, pick, strict=True)) == 1 for pick in around)
    losses = {tuple(pick): float(totals(truth, [pick])[0]) for pick in [base, *around]}
    scores = score_models.swap_scores(problem, base, losses)
    for slot, groups in enumerate(problem.branches):
        for group in groups:
            for index in (group[0], group[-1]):
                assert scores[slot][index] == pytest.approx(truth[slot][0] - truth[slot][index])
            inner = scores[slot][list(group)]
            assert (np.diff(inner) >= -1e-12).all()  # between its ends, as the truth is monotone in the width
    few = score_models.swap_scores(problem, base, {tuple(base): losses[tuple(base)]})
    assert every(np.isfinite(row).all() for row in few)


@pytest.mark.parametrize("evaluations", [30, 120])
def test_auto_selects_within_its_budgets_and_evaluations(problem: Problem, picks: list[list[int]],
                                                         evaluations: int) -> None:
    limits: list[Limits] = [{"gpu": budget} for budget in budgets(problem, 4)[1:]]
    judge = Additive(problem, smooth_truth(problem, 5))
    zeros = tuple(np.zeros(len(ops)) for ops in problem.allowed)
    chosen = select_auto(problem, limits, lambda _: zeros, judge, evaluations, random.Random(0))
    assert len(judge.asked) == evaluations
    for bound, archs in zip(limits, chosen, strict=True):
        assert every(problem.fits(problem.indices(arch), bound) for arch in archs)
        best = min(float(totals(judge.truth, [pick])[0]) for pick in picks if problem.fits(pick, bound))
        assert judge.loss(archs[0]) <= best + (0.1 if evaluations == 30 else 0.02)


def test_a_judge_that_knows_nothing_still_gives_networks(problem: Problem) -> None:
    zeros = tuple(np.zeros(len(ops)) for ops in problem.allowed)
    chosen = select_auto(problem, [{"gpu": 2.0}], lambda _: zeros, lambda archs: [math.nan] * len(archs), 100,
                         random.Random(0))
    assert 50 < len(chosen[0]) <= 100  # one-swap neighbours need not be within the budget
