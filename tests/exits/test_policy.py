"""Thresholds, exit shares and latencies: by hand on a few images, and what holds for any recorded confidences."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
from every import every
from hypothesis import given
from hypothesis import strategies as st
from three_exits import three

from nas.errors import UserError
from nas.exits import policy
from nas.exits.policy import by_rule, by_search, calibrate, geometric, geometric_shares, leaving, outcome
from nas.exits.runtime import confidence, confidences
from nas.exits.thresholds import Point
from nas.plan import plan

INF = float("inf")
MS = np.array([1.0, 2.0, 4.0])
# ten images; the surest at the first exit are those that it has right
SURE = np.array([[.95, .9, .85, .8, .7, .6, .5, .4, .3, .2], [.6, .5, .9, .8, .95, .9, .85, .7, .4, .3], [1.0] * 10])
RIGHT = np.array([[1, 1, 1, 1, 0, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1, 1, 0]], bool)


def test_shares_of_the_geometric_rule() -> None:
    assert geometric_shares(0.5, 5) == pytest.approx([16 / 31, 8 / 31, 4 / 31, 2 / 31, 1 / 31])
    assert geometric_shares(0.5, 5) == pytest.approx([.516, .258, .129, .065, .032], abs=5e-4)
    assert geometric_shares(1.5, 5) == pytest.approx([.076, .114, .171, .256, .384], abs=6e-4)
    assert geometric_shares(1.0, 4) == pytest.approx([0.25] * 4)


def test_images_leave_at_the_first_exit_that_is_sure_enough() -> None:
    assert leaving(SURE, [0.8, 0.9, -INF]).tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2, 2]
    point = outcome(SURE, RIGHT, [0.8, 0.9, -INF], MS)
    assert point.shares == (0.4, 0.2, 0.4) and point.mean_ms == pytest.approx(0.4 * 1 + 0.2 * 2 + 0.4 * 4)
    assert (point.worst_ms, point.accuracy) == (4.0, 0.9)  # only the tenth is wrong
    assert outcome(SURE, RIGHT, [0.8, -INF, -INF], MS).worst_ms == 2.0


def test_the_geometric_rule_by_hand() -> None:
    # r = 0.5: q = 4/7, 2/7, 1/7 of ten: five leave first (0.7), then the second surest of the five left (0.85)
    assert geometric(SURE, 0.5).tolist() == [0.7, 0.85, -INF]
    # a tie at the threshold leaves together
    tied = np.where(SURE == 0.6, 0.7, SURE)
    assert leaving(tied, geometric(tied, 0.5)).tolist() == [0] * 6 + [1, 1, 2, 2]
    # r = 0.01: q_2 = 0.0099 of ten is nobody
    assert geometric(SURE, 0.01).tolist() == [0.3, INF, -INF]
    few = np.array([[0.5, 0.5, 0.5], [0.1, 0.2, 0.3], [1, 1, 1]])
    assert geometric(few, 1.0).tolist() == [0.5, INF, -INF]  # all are gone at the first: there is no first of the rest


def test_the_curve_takes_thresholds_from_one_split_and_figures_from_the_other() -> None:
    shifted = SURE - 0.1 * (np.arange(3) < 2)[:, None]
    points = policy.curve((SURE, RIGHT), (shifted, RIGHT), MS)
    assert len(points) == 39
    for p, point in zip(range(1, 40), points, strict=True):
        assert point == outcome(shifted, RIGHT, geometric(SURE, p / 20), MS)


def test_the_area_under_a_curve_by_hand() -> None:
    def at(ms: float, accuracy: float) -> Point:
        return Point(thresholds=(), shares=(), mean_ms=ms, worst_ms=ms, accuracy=accuracy)

    # 0.5 from 1 to 2 ms, 0.8 from 2 to 5 (the point at 3 is no better), nothing of the one beyond
    points = [at(3, 0.7), at(1, 0.5), at(2, 0.8), at(6, 1.0)]
    assert policy.area(points, 1, 5) == pytest.approx((0.5 * 1 + 0.8 * 3) / 4)
    assert policy.area([at(3, 0.6)], 1, 5) == pytest.approx(0.3) and policy.area([], 1, 5) == 0


def test_a_budget_by_hand() -> None:
    # the first four at exit 1, then 5, 6 and 7 (0.85 and above) at exit 2, three to the head: 0.4 + 0.6 + 1.2 = 2.2 ms
    best = by_search(SURE, RIGHT, MS, 2.2)
    assert best.accuracy == 0.9 and best.mean_ms == pytest.approx(2.2)
    assert leaving(SURE, best.thresholds).tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    everything = by_search(SURE, RIGHT, MS, 1.0)
    assert everything.shares == (1.0, 0.0, 0.0) and everything.worst_ms == 1.0
    assert by_rule(SURE, RIGHT, MS, 4.0).mean_ms == 4.0
    for find in (by_search, by_rule):
        with pytest.raises(UserError, match=r"budget 0.5 ms: leaving at the first exit takes 1 ms"):
            find(SURE, RIGHT, MS, 0.5)


def test_anytime() -> None:
    assert policy.anytime(MS, 3.0).tolist() == [INF, -INF, -INF]
    point = outcome(SURE, RIGHT, policy.anytime(MS, 3.0), MS)
    assert (point.mean_ms, point.worst_ms, point.accuracy) == (2.0, 2.0, 0.7)
    assert policy.anytime(MS, 4.0).tolist() == [INF, INF, -INF]
    with pytest.raises(UserError, match=r"deadline 0\.5 ms: the first exit takes 1 ms"):
        policy.anytime(MS, 0.5)


@st.composite
def recordings(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    exits, n = draw(st.integers(2, 4)), draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    sure = rng.random((exits, n)).round(draw(st.integers(1, 3)))  # with ties
    ms = np.cumsum(rng.uniform(0.1, 2, exits))
    return sure, rng.random((exits, n)) < 0.6, ms, float(draw(st.floats(ms[0], ms[-1] * 1.1)))


@given(recordings())
def test_no_budget_is_exceeded_and_searching_is_never_worse(recording: Any) -> None:
    sure, right, ms, budget = recording
    rule, best = by_rule(*recording), by_search(*recording)
    for point in (rule, best):
        assert point.mean_ms <= budget and point.mean_ms <= point.worst_ms
        assert point == outcome(sure, right, point.thresholds, ms)
        assert sum(point.shares) == pytest.approx(1) and point.thresholds[-1] == -INF
    assert best.accuracy >= rule.accuracy


@given(st.integers(0, 2**32), st.floats(0.0, 1.0))
def test_with_three_exits_and_few_images_the_search_finds_the_best_of_all(seed: int, share: float) -> None:
    """As every pair of thresholds tried says: up to 16 images each value of the one meets the best of the other."""
    rng = np.random.default_rng(seed)
    sure = rng.random((3, 12))
    right = rng.random((3, 12)) < np.array([0.5, 0.7, 0.9])[:, None]
    budget = float(MS[0] + share * (MS[-1] - MS[0]))
    pairs = itertools.product(*([*row, INF] for row in sure[:2]))
    points = [outcome(sure, right, [*pair, -INF], MS) for pair in pairs]
    best = max(point.accuracy for point in points if point.mean_ms <= budget)
    assert by_search(sure, right, MS, budget).accuracy >= best - 0.5 / 12


@given(st.integers(0, 2**32))
def test_more_budget_is_no_less_accurate(seed: int) -> None:
    """By the geometric rule the mean latency at least grows with the budget, to within an image."""
    rng = np.random.default_rng(seed)
    sure, right = rng.random((3, 40)), rng.random((3, 40)) < 0.5
    means = [by_rule(sure, right, MS, budget).mean_ms for budget in np.linspace(1, 4, 7)]
    assert means == sorted(means) and means[-1] == pytest.approx(4)
    assert every(budget - mean <= 0.35 for budget, mean in zip(np.linspace(1, 4, 7), means, strict=True))


def test_confidences_by_hand() -> None:
    logits = np.log([[[.7, .2, .1], [.3, .3, .4]], [[.6, .3, .1], [.4, .3, .3]], [[.5, .4, .1], [.8, .1, .1]]])
    assert confidences("max-softmax", logits)[0] == pytest.approx([0.7, 0.4])
    # at temperature 2 probabilities are square roots, normalised
    root = np.sqrt([.7, .2, .1])
    assert confidences("max-softmax", logits, np.array([2.0, 1, 1]))[0, 0] == pytest.approx(root[0] / root.sum())
    expected = 1 + (.7 * math.log(.7) + .2 * math.log(.2) + .1 * math.log(.1)) / math.log(3)
    assert confidences("entropy", logits)[0, 0] == pytest.approx(expected)
    assert confidences("entropy", np.zeros((1, 1, 4))) == pytest.approx(0)
    assert confidences("patience", logits).tolist() == [[0, 0], [1, 0], [2, 1]]  # classes 0 0 0 and 2 0 0
    assert confidence("max-softmax", np.array([[1e4, -1e4]]))[0] == 1.0
    with pytest.raises(ValueError, match="confidence 'margin'"):
        confidence("margin", logits[0])


def test_temperatures_undo_what_was_scaled() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), 20_000)
    labels = (rng.random((20_000, 1)) > p.cumsum(1)).sum(1)
    logits = np.stack([np.log(p), 3 * np.log(p), 0.5 * np.log(p)])
    assert policy.temperatures(logits, labels) == pytest.approx([1, 3, 0.5], rel=0.06)


@pytest.mark.parametrize("kind", ["max-softmax", "entropy", "patience"])
@pytest.mark.parametrize("rule", ["search", "geometric"])
def test_a_policy_is_json_and_keeps_its_budget(kind: str, rule: str) -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, 200)
    logits = rng.normal(size=(3, 200, 4)) + np.array([1, 2, 3])[:, None, None] * np.eye(4)[labels]
    found = calibrate(logits, labels, MS, 2.5, kind=kind, rule=rule, points=4)
    assert found.point.mean_ms <= 2.5 and found.n == 200 and len(found.points) == 4
    budgets = (1, 2, 3, 4)
    assert every(p.mean_ms <= budget + 1e-9 for p, budget in zip(found.points, budgets, strict=True))
    value = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert value["point"]["thresholds"][-1] == "-inf" and value["kind"] == kind
    assert np.allclose([float(t) for t in value["point"]["thresholds"]], found.point.thresholds)
    plain = calibrate(logits, labels, MS, 2.5, kind=kind, rule=rule, tempered=False, points=2)
    assert plain.temperatures == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(("options", "expected"), [({"kind": "margin"}, "confidence 'margin': known are max-softmax"),
                                                   ({"rule": "guess"}, "rule 'guess': known are search, geometric")])
def test_a_policy_that_is_not_known(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        calibrate(np.zeros((2, 3, 4)), np.zeros(3, int), MS[:2], 2.0, **options)


def test_prefixes_count_every_head_that_was_passed() -> None:
    keys = plan(*three())
    assert [i for i, key in enumerate(keys) if key.is_exit] == [2, 5] and len(keys) == 8
    ms = policy.prefix_ms(keys, lambda ks: [float(10**i) for i, _ in enumerate(ks)])
    assert ms.tolist() == [111, 111111, 11111111]
