"""Times graphs on any device, in interleaved rounds, and reduces the runs to robust figures.

A device turns a module into a ``Run``: a call that executes it once and returns the milliseconds that it took.

A shared machine is now fast and now slow, by up to 1.4 times and for tenths of seconds to minutes, and not by the same
factor for all operators: no scaling repairs that. So a figure is what a graph takes while the machine is fast: a low
percentile over many short visits, taken again where the yardstick says that the machine was never fast meanwhile.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import geometric_mean
from typing import Protocol

import numpy as np
from torch import nn

from nas.latency.fresh import fresh
from nas.latency.meta import Conditions

Run = Callable[[], float]
WARM = 2  # runs of an operator's graph that fill the caches
COUNTED = 2  # runs in a row after them
LOW = 5  # percentile that stands for "the" latency: others on the machine only ever add time
RECURS = 6  # graphs between two visits of a yardstick
PATIENCE = 6  # repeated measurements on a slow machine, before its speed is taken as it is
SLOW = 1.05  # times the yardstick's reference: above it the machine is slow
FAST = 0.95  # times the reference: below it the reference comes from a slow machine


@dataclass(frozen=True)
class Timing:
    """Holds milliseconds of ``n`` runs: the 5th percentile (``ms``), and the 10th and 90th."""

    ms: float
    p10_ms: float
    p90_ms: float
    n: int

    def scaled(self, factor: float) -> Timing:
        return Timing(self.ms * factor, self.p10_ms * factor, self.p90_ms * factor, self.n)

    @property
    def unstable(self) -> bool:
        """Tells whether fewer than a tenth of the runs came near the figure."""
        return self.p10_ms > 1.1 * self.ms


class Device(Protocol):
    """Runs modules and ONNX files on one device and times them."""

    name: str
    align: int  # channels of its vector unit: widths that fill it are another curve than those that do not
    reads_onnx: bool  # whether ``load`` has an answer
    fresh: bool  # whether graphs are prepared and timed in a process of their own

    def prepare(self, module: nn.Module, *, in_ch: int, size: int) -> Run:
        """Compiles a module for input [batch, in_ch, size, size]."""

    def load(self, path: Path, size: int | None = None) -> Run:
        """Loads a finished ONNX file, with ``size`` where it leaves height and width open.

        Raises UserError for one that does not run here.
        """

    def conditions(self) -> Conditions:
        """Returns what the figures depend on: processor, runtime, version, threads, batch, precision, ..."""


def interleaved(runs: Mapping[str, Run], *, seconds: float, rng: random.Random, min_rounds: int = 8,
                max_rounds: int = 100, warm: int = WARM, recurring: Sequence[str] = (),
                recurring_warm: int = WARM) -> dict[str, Timing]:
    """Times all graphs in rounds of bursts in random order, so that drift of the machine hits all alike.

    As many rounds as fit into ``seconds``, within the limits; a burst begins with ``warm`` runs that are not counted.
    The ``recurring`` graphs take turns at several bursts a round.
    """
    others, turn = [name for name in runs if name not in recurring], itertools.cycle(recurring)
    visits = -(-len(others) // RECURS) / max(1, len(recurring))
    before = {name: recurring_warm if name in recurring else warm for name in runs}
    once = sum(min(run() for _ in range(2)) * (visits if name in recurring else 1) * (before[name] + COUNTED)
               for name, run in runs.items())
    rounds = max(min_rounds, min(max_rounds, int(seconds * 1e3 / max(once, 1e-6))))
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for i, name in enumerate(rng.sample(others, len(others))):
            for visited in [next(turn), name] if recurring and i % RECURS == 0 else [name]:
                samples[visited] += [runs[visited]() for _ in range(before[visited] + COUNTED)][before[visited]:]
    return {name: summary(values) for name, values in samples.items()}


def repeated(run: Run, *, min_runs: int = 50, min_seconds: float = 1.0) -> Timing:
    """Times one graph by itself, after runs that warm it up."""
    for _ in range(5):
        run()
    samples: list[float] = []
    start = time.monotonic()
    while len(samples) < min_runs or time.monotonic() - start < min_seconds:
        samples.append(run())
    return summary(samples)


class Steady:
    """Times graphs beside yardsticks, which tell how fast the device was meanwhile.

    A measurement is taken again while it was slow; what is left of the slow-down is divided out, as if it were the same
    for all graphs. Figures so are of a device on which the yardsticks take ``reference_ms``. Several, because a graph
    that is prepared anew is up to 2 % faster or slower than before (where its memory happens to lie).
    """

    def __init__(self, yardsticks: Callable[[], Sequence[Run]], reference_ms: Sequence[float] | None,
                 rng: random.Random, warm: int = WARM, apart: bool = False) -> None:
        """Takes the yardsticks' milliseconds when the device is fast; None: those of the first measurement.

        ``warm`` runs of a yardstick are not counted.
        ``apart``: every measurement prepares its graphs and the yardsticks in a process of its own; else the yardsticks
        are prepared once.
        """
        self._yardsticks = yardsticks if apart else cache(yardsticks)
        self._rng, self._patience, self.drift, self._apart = rng, PATIENCE, 1.0, apart
        self.spread = 1.0  # 90th over 5th percentile of the yardsticks' runs, at the last attempt
        self.reference_ms, self._warm = list(reference_ms) if reference_ms else None, warm

    def was_slow_at_first(self) -> bool:
        """Tells whether the last measurement was faster than the reference, and makes it the reference then."""
        if self.drift >= FAST or self.reference_ms is None:
            return False
        self.reference_ms, self.drift = [ms * self.drift for ms in self.reference_ms], 1.0
        return True

    @property
    def slow(self) -> bool:
        """Tells whether the device was slow during all of the last measurement."""
        return self.drift > SLOW

    def time(self, prepare: Callable[[], Mapping[str, Run]], seconds: float, max_rounds: int = 100, warm: int = WARM,
             again: int = PATIENCE // 2) -> dict[str, Timing]:
        """Times what ``prepare`` returns, scaled to the speed of the reference; ``drift`` is then how slow it was.

        While the device is slow, it is measured ``again`` at once, so many times at most and as far as patience goes.
        """
        attempts = [self._attempt(prepare, seconds, max_rounds, warm)]
        while attempts[-1][0] > SLOW and self._patience and len(attempts) <= again:
            self._patience -= 1
            attempts.append(self._attempt(prepare, seconds, max_rounds, warm))
        self._patience += len(attempts) == 1 and attempts[0][0] <= SLOW and self._patience < PATIENCE
        self.drift, timings = min(attempts, key=lambda attempt: attempt[0])
        return {name: timing.scaled(1 / self.drift) for name, timing in timings.items()}

    def _attempt(self, prepare: Callable[[], Mapping[str, Run]], seconds: float, max_rounds: int, warm: int,
                 ) -> tuple[float, dict[str, Timing]]:
        rng = random.Random(self._rng.random())

        def timed() -> tuple[list[Timing], dict[str, Timing]]:
            yardsticks = {f"yardstick {i}": run for i, run in enumerate(self._yardsticks())}
            timings = interleaved({**prepare(), **yardsticks}, seconds=seconds, rng=rng, max_rounds=max_rounds,
                                  warm=warm, recurring=list(yardsticks), recurring_warm=self._warm)
            return [timings.pop(name) for name in yardsticks], timings

        beside, timings = fresh(timed) if self._apart else timed()
        now_ms = [timing.ms for timing in beside]
        self.spread = geometric_mean(timing.p90_ms / timing.ms for timing in beside)
        self.reference_ms = self.reference_ms or now_ms
        return geometric_mean(now / then for now, then in zip(now_ms, self.reference_ms, strict=True)), timings


def summary(samples_ms: list[float]) -> Timing:
    """Reduces the milliseconds of many runs to percentiles."""
    low, p10, p90 = np.percentile(samples_ms, [LOW, 10, 90])
    return Timing(float(low), float(p10), float(p90), len(samples_ms))
