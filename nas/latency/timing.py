"""The clock-independent part of every measurement: interleaved rounds and robust figures.

A device turns a module into a ``Run``: a call that executes it once and returns the milliseconds that it took.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import nn

Run = Callable[[], float]
BURST = 5  # runs of one graph in a row; the first warms the caches and is not counted
LOW = 20  # percentile that stands for "the" latency: other processes only ever add time


@dataclass(frozen=True)
class Timing:
    """Milliseconds of ``n`` runs: the 20th percentile (``ms``), and the 10th and 90th."""

    ms: float
    p10_ms: float
    p90_ms: float
    n: int

    def scaled(self, factor: float) -> Timing:
        return Timing(self.ms * factor, self.p10_ms * factor, self.p90_ms * factor, self.n)

    @property
    def unstable(self) -> bool:
        """Whether even the fast half of the runs is spread by more than a tenth."""
        return self.ms - self.p10_ms > 0.1 * self.p10_ms


class Device(Protocol):
    """What ``nas.latency.profile`` measures on."""

    name: str
    align: int  # channels of its vector unit: widths that fill it are another curve than those that do not
    reads_onnx: bool  # whether ``load`` has an answer

    def prepare(self, module: nn.Module, *, in_ch: int, size: int) -> Run:
        """Compiles a module for input [batch, in_ch, size, size]."""

    def load(self, path: Path) -> Run:
        """A finished ONNX file. Raises UserError for one that does not run here."""

    def conditions(self) -> dict[str, Any]:
        """What the figures depend on: processor, runtime, version, threads, batch, precision, ..."""


def interleaved(runs: Mapping[str, Run], *, seconds: float, rng: random.Random, min_rounds: int = 8,
                max_rounds: int = 40) -> dict[str, Timing]:
    """Times all graphs in rounds of bursts in random order, so that drift of the machine hits all alike.

    As many rounds as fit into ``seconds``, within the limits.
    """
    once = sum(min(run() for _ in range(2)) for run in runs.values())
    rounds = max(min_rounds, min(max_rounds, int(seconds * 1e3 / max(BURST * once, 1e-6))))
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name in rng.sample(list(runs), len(runs)):
            samples[name] += [runs[name]() for _ in range(BURST)][1:]
    return {name: summary(values) for name, values in samples.items()}


def repeated(run: Run, *, min_runs: int = 50, min_seconds: float = 1.0) -> Timing:
    """Of one graph alone, warm."""
    for _ in range(BURST):
        run()
    samples: list[float] = []
    start = time.monotonic()
    while len(samples) < min_runs or time.monotonic() - start < min_seconds:
        samples.append(run())
    return summary(samples)


class Steady:
    """A device that is slowed down alike for all graphs by what else runs on it, with that slow-down divided out.

    A yardstick runs in the rounds of every measurement; figures are scaled to where it takes ``reference_ms``.
    """

    def __init__(self, yardstick: Run, reference_ms: float | None, rng: random.Random) -> None:
        self._yardstick, self._rng, self.drift = yardstick, rng, 1.0
        alone = interleaved({"": yardstick}, seconds=1.0, rng=rng, max_rounds=200)[""].ms if reference_ms is None else 0
        self.reference_ms = reference_ms or alone

    def time(self, runs: Mapping[str, Run], seconds: float, max_rounds: int = 40) -> dict[str, Timing]:
        """``interleaved``, scaled; ``drift`` is then how much slower than at the reference the device was."""
        timings = interleaved({**runs, "yardstick": self._yardstick}, seconds=seconds, rng=self._rng,
                              max_rounds=max_rounds)
        self.drift = timings.pop("yardstick").ms / self.reference_ms
        return {name: timing.scaled(1 / self.drift) for name, timing in timings.items()}


def summary(samples_ms: list[float]) -> Timing:
    low, p10, p90 = np.percentile(samples_ms, [LOW, 10, 90])
    return Timing(float(low), float(p10), float(p90), len(samples_ms))
