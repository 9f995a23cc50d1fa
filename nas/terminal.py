"""What every verb shares: results on stdout and nothing else there, a user's mistake as one line."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from nas.errors import UserError


def print_result(work: Callable[[], Any], as_json: bool, show: Callable[[Any], None]) -> None:
    """Prints what ``work`` returns, as one JSON value or through ``show``."""
    with _chatter_to_stderr():
        result = work()
    if as_json:
        print(json.dumps(result, allow_nan=False))
    else:
        show(result)


def one_line(error: Exception) -> str | None:
    """What to tell the user; None for a mistake that is ours."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and (error.filename is not None or error.errno in (errno.ENOSPC, errno.EDQUOT)):
        return f"{error.filename}: {error.strerror}" if error.filename is not None else str(error.strerror)
    usage = getattr(error, "format_message", None)  # of typer's parser
    if usage is None:
        return None
    command = getattr(getattr(error, "ctx", None), "command_path", "nas")
    return f"{' '.join(usage().split()).rstrip('.')}; see {command} --help"


@contextlib.contextmanager
def _chatter_to_stderr() -> Iterator[None]:
    """What libraries print, from C too, must not mix with the result."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
