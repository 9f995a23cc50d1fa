"""Defines what a cost model can be asked; a latency table, a kernel model and a count are its subclasses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar

from nas.errors import UserError
from nas.latency.meta import Meta
from nas.plan import OpKey


class Costs(ABC):
    """Says what an operator costs at a shape on one target; the costs of a network are the sum over its plan.

    ``meta`` says on which device, how it is run, and how the figures came about.
    """

    kind: ClassVar[str]  # as the files and ``nas targets`` call it
    grows: ClassVar[bool] = False  # whether rows can be added to it, by measuring or compiling
    name: str
    meta: Meta

    @abstractmethod
    def ms(self, key: OpKey) -> float:
        """Returns what an operator costs. Raises UserError for what is not known: an unknown cost is never zero."""

    def ms_many(self, keys: Iterable[OpKey]) -> list[float]:
        """Returns one figure a key, in order."""
        return [self.ms(key) for key in keys]

    @abstractmethod
    def covers(self, key: OpKey) -> bool:
        """Returns whether ``ms`` has an answer."""

    @property
    def int8_on_cpu(self) -> bool:
        """Tells whether the milliseconds are those of int8 files in ONNX Runtime (``nas.lower.qdq``)."""
        return (self.meta.device, self.meta.precision) == ("cpu", "int8")

    @property
    def weight_bits(self) -> int:
        """Returns the bits of weights in int8 files for the target."""
        return self.meta.weight_bits or 8

    @property
    def row_count(self) -> int | None:
        """Returns the number of rows; None for costs that are computed."""
        return None

    def missing(self, keys: Iterable[OpKey]) -> list[OpKey]:
        """Returns the rows to be added before every key is covered."""
        return []

    def lacks(self, keys: Iterable[OpKey]) -> bool:
        """Returns whether there is a key that only a new row would cover."""
        return self.grows and not all(map(self.covers, keys))

    def require(self, keys: Iterable[OpKey], space: str, size: int) -> None:
        """Raises UserError for the first key that only a new row would cover, with the command for that space."""
        for key in keys:
            if self.lacks([key]):
                raise self.unknown(key, space, size)

    def unknown(self, key: OpKey, space: str, size: int | str) -> UserError:
        """Returns what to raise for an operator that this does not cover."""
        return UserError(f"{key}: not known to {self.name}; {self.advice(space, size)}")

    def advice(self, space: str | list[str], size: int | str, exits: bool = False, here: bool = False) -> str:
        """Returns what to do about operators that a space has and this does not cover.

        ``exits``: heads of early exits are among them. ``here``: this machine can add the rows.
        """
        return f"{self.name} is a {self.kind}, to which no rows can be added: choose another target"
