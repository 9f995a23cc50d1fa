"""Shows progress on stderr: a live bar in a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator

import rich.progress as bars
from rich.console import Console

from nas.progress import EVERY_S, Lines, TimedTask
from nas.text import printable


class TerminalProgress:
    """Shows tasks, which may nest, and notes; writes nothing to stdout."""

    def __init__(self, console: Console | None = None, every_s: float = EVERY_S,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or _Stderr(stderr=True)
        self._clock = clock
        self._lines = Lines(self.note, every_s, clock)
        self._live: bars.Progress | None = None

    def task(self, name: str, total: float, done: float = 0) -> contextlib.AbstractContextManager[TimedTask]:
        shown = self._bar if self._console.is_terminal else self._lines.task
        return shown(name, total, done)

    def note(self, text: str) -> None:
        self._console.print(self._shown(text), highlight=False, markup=False, emoji=False, soft_wrap=True)

    def _shown(self, text: str) -> str:
        return printable(text, self._console.encoding)

    @contextlib.contextmanager
    def _bar(self, name: str, total: float, done: float) -> Iterator[TimedTask]:
        with self._display() as live:
            bar = live.add_task(self._shown(name), total=total, completed=int(done), text="")

            def show(task: TimedTask) -> None:
                live.update(bar, completed=task.done, total=task.total, text=self._shown(task.text()))

            yield TimedTask(name, total, done, show, self._clock)
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
    """Writes to stderr; once nobody reads that any more, it writes nothing, and the program goes on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stderr.fileno())
        os.close(null)
