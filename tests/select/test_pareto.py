from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.select.pareto import Point, front, hypervolume

POINTS = st.lists(st.builds(Point, st.uuids().map(str), st.integers(0, 9).map(float), st.integers(0, 9).map(float)))


def beats(a: Point, b: Point) -> bool:
    return a.ms <= b.ms and a.accuracy >= b.accuracy and (a.ms, a.accuracy) != (b.ms, b.accuracy)


def test_front_by_hand() -> None:
    a, b, c, d = Point("a", 1, 0.5), Point("b", 2, 0.7), Point("c", 3, 0.6), Point("d", 4, 0.9)
    assert front([d, c, b, a]) == [a, b, d]


def test_of_equal_points_the_first_id_is_kept() -> None:
    assert front([Point("z", 1, 0.5), Point("b", 1, 0.5), Point("y", 2, 0.5)]) == [Point("b", 1, 0.5)]


@given(POINTS, st.randoms())
def test_front_holds_no_dominated_point_and_misses_none(points: list[Point], shuffler: random.Random) -> None:
    kept = front(points)
    assert not any(beats(p, q) for p in points for q in kept)
    assert all(any(q == p or beats(q, p) or (q.ms, q.accuracy) == (p.ms, p.accuracy) for q in kept) for p in points)
    assert [p.ms for p in kept] == sorted({p.ms for p in kept})
    shuffled = list(points)
    shuffler.shuffle(shuffled)
    assert front(shuffled) == kept


def test_hypervolume_by_hand() -> None:
    points = [Point("a", 1, 0.5), Point("b", 2, 0.7), Point("worse", 2.5, 0.6), Point("slow", 9, 0.95)]
    assert hypervolume(points, 4, 0.1) == pytest.approx(1 * 0.4 + 2 * 0.6)
    assert hypervolume([], 4, 0.1) == 0
    assert hypervolume([Point("a", 5, 0.9), Point("b", 1, 0.1)], 4, 0.1) == 0


@given(POINTS)
def test_hypervolume_never_falls_when_a_point_is_added(points: list[Point]) -> None:
    volumes = [hypervolume(points[:n], 10, -1) for n in range(len(points) + 1)]
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(volumes))
