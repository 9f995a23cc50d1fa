"""The correction that whole networks put on rows, and what a second layout leaves alone."""

from __future__ import annotations

import numpy as np
import pytest

from nas.arch import Op
from nas.latency.correction import correct, fit
from nas.latency.meta import Correction, Meta
from nas.latency.table import LatencyTable, Row
from nas.plan import OpKey

SHARED, OURS, THEIRS = (OpKey(Op.parse(f"mbconv(kernel={k}, hidden=32)"), 16, 16, 1, 8) for k in (3, 5, 7))
WIDER = OpKey(Op.parse("mbconv(kernel=3, hidden=64)"), 16, 16, 1, 8)  # on the curve of SHARED


def table() -> LatencyTable:
    rows = [Row.of(key, ms=ms, raw_ms=ms, p10_ms=ms, p90_ms=ms, n=9, how="measured")
            for key, ms in ((SHARED, 1.0), (OURS, 2.0), (THEIRS, 4.0))]
    return LatencyTable("t", Meta(device="cpu", align=32), rows)


def corrected(of: LatencyTable, label: str, keys: list[OpKey], plans: list[list[OpKey]], ms: list[float]) -> Correction:
    made = of.meta.corrections[label] = correct(of, label, keys, plans, np.array(ms))
    return made


def test_the_fit_finds_an_affine_law_and_refuses_an_absurd_one() -> None:
    sums, counts = np.array([1.0, 2.0, 4.0, 3.0]), np.array([4, 6, 5, 9])
    assert fit(sums, counts, 1.2 * sums + 0.05 * counts, smallest_ms=0.1) == pytest.approx((1.2, 0.05))
    assert fit(sums, counts, 1.2 * sums - 0.1 * counts, smallest_ms=0.01)[1] == 0.0  # 0.01 ms would go below 0
    assert fit(sums, counts, 9 * sums, smallest_ms=0.1) == pytest.approx((9.0, 0.0))
    assert fit(sums, counts, 7 + 1.5 * sums + 0.05 * counts, 7.0, smallest_ms=0.1) == pytest.approx((1.5, 0.05))


def test_a_second_layout_leaves_rows_of_the_first_and_corrects_its_own_beside_them() -> None:
    t = table()
    first = corrected(t, "ours", [SHARED, OURS], [[SHARED, OURS], [OURS, OURS], [SHARED, SHARED]], [3.8, 5.0, 2.6])
    assert (first.scale, first.per_op_ms) == pytest.approx((1.2, 0.1))
    assert t.ms(SHARED) == pytest.approx(1.3) and t.ms(OURS) == pytest.approx(2.5)
    # 1.3 of SHARED stands; what is left, 4.2 and 8.4 ms, is 1.05 times 4 ms of every THEIRS
    second = corrected(t, "theirs", [SHARED, THEIRS], [[SHARED, THEIRS], [SHARED, THEIRS, THEIRS]], [5.5, 9.7])
    assert second.scale * 4 + second.per_op_ms == pytest.approx(4.2) and second.mape_after == pytest.approx(0)
    assert second.bias_before == pytest.approx((5 / 5.5 + 9 / 9.7) / 2 - 1)
    assert t.ms(SHARED) == pytest.approx(1.3) and t.ms(THEIRS) == pytest.approx(4.2)
    # the first once more, on a machine where all of it is half as fast again: its own rows follow, the other's stay
    corrected(t, "ours", [SHARED, OURS], [[SHARED, OURS], [OURS, OURS], [SHARED, SHARED]], [5.7, 7.5, 3.9])
    assert [t.ms(key) for key in (SHARED, OURS, THEIRS)] == pytest.approx([1.95, 3.75, 4.2])


def test_a_new_width_on_the_curve_of_another_layout_takes_its_correction() -> None:
    t = table()
    corrected(t, "ours", [SHARED, OURS], [[SHARED, OURS], [OURS, OURS], [SHARED, SHARED]], [3.8, 5.0, 2.6])
    t.add([Row.of(WIDER, ms=3.0, raw_ms=3.0, p10_ms=3.0, p90_ms=3.0, n=9, how="measured")])
    found = corrected(t, "theirs", [WIDER, THEIRS], [[WIDER, THEIRS, THEIRS], [THEIRS]], [12.1, 4.2])
    assert t.ms(WIDER) == pytest.approx(1.2 * 3 + 0.1) and t.ms(THEIRS) == pytest.approx(4.2) and found.of is None


def test_too_few_free_rows_take_the_correction_of_the_others() -> None:
    t = table()
    corrected(t, "ours", [SHARED, OURS], [[SHARED, OURS], [OURS, OURS], [SHARED, SHARED]], [3.8, 5.0, 2.6])
    mostly = [SHARED, OURS, OURS, OURS, OURS]  # 9 ms that stand, beside 4 raw ones
    found = corrected(t, "theirs", [SHARED, OURS, THEIRS], [[*mostly, THEIRS]] * 2, [99.0, 99.0])
    assert found.of == "ours" and (found.scale, found.per_op_ms) == pytest.approx((1.2, 0.1))
    assert t.ms(THEIRS) == pytest.approx(4.9)
    # a correction that was taken over is nobody's own: the first layout still fits its rows
    corrected(t, "ours", [SHARED, OURS], [[SHARED, OURS], [OURS, OURS], [SHARED, SHARED]], [5.7, 7.5, 3.9])
    assert t.ms(OURS) == pytest.approx(3.75)
