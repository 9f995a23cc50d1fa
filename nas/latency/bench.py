"""Measures operators and networks for ``nas.latency.profile``, by timing a device or by asking its compiler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from nas.latency import context
from nas.latency.context import Context
from nas.latency.meta import Conditions, Yardstick
from nas.latency.table import HEADS, Row
from nas.latency.timing import Device, Run, Steady, Timing
from nas.ops import build
from nas.plan import Layout, OpKey, macs
from nas.subnet import Subnet

SECONDS_A_GRAPH = 0.15
SECONDS_A_NETWORK = 0.5
WARM_NETWORK = 5  # runs until a network is as fast as when it runs on and on: the first takes up to 1.4 times as long
TOGETHER = 8  # networks whose sessions are in memory at once


Parts = Sequence[np.ndarray]  # [2, networks] each, in ms, of the first networks of a list
Keep = Callable[[Parts], None]


class Bench(Protocol):
    """Measures operators and networks of one layout."""

    method: str  # what the figures are, for the table's meta
    protocol: str  # how they come about, in words
    corrected: bool  # whether rows need a correction before they add up to whole networks

    @property
    def drift(self) -> float:
        """Returns how many times slower than at first the device was at the last rows or networks."""

    @property
    def yardstick(self) -> Yardstick | None:
        """Returns what rows and networks are timed beside, with what it takes; None where nothing is timed."""

    @property
    def spread(self) -> float:
        """Returns how many times longer than at its best the yardstick took, at the last rows."""

    @property
    def slow(self) -> bool:
        """Tells whether the last rows should be measured again later, because the device was slow meanwhile."""

    def was_slow_at_first(self) -> bool:
        """Tells whether the device turned out to be faster than at first, so that all has to be timed anew."""

    def rows(self, keys: list[OpKey]) -> dict[OpKey, Row | None]:
        """Measures a row for each operator, ``flagged`` where it is not reliable; None where it is not above zero."""

    def alone(self, key: OpKey) -> Row:
        """Measures an operator by itself, for want of a row above zero."""

    def networks(self, plans: list[list[OpKey]], parts: Parts = (), keep: Keep = lambda parts: None,
                 ) -> tuple[np.ndarray, np.ndarray]:
        """Measures whole networks twice, in ms; how far the two differ is the noise.

        ``parts`` were measured by an earlier call, and what is measured so far is given to ``keep``, part by part.
        """


@runtime_checkable
class Estimator(Protocol):
    """Estimates costs by a device's own compiler: nothing is timed, and nothing has to run on the device."""

    name: str
    align: int  # as of ``nas.latency.timing.Device``

    def conditions(self) -> Conditions:
        """Returns what the figures depend on, such as processor and version of the compiler."""

    def bench(self, layout: Layout) -> Bench:
        """Returns the bench that compiles operators and networks of a layout."""


def context_of(layout: Layout, key: OpKey) -> Context:
    return Context(key, first=key == layout.stem, last=key.op == layout.head.op or key.op.name in HEADS)


