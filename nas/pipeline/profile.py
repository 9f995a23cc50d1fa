"""Fills the latency table of a device with the operators of one or several search spaces."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from nas.files import shipped
from nas.latency.costs import LOCAL
from nas.latency.devices import file_name, open_device
from nas.latency.profile import Profiled, planned_s, profile
from nas.pipeline.exits.price import measure_exit_ms
from nas.plan import Task, layout
from nas.progress import Progress
from nas.space import Space
from nas.text import duration


class ProfiledSpaces(Profiled):
    """Says what a table was filled with for several spaces, in all and for each; its validation is the worst of all."""

    spaces: dict[str, Profiled]
    seconds: dict[str, float] = Field(description="by space, and the total")


def profile_spaces(spaces: Sequence[str], task: Task, out: Path | None, progress: Progress, *, device: str,
                   width: float, exits: bool, threads: int, batch: int, precision: str | None, remeasure: bool,
                   validate: int, seed: int) -> ProfiledSpaces:
    """Measures the operators of spaces that a table lacks, and returns the counts of the whole and of each space.

    ``spaces`` are names or files (none: all that are shipped), at a factor ``width`` of their channels. ``out`` is the
    table (default: the target's file under ``LOCAL``); ``validate`` random networks a space are measured and compared
    with their prediction. Raises UserError for a device that is not here.
    """
    layouts = [layout(Space.load(name).scaled(width), task, exits)
               for name in spaces or shipped("search_spaces", ".yaml")]
    machine = open_device(device, threads, batch, precision)
    path = out or LOCAL / file_name(machine.name, precision, threads, batch)
    left = sum(planned_s(at, path, machine, remeasure, validate) for at in layouts)
    count = f"{len(layouts)} {'space' if len(layouts) == 1 else 'spaces'}"
    progress.note(f"{count} at {task.size} pixels on {machine.name}, into {path}: about {duration(left)} "
                  "where nothing else runs")
    done: dict[str, Profiled] = {}
    seconds: dict[str, float] = {}
    for at in layouts:
        began = time.monotonic()
        done[at.space] = profile(at, path, device=machine, remeasure=remeasure, progress=progress,
                                 rng_seed=seed, validate=validate, tell=progress.note)
        measure_exit_ms(at, path, remeasure, progress)
        seconds[at.space] = time.monotonic() - began
    checks = [space.validation for space in done.values() if space.validation]
    last = list(done.values())[-1]
    return ProfiledSpaces(
        table=last.table, rows=last.rows, flagged=last.flagged, correction=last.correction, knot_error=last.knot_error,
        measured=sum(space.measured for space in done.values()),
        validation=max(checks, key=lambda check: check.mape, default=None), spaces=done,
        seconds={**seconds, "total": sum(seconds.values())})
