"""Prints results on stdout, and nothing else there, and a user's mistake as one line."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from nas.errors import UserError
from nas.files import plain
from nas.text import printable


def print_result(work: Callable[[], Any], as_json: bool, show: Callable[[Any], None]) -> None:
    """Prints what ``work`` returns, as one JSON value or through ``show``."""
    with _chatter_to_stderr():
        result = work()
    if as_json:
        print(json.dumps(result, allow_nan=False, default=plain))
    else:
        show(result)


def one_line(error: Exception) -> str | None:
    """Returns what to tell the user of a mistake of theirs; None for a mistake that is ours."""
    text = str(error) if isinstance(error, UserError) else _told(error)
    return None if text is None else printable(" ".join(text.split()), sys.stderr.encoding)


def _told(error: Exception) -> str | None:
    if isinstance(error, OSError) and (error.filename is not None or error.errno in (errno.ENOSPC, errno.EDQUOT)):
        return f"{error.filename}: {error.strerror}" if error.filename is not None else str(error.strerror)
    usage = getattr(error, "format_message", None)  # of typer's parser
    if usage is None:
        return None
    command = getattr(getattr(error, "ctx", None), "command_path", "nas")
    return f"{' '.join(usage().split()).rstrip('.')}; see {command} --help"


def checked_budgets(values: list[float] | None) -> list[float]:
    """Returns the budgets sorted, each once. Raises UserError for one that is not a positive number."""
    for value in values or []:
        if not 0 < value < float("inf"):
            raise UserError(f"--budget-ms: {value:g} is not a number of milliseconds above 0")
    return sorted(set(values or []))


def named_budgets(texts: list[str] | None) -> tuple[list[float], dict[str, float]]:
    """Splits budgets into those of the first target (``2.0``), sorted, and those of named targets (``cpu=2.0``).

    Raises UserError for what is no time and for a target that is named twice.
    """
    plain: list[float] = []
    named: dict[str, float] = {}
    for text in texts or []:
        name, _, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            raise UserError(f"--budget-ms {text}: write a number of milliseconds, or TARGET=MS") from None
        checked_budgets([value])
        if name in named:
            raise UserError(f"--budget-ms {text}: {name} is given twice")
        if name:
            named[name] = value
        else:
            plain.append(value)
    return checked_budgets(plain), named


def checked_width(value: float | None) -> float:
    """Returns the width, 1 where none is given. Raises UserError for an absurd one."""
    if value is not None and not 0.05 <= value <= 8:
        raise UserError(f"--width: {value:g} is outside 0.05 .. 8")
    return 1.0 if value is None else value


@contextlib.contextmanager
def _chatter_to_stderr() -> Iterator[None]:
    """Sends what libraries print, from C too, to stderr, so that it does not mix with the result."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
