from __future__ import annotations

import random

import numpy as np
import pytest
from every import every
from truths import smooth_truth

from nas.plan import Task, layout
from nas.select.problem import Cost, Problem
from nas.select.scores import rank_agreement, ridge, totals
from nas.space import Space


def sampled(problem: Problem, n: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.choice(rng.choice(groups)) for groups in problem.branches] for _ in range(n)]


@pytest.mark.parametrize("seed", range(3))
def test_recovers_an_additive_truth_from_60_noisy_samples(problem: Problem, seed: int) -> None:
    truth = smooth_truth(problem, seed)
    train, held_out = sampled(problem, 60, 10 + seed), sampled(problem, 200, 20 + seed)
    losses = 2 + totals(truth, train)
    losses += np.random.default_rng(seed).normal(0, 0.1 * losses.std(), len(losses))
    scores = ridge(problem, [problem.arch(pick) for pick in train], losses.tolist())
    others = [problem.arch(pick) for pick in held_out]
    assert rank_agreement(scores, problem, others, totals(truth, held_out).tolist()) > 0.8


def test_scores_are_in_units_of_the_loss(problem: Problem) -> None:
    truth = smooth_truth(problem, 1)
    picks = sampled(problem, 80, 4)
    scores = ridge(problem, [problem.arch(p) for p in picks], totals(truth, picks).tolist(), alpha=1e-6)
    predicted, true = -totals(scores, picks), totals(truth, picks)
    assert np.polyfit(predicted, true, 1)[0] == pytest.approx(1, abs=0.05)


def test_a_right_prior_helps_and_a_reversed_one_does_not_hurt(problem: Problem) -> None:
    truth = smooth_truth(problem, 2)
    train, held_out = sampled(problem, 8, 5), sampled(problem, 200, 6)
    archs, losses = [problem.arch(p) for p in train], totals(truth, train).tolist()
    others, other_losses = [problem.arch(p) for p in held_out], totals(truth, held_out).tolist()

    def agreement(sign: float) -> float:
        prior = tuple(-7 * sign * row for row in truth) if sign else None
        return rank_agreement(ridge(problem, archs, losses, prior=prior), problem, others, other_losses)

    assert agreement(1) > 0.95 > agreement(0)
    assert agreement(-1) == pytest.approx(agreement(0))


def test_too_few_networks_give_the_prior(problem: Problem) -> None:
    prior = tuple(-row for row in problem.costs[0].per_op)
    archs = [problem.arch([0] * 4)]
    assert every(np.array_equal(a, b) for a, b in zip(ridge(problem, archs, [1.0], prior=prior), prior, strict=True))
    assert every((row == 0).all() for row in ridge(problem, archs, [1.0]))


def test_equal_networks_and_equal_losses_are_no_evidence(problem: Problem) -> None:
    archs = [problem.arch([0] * 4)] * 6
    assert every((row == 0).all() for row in ridge(problem, archs, [1.0, 1.1, 1.2, 1.0, 1.1, 1.2]))
    others = [problem.arch(p) for p in sampled(problem, 10, 1)]
    flat = ridge(problem, others, [1.5] * 10)
    assert every(np.allclose(row, 0) for row in flat)
    assert rank_agreement(flat, problem, others, [1.5] * 10) == 0


def test_twenty_networks_of_a_large_space_already_rank() -> None:
    """GhostNet's space, 16 slots of hundreds of choices: knobs shared over the slots carry the fit."""
    large = layout(Space.load("ghost"), Task(32, 3, 10))
    allowed = tuple(slot.ops for slot in large.slots)
    problem = Problem(large, allowed, (Cost("gpu", "ms", 0.1, tuple(np.ones(len(ops)) for ops in allowed)),))
    truth = tuple(np.array([-0.1 * np.log1p(int(op.get("hidden") or 0) / slot.in_ch) for op in ops])
                  for slot, ops in zip(large.slots, allowed, strict=True))
    train, held_out = sampled(problem, 20, 1), sampled(problem, 100, 2)
    scores = ridge(problem, [problem.arch(p) for p in train], totals(truth, train).tolist())
    assert rank_agreement(scores, problem, [problem.arch(p) for p in held_out], totals(truth, held_out).tolist()) > 0.6
