"""Progress on stderr with the time left: a live bar in a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Callable, Iterator

import rich.progress as bars
from rich.console import Console

from nas.text import duration as duration
from nas.text import printable

EVERY_S = 5.0  # between two plain lines of a task
GROWING = 0.25  # of what a task has taken so far: hours of work are some dozens of lines


class Task:
    """One piece of work: ``done`` of ``total`` steps, and the latest figures."""

    def __init__(self, name: str, total: float, done: float, show: Callable[[Task], None],
                 clock: Callable[[], float]) -> None:
        self.name, self.total, self.done = name, total, done
        self.figures: dict[str, object] = {}
        self._show, self._clock = show, clock
        self._began, self._before = clock(), done  # what an earlier call did says nothing about the speed

    def advance(self, n: float = 1, known: bool = False, **figures: object) -> None:
        """``n`` more steps are done; figures stand until they are given anew.

        Steps that were ``known``, from an earlier call, say nothing about the speed.
        """
        self.done += n
        self._before += n if known else 0
        self.figures |= figures
        self._show(self)

    def reach(self, done: float, total: float, **figures: object) -> None:
        """For work that says how far it is, and only then how much there is."""
        self.total, self.done = total, done
        self.figures |= figures
        self._show(self)

    @property
    def left_s(self) -> float | None:
        """Seconds left at the speed so far; None before the first step."""
        made = self.done - self._before
        return (self.total - self.done) * (self._clock() - self._began) / made if made > 0 else None

    def text(self) -> str:
        """``120/600, loss 1.234, 3 min left``."""
        count = [f"{round(self.done, 2):g}/{self.total:g}"] if self.total else []  # 0: not known yet
        parts = [*count, *(f"{name} {_figure(value)}" for name, value in self.figures.items())]
        left = self.left_s
        return ", ".join([*parts, f"{duration(left)} left"] if left is not None and self.done < self.total else parts)


class Progress:
    """Shows tasks, which may nest, and notes. Nothing goes to stdout."""

    def __init__(self, console: Console | None = None, every_s: float = EVERY_S,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or _Stderr(stderr=True)
        self._every_s, self._clock = every_s, clock
        self._live: bars.Progress | None = None

    @contextlib.contextmanager
    def task(self, name: str, total: float, done: float = 0) -> Iterator[Task]:
        """``with progress.task("profile", rows) as task: task.advance(1, ms=0.3)``; ``done`` by an earlier call."""
        shown = self._bar if self._console.is_terminal else self._lines
        with shown(name, total, done) as task:
            yield task

    def note(self, text: str) -> None:
        """One line that stays."""
        self._console.print(self._shown(text), highlight=False, markup=False, emoji=False, soft_wrap=True)

    def _shown(self, text: str) -> str:
        return printable(text, self._console.encoding)

    @contextlib.contextmanager
    def _lines(self, name: str, total: float, done: float) -> Iterator[Task]:
        began = last = self._clock()

        def show(task: Task) -> None:
            nonlocal last
            if task.total and task.done >= task.total:  # the last line says it
                return
            if self._clock() - last >= max(self._every_s, GROWING * (last - began)):
                last = self._clock()
                self.note(f"{name}: {task.text()}")

        task = Task(name, total, done, show, self._clock)
        yield task
        took = f"took {duration(self._clock() - began)}"
        self.note(f"{name}: {', '.join(filter(None, (task.text(), took)))}")

    @contextlib.contextmanager
    def _bar(self, name: str, total: float, done: float) -> Iterator[Task]:
        with self._display() as live:
            bar = live.add_task(self._shown(name), total=total, completed=int(done), text="")

            def show(task: Task) -> None:
                live.update(bar, completed=task.done, total=task.total, text=self._shown(task.text()))

            yield Task(name, total, done, show, self._clock)
            live.remove_task(bar)

    @contextlib.contextmanager
    def _display(self) -> Iterator[bars.Progress]:
        if self._live is not None:  # a task inside a task
            yield self._live
            return
        spinner = bars.SpinnerColumn("dots" if self._console.encoding.startswith("utf") else "line")
        columns = (spinner, bars.TextColumn("{task.description}", markup=False), bars.BarColumn(),
                   bars.TextColumn("{task.fields[text]}", markup=False))
        with bars.Progress(*columns, console=self._console, transient=True) as self._live:
            try:
                yield self._live
            finally:
                self._live = None


class _Stderr(Console):
    """Goes quiet when nobody reads it any more; the work goes on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stderr.fileno())
        os.close(null)


class NoProgress(Progress):
    """Shows nothing."""

    def __init__(self) -> None:
        super().__init__(Console(file=io.StringIO(), quiet=True), clock=time.monotonic)


def _figure(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
