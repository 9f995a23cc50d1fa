"""Defines what pruning says of a branch that it drops; needs no PyTorch, as whoever reads a log does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["block", "layer"]


@dataclass(frozen=True)
class Drop:
    """Names a branch that was dropped, with the evidence: its ``probabilities`` [targets, budgets].

    A ``block`` was below the ``threshold`` everywhere; of a ``layer`` skip was above it everywhere.
    """

    kind: Kind
    slot: int
    op: str
    threshold: float
    probabilities: tuple[tuple[float, ...], ...]

    @property
    def most(self) -> float:
        """Returns the largest probability that the branch had, on any target and at any budget."""
        return max(map(max, self.probabilities))
