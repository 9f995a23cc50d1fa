"""Targets that are no device: multiply-adds and parameters, counted from the plan of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from nas import plan
from nas.plan import OpKey
from nas.units import COUNTS


class Count:
    """Counts, in millions, what an operator has; implements ``nas.latency.costs.Costs`` for any shape and size.

    ``name`` is one of ``COUNTS``, and a function of ``nas.plan`` that counts it for one operator.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.meta: dict[str, Any] = {"device": "any", "method": f"{COUNTS[name]}, counted from the network", "batch": 1}
        self._count: Callable[[OpKey], int] = getattr(plan, name)

    def ms(self, key: OpKey) -> float:
        return self._count(key) / 1e6

    def ms_many(self, keys: Iterable[OpKey]) -> list[float]:
        return [self.ms(key) for key in keys]
