"""Fills the latency table of a device with the operators of one or several search spaces."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nas.latency.costs import LOCAL
from nas.latency.devices import file_name, opened
from nas.latency.profile import planned_s, profile
from nas.pipeline.exits.price import price_asking
from nas.plan import Layout
from nas.progress import Progress
from nas.text import duration


def profile_spaces(layouts: Sequence[Layout], out: Path | None, progress: Progress, *, device: str, threads: int,
                   batch: int, precision: str | None, remeasure: bool, validate: int, seed: int) -> dict[str, Any]:
    """Measures what a table lacks of every space, and returns the counts of the whole and of each.

    ``out`` is the table (default: the target's file under ``LOCAL``); ``validate`` random networks a space are measured
    and compared with their prediction. Raises UserError for a device that is not here.
    """
    machine = opened(device, threads, batch, precision)
    path = out or LOCAL / file_name(machine.name, precision, threads, batch)
    left = sum(planned_s(layout, path, machine, remeasure, validate) for layout in layouts)
    spaces = f"{len(layouts)} {'space' if len(layouts) == 1 else 'spaces'}"
    progress.note(f"{spaces} at {layouts[0].task.size} pixels on {machine.name}, into {path}: about {duration(left)} "
                  "where nothing else runs")
    done: dict[str, dict[str, Any]] = {}
    seconds: dict[str, float] = {}
    for layout in layouts:
        began = time.monotonic()
        done[layout.space] = profile(layout, path, device=machine, remeasure=remeasure, progress=progress,
                                     rng_seed=seed, validate=validate, tell=progress.note)
        price_asking(layout, path, remeasure, progress)
        seconds[layout.space] = time.monotonic() - began
    checks = [space["validation"] for space in done.values() if space.get("validation")]
    return {**list(done.values())[-1], "measured": sum(space["measured"] for space in done.values()),
            "validation": max(checks, key=lambda check: check["mape"], default=None), "spaces": done,
            "seconds": {**seconds, "total": sum(seconds.values())}}
