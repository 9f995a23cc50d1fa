"""Computes which of some measured networks are worth having (the front), and how much of the plane they dominate."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """Places a network on the plane of predicted milliseconds and accuracy (a fraction)."""

    id: str
    ms: float
    accuracy: float


def front(points: Iterable[Point]) -> list[Point]:
    """Returns the points that no other equals or beats in both ms and accuracy, by rising ms; of equal points, one."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.ms, -p.accuracy, p.id)):
        assert point.ms == point.ms and point.accuracy == point.accuracy, f"{point.id}: not a number"
        if not kept or point.accuracy > kept[-1].accuracy:
            kept.append(point)
    return kept


def hypervolume(points: Iterable[Point], reference_ms: float, reference_accuracy: float) -> float:
    """Returns the area that the points dominate, in ms times accuracy, up to a slow, inaccurate reference network."""
    area, end = 0.0, reference_ms
    for point in reversed(front(points)):
        if point.ms < reference_ms and point.accuracy > reference_accuracy:
            area += (end - point.ms) * (point.accuracy - reference_accuracy)
            end = point.ms
    return area
