from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.errors import UserError
from nas.select import meet_in_the_middle
from nas.select.ilp import solve
from nas.select.knapsack import Knapsack
from nas.select.meet_in_the_middle import Additive, _Join, optimum
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
    found, possible = optimum(problem), within(problem)
    assert (found is None) == (not possible)
    if found is not None:
        assert regret(problem, found) == pytest.approx(min(regret(problem, pick) for pick in possible), abs=1e-9)
        assert tuple(found) in possible


def test_by_hand() -> None:
    regrets = [np.array([0.0, 2.0]), np.array([0.0, 1.0])]
    use = [[np.array([3.0, 0.0]), np.array([3.0, 0.0])], [np.array([0.0, 5.0]), np.array([0.0, 0.0])]]
    assert optimum(Additive(regrets, use, np.array([3.0, 9.0]))) == [0, 1]
    assert optimum(Additive(regrets, use, np.array([6.0, 9.0]))) == [0, 0]
    assert optimum(Additive(regrets, use, np.array([2.0, 9.0]))) == [1, 1]
    assert optimum(Additive(regrets, use, np.array([2.0, 4.0]))) is None


@settings(max_examples=80, deadline=None)
@given(problems())
def test_many_rounds_in_small_chunks_equal_exhaustive_search(problem: Additive) -> None:
    """Rounds that reach little further than the last, as in spaces too large to count out."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"_FIRST": 2, "_GROWTH": 3, "_CHUNK": 7}.items():
            patch.setattr(meet_in_the_middle, name, value)
        found, possible = optimum(problem), within(problem)
    assert (found is None) == (not possible)
    if found is not None:
        assert regret(problem, found) == pytest.approx(min(regret(problem, pick) for pick in possible), abs=1e-9)
        assert tuple(found) in possible


def test_no_way_within_reach_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two limits of whole numbers, 200 times, in rounds that reach little further: one half may need all of a reach."""
    for name, value in {"_FIRST": 2, "_GROWTH": 3, "_CHUNK": 7}.items():
        monkeypatch.setattr(meet_in_the_middle, name, value)
    solved = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        sizes = [int(n) for n in rng.integers(2, 6, int(rng.integers(2, 4)))]
        rows = [[rng.integers(0, 10, n).astype(float) for n in sizes] for _ in range(3)]
        room = np.array([sum(row.min() for row in use) + sum(np.ptp(row) for row in use) / 2 for use in rows[1:]])
        problem = Additive([row - row.min() for row in rows[0]], rows[1:], room)
        found, possible = optimum(problem), within(problem)
        assert (found is None) == (not possible)
        if found is not None:
            solved += 1
            assert regret(problem, found) == min(regret(problem, pick) for pick in possible)
    assert solved > 100


@pytest.mark.parametrize("uses", [(0.2, 0.5), (0.5, 0.2), (0.3, 0.6), *itertools.permutations((0.1, 0.2, 0.3)),
                                  *itertools.permutations((0.1, 0.3, 0.4, 0.6))])
def test_what_uses_all_room_is_within_in_whatever_order_it_is_summed(uses: tuple[float, ...]) -> None:
    """(0.2 + 0.5) - 0.2 < 0.5 and 0.1 + 0.2 + 0.3 > 0.3 + 0.2 + 0.1: a range of what is used must not lose it."""
    regrets, use = [np.array([0.0, 1.0]) for _ in uses], [np.array([part, 0.0]) for part in uses]
    none = [np.zeros(2) for _ in uses]
    every = [0] * len(uses)
    for room in (sum(sorted(uses)), sum(sorted(uses, reverse=True))):
        assert optimum(Additive(regrets, [use, none], np.array([room, 0.0]))) == every
        assert sum(optimum(Additive(regrets, [use, none], np.array([room - 1e-6, 0.0]))) or every) == 1
        lone = Additive([row[:1] for row in regrets], [[row[:1] for row in use]] * 2, np.array([room, room]))
        assert optimum(lone) == every


