"""What judging a network finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Evaluation:
    """Loss of a network and what else was found (accuracy, ...)."""

    loss: float
    figures: dict[str, Any]
