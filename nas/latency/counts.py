"""Counts multiply-adds and parameters as costs, for targets that are no device."""

from __future__ import annotations

from collections.abc import Callable

from nas import plan
from nas.latency.base import Costs
from nas.latency.meta import Meta
from nas.plan import OpKey
from nas.units import COUNTS


class Count(Costs):
    """Counts the multiply-adds or the parameters of an operator, in millions.

    ``name`` is one of ``COUNTS``, and a function of ``nas.plan`` that counts it for one operator.
    """

    kind = "count"

    def __init__(self, name: str) -> None:
        self.name, self.method = name, f"{COUNTS[name]}, counted from the network"
        self.meta = Meta(device="any", method=self.method, batch=1)
        self._count: Callable[[OpKey], int] = getattr(plan, name)

    def ms(self, key: OpKey) -> float:
        return self._count(key) / 1e6

    def covers(self, key: OpKey) -> bool:
        return True
