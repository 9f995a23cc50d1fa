"""Corrects rows so that their sum is what whole networks take.

Inside a network data is warmer or colder than between two convolutions, and a run has a cost of its own: ``whole =
scale * sum + per_op_ms * operators`` is fitted for each layout (a space at a size) and applied to its rows. Layouts in
one table may share rows (ghost and mbconv a hundred at each size), and a row has only one corrected value: it keeps
that of the layout that was fitted first, and a later layout fits what its networks take beyond those rows.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from nas.latency.agreement import mape
from nas.latency.meta import Correction
from nas.latency.table import Group, LatencyTable, Row, axis
from nas.plan import OpKey

LEAST_SHARE = 1 / 3  # share of the networks' ms that must be free to be corrected, or the fit magnifies their noise


def correct(table: LatencyTable, label: str, keys: list[OpKey], plans: list[list[OpKey]], measured: np.ndarray,
            drift: float = 1.0) -> Correction:
    """Fits a correction, applies it to the rows of ``keys``, and returns it with the errors before and after.

    ``measured``: milliseconds of ``plans``, random networks of those operators, while the device was ``drift`` times
    slower than at first. The table's meta has the corrections of other labels; with ``of`` in the result it is that of
    another label, as too few rows were free.
    """
    def group(key: OpKey) -> Group:
        return axis(key, table.align)[0]

    mine = {group(key) for key in keys}
    rows = [(at, row) for key, row in table.rows.items() if (at := group(key)) in mine]
    others = {name: other for name, other in table.meta.corrections.items()
              if name != label and other and other.of is None}
    taken = {at: name for at, row in rows for name, other in others.items() if _stands_on(row, other)}
    stands = [(taken[at], row) for at, row in rows if at in taken]
    free = [row for at, row in rows if at not in taken]
    raw = LatencyTable(table.name, table.meta, [uncorrected(row) for _, row in rows])
    before = np.array([sum(raw.ms_many(plan)) for plan in plans])
    table.add(corrected(row, others[name]) for name, row in stands)
    table.add(map(uncorrected, free))
    split = [([key for key in plan if group(key) in taken], [key for key in plan if group(key) not in taken])
             for plan in plans]
    fixed, sums, counts = np.array([[sum(table.ms_many(theirs)), sum(table.ms_many(ours)), len(ours)]
                                    for theirs, ours in split]).T
    if taken and np.mean(sums / (sums + fixed)) < LEAST_SHARE:
        most, _ = Counter(name for name, _ in stands).most_common(1)[0]
        fitted = Correction(of=most, scale=others[most].scale, per_op_ms=others[most].per_op_ms)
    else:
        scale, per_op_ms = fit(sums, counts, measured, fixed, smallest_ms=min(row.raw_ms for row in free))
        fitted = Correction(scale=scale, per_op_ms=per_op_ms)
    table.add(corrected(row, fitted) for row in free)
    after = np.array([sum(table.ms_many(plan)) for plan in plans])
    return Correction(scale=fitted.scale, per_op_ms=fitted.per_op_ms, of=fitted.of, n=len(plans),
                      mape_before=mape(before, measured), bias_before=float(np.mean(before / measured - 1)),
                      mape_after=mape(after, measured), drift=drift)


def fit(sums: np.ndarray, counts: np.ndarray, measured: np.ndarray, fixed: np.ndarray | float = 0.0, *,
        smallest_ms: float) -> tuple[float, float]:
    """Fits ``measured = fixed + scale * sums + per_op_ms * counts`` by least relative squares: scale and per_op_ms.

    Arrays have a figure a network: ``sums`` of rows and ``counts`` of operators that are to be corrected, ``fixed`` of
    the others. Only the scale is fitted where an affine fit would be absurd or make a row cost nothing.
    """
    matrix, rest = np.stack([sums, counts], 1) / measured[:, None], measured - fixed
    scale, per_op_ms = np.linalg.lstsq(matrix, rest / measured, rcond=None)[0]
    if not (0.5 <= scale <= 2 and scale * smallest_ms + per_op_ms > 0.1 * smallest_ms):
        return float(np.median(rest / sums)), 0.0
    return float(scale), float(per_op_ms)


def corrected(row: Row, correction: Correction) -> Row:
    """Returns a row whose ``ms`` is its measurement with a correction applied."""
    return row.model_copy(update={"ms": correction.ms(row.raw_ms)})


def uncorrected(row: Row) -> Row:
    """Returns a row whose ``ms`` is its measurement."""
    return row.model_copy(update={"ms": row.raw_ms})


def _stands_on(row: Row, correction: Correction) -> bool:
    """Tells whether a row was corrected by this correction: exactly, as JSON keeps every digit."""
    return row.ms == correction.ms(row.raw_ms)
