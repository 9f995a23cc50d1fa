"""Records how busy the machine was while a table was made."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from nas.record import Record

OTHERS = 0.25  # share of the processor's cores that other work may keep busy
DRIFT = 1.1  # times the yardstick's fastest, in the median over a session
SPREAD = 1.5  # 90th over 5th percentile of a yardstick's runs, in the median over a session


class Load(Record):
    """States how busy a machine was: cores that other work kept busy, and how slow and uneven a yardstick ran."""

    others: Annotated[float, Field(ge=0)]
    cores: Annotated[int, Field(ge=1)]
    drift: float
    spread: float

    @property
    def busy(self) -> str | None:
        """Returns ``made on a busy machine`` with the signs of that; None where there are none."""
        signs = ", ".join(self._signs())
        return f"made on a busy machine ({signs})" if signs else None

    def _signs(self) -> Iterator[str]:
        if self.others > OTHERS * self.cores:
            yield f"other work kept {self.others:.2g} of {self.cores} cores busy"
        if self.drift > DRIFT:
            yield f"the yardstick mostly took {self.drift:.2g} times its fastest"
        if self.spread > SPREAD:
            yield f"its runs differed by {self.spread:.2g} times"

    def or_busier(self, other: Load | None) -> Load:
        """Returns the busier of two sessions, figure by figure."""
        if other is None:
            return self
        return Load(others=max(self.others, other.others), cores=max(self.cores, other.cores),
                    drift=max(self.drift, other.drift), spread=max(self.spread, other.spread))


class Watch:
    """Collects the load of a session of measuring, sample by sample; ``threads`` are those of the measuring itself.

    ``before`` is the load of earlier sessions with the table: of several sessions the busiest counts.
    """

    def __init__(self, threads: int, before: Load | None) -> None:
        self._threads, self._before = threads, before
        self._others, self._drifts, self._spreads = list[float](), list[float](), list[float]()

    def sample(self, drift: float, spread: float) -> None:
        """Notes the load of the last minute, and how fast and how even a yardstick ran meanwhile."""
        if hasattr(os, "getloadavg"):
            self._others.append(max(0.0, os.getloadavg()[0] - self._threads))
        self._drifts.append(drift)
        self._spreads.append(spread)

    @property
    def load(self) -> Load | None:
        """Returns the load so far, over all sessions; None where nothing was measured."""
        if not self._drifts:
            return self._before
        fastest = min(1.0, *self._drifts)
        here = Load(others=round(statistics.median(self._others), 2) if self._others else 0.0,
                    cores=os.cpu_count() or 1, drift=round(statistics.median(self._drifts) / fastest, 3),
                    spread=round(statistics.median(self._spreads), 3))
        return here.or_busier(self._before)
