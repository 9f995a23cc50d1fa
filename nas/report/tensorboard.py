"""Writes the curves of a run as TensorBoard event files, with the times at which they were logged."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from nas.errors import UserError, setting
from nas.run import timeline
from nas.run.directory import Run
from nas.run.events import Event


def write_scalars(run: Run, folder: Path) -> int:
    """Writes every number that was logged of every epoch as TensorBoard scalars, and returns how many these are.

    They are called ``supernet/NAME``, and ``finetune/NAME`` in a folder of each pick. Those of an earlier call are
    replaced. Raises UserError where TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(f"{setting('tensorboard')}: needs the package tensorboard: pip install tensorboard") from None
    for place in ("supernet", "finetune"):
        for old in (folder / place).rglob("events.out.tfevents.*"):
            old.unlink()
    total = 0
    for place, scalars in _scalars_by_folder(run).items():
        writer: Any = SummaryWriter(str(folder / place))
        with writer:
            for tag, value, step, when in scalars:
                writer.add_scalar(tag, value, step, when)
        total += len(scalars)
    return total


def _scalars_by_folder(run: Run) -> dict[str, list[tuple[str, float, int, float]]]:
    """Returns, by folder, the scalars of a run, each as (tag, value, step, seconds since 1970).

    Each network has a folder, so that TensorBoard draws the curves of all in one plot. Steps of the supernet count on
    over its phases. An epoch that was done again after a kill counts once.
    """
    scalars: dict[str, list[tuple[str, float, int, float]]] = {}
    for step, epoch in enumerate(timeline.epochs(run)):
        scalars.setdefault("supernet", []).extend(_scalars("supernet", epoch, step))
    for tuned in timeline.tuned(run):
        folder = f"finetune/{tuned.id.replace('..', '_')}"
        scalars.setdefault(folder, []).extend(_scalars("finetune", tuned, tuned.epoch))
    return scalars


def _scalars(group: str, event: Event, step: int) -> list[tuple[str, float, int, float]]:
    """Returns every number of one line of the log as (tag, value, step, seconds since 1970)."""
    when = datetime.datetime.fromisoformat(event.time).timestamp()
    return [(f"{group}/{name}", value, step, when) for name, value in _numbers(event) if name != "epoch"]


def _numbers(record: Any) -> Iterator[tuple[str, float]]:
    """Yields the numbers of a record and of the records within it, by name."""
    for name, value in vars(record).items():
        if is_dataclass(value):
            yield from ((f"{name}/{inner}", number) for inner, number in _numbers(value))
        elif isinstance(value, int | float):
            yield name, float(value)
