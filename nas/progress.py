"""Tells how far long work is while it runs, as plain lines with the time left, or not at all."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from nas.text import duration, printable

EVERY_S = 5.0  # the shortest time between two plain lines of a task
GROWING = 0.25  # or this share of the time a task has taken so far: hours of work are some dozens of lines


class Task(Protocol):
    """Takes reports of how far one piece of work is."""

    done: float

    def advance(self, n: float = 1, *, known: bool = False, **figures: object) -> None:
        """Counts ``n`` more steps as done; figures (``loss=0.3``) stand until they are given anew.

        Steps that were ``known`` from an earlier call say nothing about the speed.
        """

    def reach(self, done: float, total: float, **figures: object) -> None:
        """Sets how much is done and how much there is, for work that learns its total only on the way."""


class Progress(Protocol):
    """Takes reports of long work: its tasks, which may nest, and notes."""

    def task(self, name: str, total: float, done: float = 0) -> contextlib.AbstractContextManager[Task]:
        """Opens a task of ``total`` steps, of which an earlier call did ``done``.

        ``with progress.task("profile", rows) as task: task.advance(1, ms=0.3)``.
        """
        ...

    def note(self, text: str) -> None:
        """Shows one line that stays on the screen."""


class Count:
    """Counts the steps of a task and shows nothing."""

    def __init__(self, done: float = 0) -> None:
        self.done = done

    def advance(self, n: float = 1, *, known: bool = False, **figures: object) -> None:
        self.done += n

    def reach(self, done: float, total: float, **figures: object) -> None:
        self.done = done


class NoProgress:
    """Takes reports and shows nothing: for tests and for calls from Python."""

    def task(self, name: str, total: float, done: float = 0) -> contextlib.AbstractContextManager[Task]:
        return contextlib.nullcontext(Count(done))

    def note(self, text: str) -> None:
        pass


class Joined:
    """Is a progress whose tasks, one after the other, are parts of one task: of ``task``."""

    def __init__(self, task: Task, progress: Progress) -> None:
        self._task, self._progress = task, progress

    @contextlib.contextmanager
    def task(self, name: str, total: float, done: float = 0) -> Iterator[Task]:
        """Opens a part of the task; what an earlier call did of it counts as known."""
        if done:
            self._task.advance(done, known=True)
        yield _Part(self._task, done)

    def note(self, text: str) -> None:
        self._progress.note(text)


class _Part:
    """Counts the steps of a part, and with them those of the whole."""

    def __init__(self, whole: Task, done: float) -> None:
        self.done, self._whole = done, whole

    def advance(self, n: float = 1, *, known: bool = False, **figures: object) -> None:
        self.done += n
        self._whole.advance(n, known=known, **figures)

    def reach(self, done: float, total: float, **figures: object) -> None:
        self._whole.advance(done - self.done, known=False, **figures)
        self.done = done


class TimedTask:
    """Keeps ``done`` of ``total`` steps, the latest figures and the time left, and calls ``show`` at each step."""

    def __init__(self, name: str, total: float, done: float, show: Callable[[TimedTask], None],
                 clock: Callable[[], float]) -> None:
        self.name, self.total, self.done = name, total, done
        self.figures: dict[str, object] = {}
        self._show, self._clock = show, clock
        self._began, self._before = clock(), done  # what an earlier call did says nothing about the speed

    def advance(self, n: float = 1, *, known: bool = False, **figures: object) -> None:
        self.done += n
        self._before += n if known else 0
        self.figures |= figures
        self._show(self)

    def reach(self, done: float, total: float, **figures: object) -> None:
        self.total, self.done = total, done
        self.figures |= figures
        self._show(self)

    @property
    def left_s(self) -> float | None:
        """Returns the seconds left at the speed so far; None before the first step."""
        made = self.done - self._before
        return (self.total - self.done) * (self._clock() - self._began) / made if made > 0 else None

    def text(self) -> str:
        """Returns how far the task is, as in ``120/600, loss 1.234, 3 min left``."""
        count = [f"{round(self.done, 2):g}/{self.total:g}"] if self.total else []  # 0: not known yet
        parts = [*count, *(f"{name} {_figure(value)}" for name, value in self.figures.items())]
        left = self.left_s
        return ", ".join([*parts, f"{duration(left)} left"] if left is not None and self.done < self.total else parts)


def to_stderr(line: str) -> None:
    """Writes a line to stderr; if its reader is gone, the work goes on."""
    with contextlib.suppress(BrokenPipeError):
        print(printable(line, sys.stderr.encoding), file=sys.stderr, flush=True)


class Lines:
    """Writes a plain line every few seconds, and each note, with ``write``: by default to stderr, never to stdout."""

    def __init__(self, write: Callable[[str], None] = to_stderr, every_s: float = EVERY_S,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._write, self._every_s, self._clock = write, every_s, clock

    def note(self, text: str) -> None:
        self._write(text)

    @contextlib.contextmanager
    def task(self, name: str, total: float, done: float = 0) -> Iterator[TimedTask]:
        began = last = self._clock()

        def show(task: TimedTask) -> None:
            nonlocal last
            if task.total and task.done >= task.total:  # the last line says it
                return
            if self._clock() - last >= max(self._every_s, GROWING * (last - began)):
                last = self._clock()
                self.note(f"{name}: {task.text()}")

        task = TimedTask(name, total, done, show, self._clock)
        yield task
        took = f"took {duration(self._clock() - began)}"
        self.note(f"{name}: {', '.join(filter(None, (task.text(), took)))}")


def _figure(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
