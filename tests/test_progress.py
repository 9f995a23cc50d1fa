"""Progress: nothing, plain lines with the time left, or a bar in a terminal; never on stdout."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import sys

import pytest
from every import every
from rich.console import Console

from nas.cli.progress import TerminalProgress
from nas.progress import Joined, Lines, NoProgress, Progress
from nas.text import duration


class Clock:
    """Seconds that pass only when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def plain(clock: Clock) -> tuple[TerminalProgress, io.StringIO]:
    text = io.StringIO()
    return TerminalProgress(Console(file=text, width=60), every_s=5, clock=clock), text


def test_a_line_every_few_seconds_with_the_time_left() -> None:
    clock = Clock()
    progress, text = plain(clock)
    with progress.task("search", 10) as task:
        for step in range(1, 5):
            clock.now = 2.0 * step
            task.advance(loss=1.23456, step=step)
    progress.note("done [not markup]")
    # 3 of 10 steps in 6 s leave 7 * 2 s; 5 s after that line nothing more was due
    assert text.getvalue().splitlines() == ["search: 3/10, loss 1.235, step 3, 14 s left",
                                            "search: 4/10, loss 1.235, step 4, 12 s left, took 8 s",
                                            "done [not markup]"]


def test_the_last_count_is_told_once() -> None:
    clock = Clock()
    progress, text = plain(clock)
    with progress.task("export", 2) as task:
        for step in (6.0, 12.0):
            clock.now = step
            task.advance()
    assert text.getvalue().splitlines() == ["export: 1/2, 6 s left", "export: 2/2, took 12 s"]


def test_lines_become_rarer_with_time() -> None:
    clock = Clock()
    progress, text = plain(clock)
    with progress.task("search", 3600) as task:
        for second in range(1, 3601):
            clock.now = second
            task.advance()
    at = [int(line.split()[1].partition("/")[0]) for line in text.getvalue().splitlines()[:-1]]
    assert at[:6] == [5, 10, 15, 20, 25, 32] and len(at) < 35  # then each a quarter later than the one before
    assert every(later - before <= 0.25 * before + 5 for before, later in itertools.pairwise(at))


def test_what_an_earlier_call_did_is_not_counted_as_speed() -> None:
    clock = Clock()
    progress, _ = plain(clock)
    with progress.task("search", 100, done=90) as task:
        assert task.left_s is None
        clock.now = 4
        task.advance(2)
        assert task.left_s == 16  # 8 left at 2 s each
        task.advance(8)
        assert task.text() == "100/100"
        task.reach(110, 120)
        assert task.text() == "110/120, 2 s left"  # 20 in 4 s


def test_steps_known_from_an_earlier_call_are_not_counted_as_speed() -> None:
    clock = Clock()
    progress, _ = plain(clock)
    with progress.task("select", 36) as task:
        for _ in range(30):
            task.advance(known=True)
        assert (task.done, task.left_s, task.text()) == (30, None, "30/36")
        clock.now = 10
        task.advance()
        assert task.text() == "31/36, 50 s left"  # 5 left at 10 s each


def test_how_much_there_is_may_turn_out_later_or_never() -> None:
    clock = Clock()
    progress, text = plain(clock)
    with progress.task("nothing to do", 0):
        pass
    with progress.task("rows", 0) as task:
        clock.now = 6
        task.reach(1, 3)
    assert text.getvalue().splitlines() == ["nothing to do: took 0 s", "rows: 1/3, 12 s left",
                                            "rows: 1/3, 12 s left, took 6 s"]


def test_a_bar_in_a_terminal_and_tasks_that_nest() -> None:
    text = io.StringIO()
    progress = TerminalProgress(Console(file=text, force_terminal=True, width=80))
    with progress.task("outer", 2) as outer:
        with progress.task("inner", 1) as inner:
            inner.advance()
        outer.advance(1, loss=0.5)
        progress.note("a note")
    with pytest.raises(KeyboardInterrupt), progress.task("again", 1):
        raise KeyboardInterrupt
    assert all(part in text.getvalue() for part in ("outer", "inner", "a note", "again"))
    assert text.getvalue().endswith("\x1b[2K") and "\x1b[?25h" in text.getvalue()  # cleaned up, cursor shown


def test_nothing_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with TerminalProgress().task("work", 1) as task:
        task.advance()
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("work: 1/1")


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (100, "2 min"), (7500, "2 h 05 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def work(progress: Progress) -> float:
    with progress.task("rows", 0, done=1) as task:
        task.advance(2, known=True, ms=0.5)
        task.reach(7, 9)
        progress.note("a note")
        return task.done


def test_no_progress_counts_and_shows_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert work(NoProgress()) == 7 and capfd.readouterr() == ("", "")


def test_a_library_writes_plain_lines_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    assert work(Lines()) == 7
    out, err = capfd.readouterr()
    assert out == "" and re.fullmatch(r"a note\nrows: 7/9, ms 0\.5, .*took 0 s\n", err)


def test_a_reader_of_the_lines_who_is_gone_stops_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as nobody:
        monkeypatch.setattr(sys, "stderr", nobody)
        assert work(Lines()) == 7
        with contextlib.suppress(BrokenPipeError):
            nobody.close()


def test_parts_of_a_task_are_one_task() -> None:
    """What an earlier call did of a part says nothing about the speed of the whole."""
    clock, lines = Clock(), list[str]()
    progress = Lines(lines.append, every_s=0.0, clock=clock)
    with progress.task("train", 10.0) as whole:
        joined = Joined(whole, progress)
        with joined.task("first", 4.0, 3.0) as part:
            clock.now += 10.0
            part.advance(1.0)
        assert (part.done, whole.done, whole.left_s) == (4.0, 4.0, 60.0)
        with joined.task("second", 6.0) as part:
            clock.now += 10.0
            part.reach(2.0, 6.0)
        joined.note("a note")
        assert (part.done, whole.done) == (2.0, 6.0)
    assert [line.partition(":")[0] for line in lines] == ["train"] * 3 + ["a note", "train"]
