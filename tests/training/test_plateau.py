"""When a held-out loss has stopped falling."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.training.plateau import GAIN, is_flat


@pytest.mark.parametrize(("losses", "flat"), [
    ([1.0] * 7, False),  # four against three: too few
    ([1.0] * 8, True),
    ([2.0, 1.5, 1.2, 1.0, 0.991, 1.0, 0.995, 1.0], True),  # 0.991 is no whole per cent below 1.0 ...
    ([2.0, 1.5, 1.2, 1.0, 0.98, 1.0, 0.995, 1.0], False),  # ... 0.98 is two
    ([1.0, 0.9] + [0.95] * 18, True),  # the last five of twenty
    ([1.0] * 19 + [0.5], False)])
def test_flat_by_hand(losses: list[float], flat: bool) -> None:
    assert is_flat(losses) == flat


@given(st.lists(st.floats(0.1, 10.0), min_size=8, max_size=60))
def test_a_loss_that_falls_by_more_than_the_gain_at_every_epoch_is_never_flat(steps: list[float]) -> None:
    loss, losses = 100.0, []
    for step in steps:
        loss *= 1 - GAIN - step / 100
        losses.append(loss)
    assert not is_flat(losses)
