"""What fills a table: a device that is timed, or one whose own compiler counts. ``nas.latency.profile`` drives both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from nas.latency import context
from nas.latency.context import Context
from nas.latency.table import HEADS, Row
from nas.latency.timing import Device, Run, Steady, Timing
from nas.ops import build
from nas.plan import Layout, OpKey
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
    corrected: bool  # whether whole networks cost what the sum of the rows does not say

    @property
    def drift(self) -> float:
        """How much slower than at first the device was, at the last rows or networks."""

    @property
    def slow(self) -> bool:
        """Whether the last rows are worth measuring at another time, because the device was slow meanwhile."""

    def begun_slow(self) -> bool:
        """Whether the device turned out to be faster than it was at first, so that it is timed anew."""

    def rows(self, keys: list[OpKey]) -> dict[OpKey, Row | None]:
        """One row an operator, ``flagged`` where it is not to be trusted; None where it is not above zero."""

    def alone(self, key: OpKey) -> Row:
        """What stands for a row that never came out above zero."""

    def networks(self, plans: list[list[OpKey]], parts: Parts = (), keep: Keep = lambda parts: None,
                 ) -> tuple[np.ndarray, np.ndarray]:
        """Milliseconds of whole networks, twice: the second tells the noise.

        ``parts`` were measured by an earlier call, and what is measured so far is given to ``keep``, part by part.
        """


@runtime_checkable
class Estimator(Protocol):
    """A device whose own compiler says what a network costs there: nothing is timed, nothing has to run on it."""

    name: str
    align: int  # as of ``nas.latency.timing.Device``

    def conditions(self) -> dict[str, Any]:
        """What the figures depend on."""

    def bench(self, layout: Layout) -> Bench:
        """Ready to compile."""


def context_of(layout: Layout, key: OpKey) -> Context:
    return Context(key, first=key == layout.stem, last=key.op == layout.head.op or key.op.name in HEADS)


@dataclass
class Clocked:
    """Timed in interleaved rounds beside a yardstick, between convolutions that are taken off again.

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
    def slow(self) -> bool:
        return self.steady.slow

    def begun_slow(self) -> bool:
        return self.steady.begun_slow()

    def rows(self, keys: list[OpKey]) -> dict[OpKey, Row | None]:
        contexts = [context_of(self.layout, key) for key in keys]
        maps = context.maps(contexts)
        prepare = self.device.prepare

        def prepared() -> dict[str, Run]:
            rows = {f"row {i}": prepare(item.module(), in_ch=item.key.in_ch, size=item.key.size)
                    for i, item in enumerate(contexts)}
            return rows | {f"pair {i}": prepare(context.pair(map_), in_ch=map_.channels, size=map_.size)
                           for i, map_ in enumerate(maps)}

        timings = self.steady.time(prepared, SECONDS_A_GRAPH * (len(contexts) + len(maps)), again=False)
        self.drift = self.steady.drift
        pairs = {map_: timings[f"pair {i}"].ms for i, map_ in enumerate(maps)}
        return {item.key: _row(item, timings[f"row {i}"], pairs) for i, item in enumerate(contexts)}

    def alone(self, key: OpKey) -> Row:
        """Too high, as it carries a call and both ends, but above zero; flagged."""
        module = build(key.op, key.in_ch, key.out_ch, key.stride)
        timing = self.steady.time(lambda: {"": self.device.prepare(module, in_ch=key.in_ch, size=key.size)},
                                  SECONDS_A_GRAPH)[""]
        return Row.of(key, ms=timing.ms, raw_ms=timing.ms, p10_ms=timing.p10_ms, p90_ms=timing.p90_ms, n=timing.n,
                      how="flagged")

    def networks(self, plans: list[list[OpKey]], parts: Parts = (), keep: Keep = lambda parts: None,
                 ) -> tuple[np.ndarray, np.ndarray]:
        """Some networks at a time; from the start where that was a slow one.

        Both in the same interleaved rounds, or each in a process of its own where the device is timed in such: where a
        network's memory happens to lie is part of the noise then, and the mean of both has less of it.
        """
        fresh, done = self.whole.reference_ms is None, list(parts)
        self.drift = 0.0
        while (start := sum(part.shape[1] for part in done)) < len(plans):
            part = []
            for halves in ("a", "b") if self.device.fresh else ("ab",):
                part.append(self._networks(plans[start : start + TOGETHER], halves))
                self.drift = max(self.drift, self.whole.drift)
            done.append(np.concatenate(part))
            if fresh and self.whole.begun_slow():
                done, self.drift = [], 0.0
            keep(done)
        first, second = np.concatenate(done, axis=1)
        return first, second

    def _networks(self, plans: list[list[OpKey]], halves: str) -> np.ndarray:
        """[halves, networks]"""
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
