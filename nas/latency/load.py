"""Records in a table's meta how busy the machine was while the table was made."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping
from typing import Any

LOAD = "load"  # key of the meta
OTHERS = 0.25  # share of the processor's cores that other work may keep busy
DRIFT = 1.1  # times the yardstick's fastest, in the median over a session
SPREAD = 1.5  # 90th over 5th percentile of a yardstick's runs, in the median over a session


class Watch:
    """Collects the load of a session of measuring, sample by sample; ``threads`` are those of the measuring itself.

    ``meta`` is the table's as earlier sessions left it: of several sessions the busiest counts, figure by figure.
    """

    def __init__(self, threads: int, meta: Mapping[str, Any]) -> None:
        self._threads, self._before = threads, _known(meta) or {}
        self._others, self._drifts, self._spreads = list[float](), list[float](), list[float]()

    def sample(self, drift: float, spread: float) -> None:
        """Notes the load of the last minute, and how fast and how even a yardstick ran meanwhile."""
        if hasattr(os, "getloadavg"):
            self._others.append(max(0.0, os.getloadavg()[0] - self._threads))
        self._drifts.append(drift)
        self._spreads.append(spread)

    def note(self, meta: dict[str, Any]) -> None:
        """Writes the load so far into the meta of a table."""
        if not self._drifts:
            return
        fastest = min(1.0, *self._drifts)
        here = {"others": round(statistics.median(self._others), 2) if self._others else 0.0,
                "cores": os.cpu_count() or 1, "drift": round(statistics.median(self._drifts) / fastest, 3),
                "spread": round(statistics.median(self._spreads), 3)}
        meta[LOAD] = {name: max(value, self._before.get(name, value)) for name, value in here.items()}


def busy_text(meta: Mapping[str, Any]) -> str | None:
    """Returns ``made on a busy machine`` with the signs of that; None where there are none, or nothing was noted."""
    load = _known(meta)
    if load is None:
        return None
    signs = []
    if load["others"] > OTHERS * load["cores"]:
        signs.append(f"other work kept {load['others']:.2g} of {load['cores']:g} cores busy")
    if load["drift"] > DRIFT:
        signs.append(f"the yardstick mostly took {load['drift']:.2g} times its fastest")
    if load["spread"] > SPREAD:
        signs.append(f"its runs differed by {load['spread']:.2g} times")
    return f"made on a busy machine ({', '.join(signs)})" if signs else None


def _known(meta: Mapping[str, Any]) -> dict[str, float] | None:
    """Returns the figures of a meta, None where they are not as ``note`` writes them: a table may be edited."""
    load = meta.get(LOAD)
    names = ("others", "cores", "drift", "spread")
    if not isinstance(load, dict) or not all(isinstance(load.get(name), int | float) for name in names):
        return None
    return {name: float(load[name]) for name in names}