def test_no_way_through_half_of_the_slots() -> None:
    """Each slot has a choice within the limits and each limit is met, but never both in the second slot."""
    use = [[np.zeros(2), np.array([0.0, 2.0])], [np.zeros(2), np.array([2.0, 0.0])]]
    assert optimum(Additive([np.array([0.0, 1.0])] * 2, use, np.array([1.5, 1.5]))) is None


def test_more_equal_scores_than_can_be_listed_are_left_to_the_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    """3^8 networks of the same score: none is nearer to the bound than another, so no reach holds few of them."""
    monkeypatch.setattr(meet_in_the_middle, "MOST", 1000)
    monkeypatch.setattr(_Join, "within", None)  # listing them would take the memory of a larger space
    scores = tuple(np.zeros(3) for _ in range(8))
    costs = [Cost(name, "ms", 0.0, tuple(np.array(row) for _ in range(8)))
             for name, row in (("a", [1.0, 2.0, 3.0]), ("b", [3.0, 2.0, 1.0]))]
    assert optimum(Additive(scores, [cost.per_op for cost in costs], np.array([16.0, 16.0]))) is None
    pick = Knapsack(scores, costs, {"a": 16.0, "b": 16.0}).best([], [])
    assert pick is not None and [cost.of(pick) for cost in costs] == [16.0, 16.0]


def test_nearly_equal_scores_are_as_equal_ones() -> None:
    """Scores and costs linear in a width: priced by the duals they differ by 1e-13, and 16^14 networks are near."""
    width = 8.0 * np.arange(1, 17)
    costs = [Cost(name, "ms", 0.0, (width * each,) * 14) for name, each in (("a", 0.00317), ("b", 0.0217))]
    limits = {cost.name: 0.43 * cost.largest for cost in costs}
    scores = (width * 0.0013,) * 14
    pick = Knapsack(scores, costs, limits).best([], [])
    # 14 x 16 x 0.43 = 96.32 steps of the width are within both limits: 96 of them
    assert pick is not None and sum(pick) + 14 == 96


def test_a_limit_that_no_network_keeps_ends_after_so_many_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of even numbers, between 7 and 7: the relaxation knows nothing against it."""
    even = [np.array([0.0, 2.0, 4.0])] * 4
    problem = Additive([np.array([0.0, 0.3, 0.1])] * 4, [even, [-row for row in even]], np.array([7.0, -7.0]))
    assert optimum(problem) is None
    monkeypatch.setattr(meet_in_the_middle, "_PAIRS", 0)
    assert optimum(problem) is None and optimum(Additive(problem.regret, [even] * 2, np.array([7.0, 7.0]))) is None


def four_limits(seed: int) -> tuple[tuple[np.ndarray, ...], list[Cost], dict[str, float]]:
    rng = np.random.default_rng(seed)
    scores = tuple(rng.normal(size=12) for _ in range(6))
    costs = [Cost(f"c{i}", "ms", 0.1, tuple(rng.uniform(0, 1, 12) for _ in range(6))) for i in range(4)]
    return scores, costs, {cost.name: cost.smallest + 0.3 * (cost.largest - cost.smallest) for cost in costs}


@pytest.mark.parametrize("seed", range(3))
def test_where_too_much_is_in_reach_the_tree_finds_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, costs, limits = four_limits(seed)
    answers = solve(scores, costs, limits, k=3, overlap=0.5)
    monkeypatch.setattr(meet_in_the_middle, "MOST", 0)
    assert optimum(Additive([row.max() - row for row in scores], [cost.per_op for cost in costs],
                          np.array([limits[cost.name] - 0.1 for cost in costs]))) is None
    assert solve(scores, costs, limits, k=3, overlap=0.5) == answers


def test_a_tree_that_is_stopped_states_its_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meet_in_the_middle, "MOST", 0)
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
    monkeypatch.setattr(meet_in_the_middle, "MOST", 0)
    try:
        found = short.best([], [])
    except UserError as error:
        assert "found no network within its limits in 0.3 s" in str(error)
        return
    assert found is not None
    missed = sum(row[i] - row[j] for row, i, j in zip(scores, best, found, strict=True))
    assert -1e-9 <= missed <= short.gap + 1e-9 and math.isfinite(short.gap)
