"""Records what a run spent its time on: a line in its log for each phase of each call, however the call ended."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from nas.errors import UserError
from nas.run import events
from nas.run.directory import Run
from nas.training.plateau import flat_at

SECONDS = "seconds.json"  # apart from the front, which is the same however often the work was interrupted
LEAST_S = 0.05  # a phase that was done already is no line


@contextlib.contextmanager
def phase(run: Run, name: str, place: str = "", clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Notes in the log what the work inside took, also where it is interrupted; ``place`` is of a selection.

    Work that was finished before is no line: what reads it again adds nothing.
    """
    began = clock()
    try:
        yield
    finally:
        seconds = clock() - began
        if seconds >= LEAST_S and not run.has(f"{place}{SECONDS}"):
            with contextlib.suppress(UserError):  # a full disk: the work itself says so
                run.log(events.Phase(name=name, place=place, seconds=round(seconds, 3)))


def spent(run: Run, place: str = "") -> dict[str, float]:
    """Returns the seconds of each phase over all calls, in the order in which they came, and their ``total``."""
    seconds: dict[str, float] = {}
    for event in run.events(events.Phase):
        if event.place == place:
            seconds[event.name] = round(seconds.get(event.name, 0.0) + event.seconds, 3)
    return {**seconds, "total": round(sum(seconds.values()), 3)}


def epochs(run: Run) -> list[events.Epoch]:
    """Returns the epochs of the supernet in order; one that was done again after a kill counts once, as it was last."""
    return list({(event.phase, event.epoch): event for event in run.events(events.Epoch)}.values())


def tuned(run: Run) -> list[events.FineTuned]:
    """Returns the epochs of the picks in the same way."""
    return list({(event.id, event.epoch): event for event in run.events(events.FineTuned)}.values())


def improving(run: Run, id: str) -> bool | None:
    """Tells whether the held-out loss of a network still fell when its learning rate began to: then a longer training
    would help. None where it was not looked at.
    """
    losses = [event.held_out for event in tuned(run) if event.id == id and event.held_out is not None]
    return flat_at(losses[:len(losses) // 2]) is None if losses else None


def finished(run: Run, place: str = "") -> dict[str, float]:
    """Returns ``spent`` as it was when the work was finished; the first call, once it is, records it in the run."""
    recorded: dict[str, float] = run.stage(f"{place}{SECONDS}", lambda: spent(run, place))
    return recorded
