"""Defines the kinds of values that settings have, and the base of all groups of settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

SIDES = (8, 1024)


class Strict(BaseModel):
    """Holds a group of settings: refuses other keys and values of another type, and cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True)


def listed(value: Any) -> Any:
    """Puts a single value into a list, so that a setting takes one or several."""
    return [value] if isinstance(value, str | Path | int | float) and not isinstance(value, bool) else value


def sides(value: Any) -> Any:
    """Checks the setting ``size``: None, one side in pixels, or several, which it sorts, the largest first.

    Raises ValueError.
    """
    given = value if isinstance(value, list | tuple) else [] if value is None else [value]
    for side in given:
        if isinstance(side, bool) or not isinstance(side, int) or not SIDES[0] <= side <= SIDES[1]:
            raise ValueError(f"an input side is a whole number from {SIDES[0]} to {SIDES[1]}, or a list of these")
    if len(given) > 16 or len(set(given)) < len(given):
        raise ValueError("every size once, and at most 16 of them")
    return sorted(given, reverse=True) if len(given) > 1 else given[0] if given else None


Epochs = Annotated[int, Field(ge=0, le=100_000)] | None  # None: from the number of images
Name = Annotated[str, Field(min_length=1, max_length=4096)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Ms = Annotated[float, Field(gt=0)]
Kb = Annotated[float, Field(ge=1)] | None  # of 1024 bytes
