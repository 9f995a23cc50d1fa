"""Repairs standard streams as a shell may leave them: closed, broken, or of another encoding than UTF-8."""

from __future__ import annotations

import io
import os
import select
import sys

from nas.errors import UserError

SIGPIPE = 141  # of a process whose reader went away: 128 + 13, as a shell counts


class Lost(io.TextIOBase):
    """Stands in for a closed stdout, and remembers whether there was something to say."""

    encoding = "utf-8"
    written = False

    def write(self, text: str, /) -> int:
        self.written = self.written or bool(text)
        return len(text)

    def fileno(self) -> int:
        return 1


def prepare() -> None:
    """Puts the null device where a stream is closed: the next file that is opened would take its place.

    What an encoding lacks is escaped from now on, so that no character stops the program.
    """
    for number, stream in enumerate((sys.stdin, sys.stdout, sys.stderr)):
        if stream is None:
            _to_null(number)
    if sys.stdout is None:
        sys.stdout = Lost()
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as long as the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def finish() -> None:
    """Writes what is left. Raises UserError where stdout is closed and there was a result, OSError where it is broken.
    """
    if isinstance(sys.stdout, Lost) and sys.stdout.written:
        raise UserError("standard output is closed: the result cannot be written")
    sys.stdout.flush()


def say(text: str) -> None:
    """Prints one line on stderr, if anybody reads it."""
    try:
        print(f"nas: {text}", file=sys.stderr, flush=True)
    except OSError:
        _to_null(2)


def abandoned() -> bool:
    """Says whether the reader of stdout went away (``| head -1``); what is left is then dropped, without a word."""
    poll = select.poll()
    poll.register(1, 0)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
        return False
    _to_null(1)
    return True


def _to_null(number: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)
    os.set_inheritable(number, True)
