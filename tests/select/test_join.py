from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.errors import UserError
from nas.select import join
from nas.select.ilp import solve
from nas.select.join import Additive, least
from nas.select.knapsack import Knapsack
from nas.select.problem import Cost


def regret(problem: Additive, pick: list[int] | tuple[int, ...]) -> float:
    return float(sum(row[i] for row, i in zip(problem.regret, pick, strict=True)))


def within(problem: Additive) -> list[tuple[int, ...]]:
    return [pick for pick in itertools.product(*(range(len(row)) for row in problem.regret))
            if all(sum(row[i] for row, i in zip(rows, pick, strict=True)) <= room + 1e-9
                   for rows, room in zip(problem.use, problem.room, strict=True))]


@st.composite
def problems(draw: st.DrawFn) -> Additive:
    """Up to five limits over up to 10^5 networks, the rooms anywhere from none to all."""
    sizes = draw(st.lists(st.integers(1, 10), min_size=1, max_size=5))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    coarse = draw(st.booleans())  # many ties

    def rows() -> list[np.ndarray]:
        return [rng.integers(0, 4, n).astype(float) if coarse else rng.uniform(0, 1, n) for n in sizes]

    kinds = draw(st.integers(1, 5))
    use = [rows() for _ in range(kinds)]
    share = draw(st.floats(0, 1))
    room = np.array([sum(row.min() for row in one) + share * sum(np.ptp(row) for row in one) for one in use])
    return Additive([row - row.min() for row in rows()], use, room)


@settings(max_examples=80, deadline=None)
@given(problems())
def test_equals_exhaustive_search(problem: Additive) -> None:
    found, possible = least(problem), within(problem)
    assert (found is None) == (not possible)
    if found is not None:
        assert regret(problem, found) == pytest.approx(min(regret(problem, pick) for pick in possible), abs=1e-9)
        assert tuple(found) in possible


def test_by_hand() -> None:
    regrets = [np.array([0.0, 2.0]), np.array([0.0, 1.0])]
    use = [[np.array([3.0, 0.0]), np.array([3.0, 0.0])], [np.array([0.0, 5.0]), np.array([0.0, 0.0])]]
    assert least(Additive(regrets, use, np.array([3.0, 9.0]))) == [0, 1]
    assert least(Additive(regrets, use, np.array([6.0, 9.0]))) == [0, 0]
    assert least(Additive(regrets, use, np.array([2.0, 9.0]))) == [1, 1]
    assert least(Additive(regrets, use, np.array([2.0, 4.0]))) is None


def four_limits(seed: int) -> tuple[tuple[np.ndarray, ...], list[Cost], dict[str, float]]:
    rng = np.random.default_rng(seed)
    scores = tuple(rng.normal(size=12) for _ in range(6))
    costs = [Cost(f"c{i}", "ms", 0.1, tuple(rng.uniform(0, 1, 12) for _ in range(6))) for i in range(4)]
    return scores, costs, {cost.name: cost.smallest + 0.3 * (cost.largest - cost.smallest) for cost in costs}


@pytest.mark.parametrize("seed", range(3))
def test_where_too_much_is_in_reach_the_tree_finds_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, costs, limits = four_limits(seed)
    answers = solve(scores, costs, limits, k=3, overlap=0.5)
    monkeypatch.setattr(join, "MOST", 0)
    assert least(Additive([row.max() - row for row in scores], [cost.per_op for cost in costs],
                          np.array([limits[cost.name] - 0.1 for cost in costs]))) is None
    assert solve(scores, costs, limits, k=3, overlap=0.5) == answers


def test_a_tree_that_is_stopped_states_its_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join, "MOST", 0)
    rng = np.random.default_rng(0)
    size = [rng.uniform(0.2, 1, 100) for _ in range(15)]
    scores = tuple(-0.3 * np.exp(-2 * s) + rng.normal(0, 0.03, 100) for s in size)
    costs = [Cost(f"c{i}", "ms", 0.1, tuple(s * rng.uniform(0.5, 1.5, 100) for s in size)) for i in range(5)]
    limits = {cost.name: cost.smallest + 0.3 * (cost.largest - cost.smallest) for cost in costs}
    short = Knapsack(scores, costs, limits, seconds=0.3)
    monkeypatch.undo()
    whole = Knapsack(scores, costs, limits)
    best = whole.best([], [])
    assert best is not None and whole.gap == 0
    monkeypatch.setattr(join, "MOST", 0)
    try:
        found = short.best([], [])
    except UserError as error:
        assert "found no network within its limits in 0.3 s" in str(error)
        return
    assert found is not None
    missed = sum(row[i] - row[j] for row, i, j in zip(scores, best, found, strict=True))
    assert -1e-9 <= missed <= short.gap + 1e-9 and math.isfinite(short.gap)
