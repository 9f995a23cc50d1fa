"""Defines what is known of the thresholds of exits: what they give on images, and what a file with exits keeps of them.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, model_validator

from nas.exits.runtime import CONFIDENCES
from nas.record import Record


def _from_text(value: object) -> object:
    """Reads an infinite threshold, for which JSON has no number, from its text."""
    return float(value) if isinstance(value, str) and value in ("inf", "-inf") else value


def _known(kind: str) -> str:
    if kind not in CONFIDENCES:
        raise ValueError(f"known are {', '.join(CONFIDENCES)}")
    return kind


Threshold = Annotated[float, Field(allow_inf_nan=True), BeforeValidator(_from_text),
                      PlainSerializer(lambda value: value if math.isfinite(value) else str(value), when_used="json")]
Share = Annotated[float, Field(ge=0, le=1)]
Lax = Field(strict=False)  # a tuple, which is a list in JSON


class Point(Record):
    """Holds what thresholds give on some images: where these leave, the mean and the worst latency, the accuracy."""

    thresholds: tuple[Threshold, ...] = Lax
    shares: tuple[Share, ...] = Lax
    mean_ms: float
    worst_ms: float
    accuracy: Share


class Policy(Record):
    """Says how sure each exit of a delivered network has to be; ``points`` are thresholds for other budgets.

    ``n`` images were calibrated on, which the shares of ``point`` are of. The file is ``thresholds.json``.
    """

    kind: Annotated[str, AfterValidator(_known)]
    temperatures: tuple[Annotated[float, Field(gt=0)], ...] = Lax
    prefix_ms: tuple[Annotated[float, Field(gt=0)], ...] = Field(strict=False, min_length=1)
    n: int = Field(ge=1)
    point: Point
    points: tuple[Point, ...] = Field(default=(), strict=False)

    @model_validator(mode="after")
    def _one_an_exit(self) -> Policy:
        lengths = {len(part) for point in (self.point, *self.points) for part in (point.thresholds, point.shares)}
        if {len(self.temperatures), *lengths} != {len(self.prefix_ms)}:
            raise ValueError("temperatures, prefix_ms, thresholds and shares are not one an exit each")
        return self
