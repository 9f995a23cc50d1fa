"""Which exits are kept: prefix costs by hand, every subset tried, and no limit exceeded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from three_exits import three

from nas.errors import UserError
from nas.exits import policy
from nas.exits.choice import ExitLogits, Pieces, cheapest, choose, cross_validated, pieces, subsets
from nas.exits.net import Additive, Combine
from nas.exits.ztw import Cascade
from nas.plan import OpKey, plan

PIECES = Pieces(np.array([1.0, 2.0, 4.0]), np.array([0.1, 0.2, 0.4]))


def said(seed: int = 0, n: int = 200, combine: Combine | None = None,
         noise: tuple[float, ...] = (4, 2, 1)) -> ExitLogits:
    """Three exits, each deeper one right more often."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    logits = np.stack([3 * np.eye(4)[labels] + level * rng.normal(0, 1, (n, 4)) for level in noise])
    return ExitLogits(logits.astype(np.float32), labels, combine or Combine())


def test_prefix_costs_by_hand() -> None:
    assert PIECES.plain_ms == pytest.approx(7.4)
    assert PIECES.prefix_ms((0, 1)) == pytest.approx([1.1, 3.3, 7.7])
    assert PIECES.prefix_ms((0,)) == pytest.approx([1.1, 7.5]) and PIECES.prefix_ms((1,)) == pytest.approx([3.2, 7.6])


def test_pieces_of_a_plan_are_the_prefixes_of_every_subset() -> None:
    at, arch = three()
    price = {key: 1.0 + i for i, key in enumerate(plan(at, arch))}

    def ms(keys: Iterable[OpKey]) -> list[float]:
        return [price[key] for key in keys]

    own, dearer = pieces(plan(at, arch), ms), pieces(plan(at, arch), ms, asked_ms=0.25)
    for kept in subsets(2):
        fewer = plan(at, replace(arch, exits=tuple(arch.exits[index] for index in kept)))
        assert own.prefix_ms(kept) == pytest.approx(policy.prefix_ms(fewer, ms))
        more = 0.25 * np.array([*range(1, len(kept) + 1), len(kept)])  # for each exit asked; the head is not
        assert dearer.prefix_ms(kept) == pytest.approx(own.prefix_ms(kept) + more)
    assert list(subsets(2)) == [(0,), (1,), (0, 1)]


def test_predictions_of_a_subset_are_those_of_its_own_combination() -> None:
    one = said(combine=Additive(0.5))
    f = one.logits
    found = one.predictions((1,))
    assert found is not None and np.allclose(found, [f[1], f[2] + 0.5 * f[1]])
    both = one.predictions((0, 1))
    assert both is not None and np.allclose(both[2], f[2] + 0.5 * (f[1] + 0.5 * f[0]))
    chain = said(combine=Cascade(3, 4).eval())
    assert chain.predictions((1,)) is None  # its second exit has weights for what the first says
    first = chain.predictions((0,))
    full = chain.predictions((0, 1))
    assert first is not None and full is not None and np.allclose(first[0], full[0]) and np.allclose(first[1], f[2])


@pytest.mark.parametrize("seed", range(3))
def test_a_budget_and_a_limit_are_kept_and_no_subset_is_better(seed: int) -> None:
    one = said(seed)
    kept, point = choose(one, PIECES, budget_ms=4.0)
    assert point.mean_ms <= 4.0 and point.worst_ms <= PIECES.prefix_ms(kept)[-1]
    for other in subsets(2):
        predictions = one.predictions(other)
        assert predictions is not None
        if PIECES.prefix_ms(other)[0] <= 4.0:
            assert policy.by_search(*one.sure(predictions), PIECES.prefix_ms(other), 4.0).accuracy <= point.accuracy
    assert choose(one, PIECES, budget_ms=4.0, max_ms=7.55)[0] == (0,)  # with the second exit 7.6 and 7.7 ms
    with pytest.raises(UserError, match=r"none fit: leaving at the first takes 1\.1 ms, the whole network .* 7\.5 ms"):
        choose(one, PIECES, max_ms=7.4)


def test_an_exit_that_knows_nothing_is_not_kept() -> None:
    one = said(1, 400, noise=(4, 0.8, 0.7))
    one.logits[0] = np.random.default_rng(5).normal(0, 1, one.logits[0].shape)
    kept, point = choose(one, PIECES, accuracy=one.accuracy)
    assert kept == (1,) and point.accuracy >= one.accuracy and point.mean_ms < PIECES.plain_ms


def test_the_cheapest_thresholds_at_an_accuracy() -> None:
    one = said(2, 300)
    predictions = one.predictions((0, 1))
    assert predictions is not None
    ms = PIECES.prefix_ms((0, 1))
    last = np.inf
    for least in (one.accuracy, one.accuracy - 0.02, one.accuracy - 0.1):
        point = cheapest(*one.sure(predictions), ms, least)
        assert point.accuracy >= least - 1e-9 and point.mean_ms <= last
        last = point.mean_ms
    best = cheapest(*one.sure(predictions), ms, 1.1)  # out of reach: the most accurate
    assert best.accuracy == policy.by_search(*one.sure(predictions), ms, float(ms[-1])).accuracy


def test_halves_judge_each_other() -> None:
    one = said(3, 100)
    point = cross_validated(one, (0, 1), PIECES.prefix_ms((0, 1)), 4.0)
    predictions = one.predictions((0, 1))
    assert predictions is not None
    sure, right = one.sure(predictions)
    ms, accuracies = PIECES.prefix_ms((0, 1)), []
    for own, other in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
        thresholds = policy.by_search(sure[:, own], right[:, own], ms, 4.0).thresholds
        accuracies.append(policy.outcome(sure[:, other], right[:, other], thresholds, ms).accuracy)
    assert point.accuracy == pytest.approx(np.mean(accuracies)) and sum(point.shares) == pytest.approx(1)
    assert point.mean_ms == pytest.approx(np.array(point.shares) @ ms)