def yardstick_of(layout: Layout) -> OpKey:
    """Returns the operator of the median MACs: small enough to be warm whatever ran before, and like the rows."""
    keys = sorted((key for slot in layout.slots for op in slot.ops if (key := slot.key(op))), key=macs)
    return keys[len(keys) // 2]


@dataclass
class Clocked:
    """Times operators and networks in interleaved rounds beside a yardstick.

    Operators are timed between two convolutions, whose time is taken off again (``nas.latency.context``).

    Operators have an operator as their yardstick, networks a network: what else runs on a machine slows down arithmetic
    and access to memory by different factors.
    """

    layout: Layout
    device: Device
    steady: Steady
    whole: Steady
    drift: float = 1.0

    method = "measured"
    protocol = "between two 1x1 convolutions, minus half a pair of them on each map; 5th percentile, interleaved"
    corrected = True

    @property
    def yardstick(self) -> Yardstick:
        return Yardstick(op=str(yardstick_of(self.layout)), op_ms=self.steady.reference_ms,
                         network_ms=self.whole.reference_ms)

    @property
    def spread(self) -> float:
        return self.steady.spread

    @property
    def slow(self) -> bool:
        return self.steady.slow

    def was_slow_at_first(self) -> bool:
        return self.steady.was_slow_at_first()

    def rows(self, keys: list[OpKey]) -> dict[OpKey, Row | None]:
        contexts = [context_of(self.layout, key) for key in keys]
        maps = context.maps(contexts)
        prepare = self.device.prepare

        def prepared() -> dict[str, Run]:
            rows = {f"row {i}": prepare(item.module(), in_ch=item.key.in_ch, size=item.key.size)
                    for i, item in enumerate(contexts)}
            return rows | {f"pair {i}": prepare(context.pair(map_), in_ch=map_.channels, size=map_.size)
                           for i, map_ in enumerate(maps)}

        timings = self.steady.time(prepared, SECONDS_A_GRAPH * (len(contexts) + len(maps)), again=0)
        self.drift = self.steady.drift
        pairs = {map_: timings[f"pair {i}"].ms for i, map_ in enumerate(maps)}
        return {item.key: _row(item, timings[f"row {i}"], pairs) for i, item in enumerate(contexts)}

    def alone(self, key: OpKey) -> Row:
        """Times an operator by itself: too high, as a call and both ends of a graph are in it; the row is flagged."""
        module = build(key.op, key.in_ch, key.out_ch, key.stride)
        timing = self.steady.time(lambda: {"": self.device.prepare(module, in_ch=key.in_ch, size=key.size)},
                                  SECONDS_A_GRAPH)[""]
        return Row.of(key, ms=timing.ms, raw_ms=timing.ms, p10_ms=timing.p10_ms, p90_ms=timing.p90_ms, n=timing.n,
                      how="flagged")

    def networks(self, plans: list[list[OpKey]], parts: Parts = (), keep: Keep = lambda parts: None,
                 ) -> tuple[np.ndarray, np.ndarray]:
        """Times networks, some at a time, and begins anew where the device was slow at the beginning.

        Each is measured twice: in the same interleaved rounds, or, where the device is timed in processes of their own,
        each time in another one. Where a network's memory happens to lie is part of the noise then, and the mean of
        both measurements has less of it.
        """
        fresh, done = self.whole.reference_ms is None, list(parts)
        self.drift = 0.0
        while (start := sum(part.shape[1] for part in done)) < len(plans):
            part = []
            for halves in ("a", "b") if self.device.fresh else ("ab",):
                part.append(self._networks(plans[start : start + TOGETHER], halves))
                self.drift = max(self.drift, self.whole.drift)
            done.append(np.concatenate(part))
            if fresh and self.whole.was_slow_at_first():
                done, self.drift = [], 0.0
            keep(done)
        first, second = np.concatenate(done, axis=1)
        return first, second

    def _networks(self, plans: list[list[OpKey]], halves: str) -> np.ndarray:
        """Times some networks at once; returns ms [halves, networks]."""
        task = self.layout.task

        def prepared() -> dict[str, Run]:
            runs = [self.device.prepare(Subnet(keys), in_ch=task.in_ch, size=task.size) for keys in plans]
            return {f"{i} {half}": run for i, run in enumerate(runs) for half in halves}

        timings = self.whole.time(prepared, len(halves) * SECONDS_A_NETWORK * len(plans), warm=WARM_NETWORK)
        return np.array([[timings[f"{i} {half}"].ms for i in range(len(plans))] for half in halves])


def _row(item: Context, timing: Timing, pairs: dict[context.Map, float]) -> Row | None:
    ms, p10, p90 = (item.difference(value, pairs) for value in (timing.ms, timing.p10_ms, timing.p90_ms))
    if not ms > 0:
        return None
    how = "flagged" if timing.unstable else "measured"
    return Row.of(item.key, ms=ms, raw_ms=ms, p10_ms=max(0.0, p10), p90_ms=p90, n=timing.n, how=how)
