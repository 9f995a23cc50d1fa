"""Runs the command line: one function a verb, one file a subject. Results go to stdout, everything else to stderr.

Whatever a verb needs is imported inside it, so that ``nas --help`` stays instant.
"""

from __future__ import annotations

import inspect
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import typer

from nas.cli import compare, exits, presets, report, runs, settings, spaces, streams, tables, train
from nas.cli.base import app
from nas.cli.output import one_line
from nas.cli.wording import CommandNames
from nas.errors import named_by
from nas.training import torchrun

__all__ = ["app", "compare", "exits", "main", "presets", "report", "runs", "settings", "spaces", "tables", "train"]


# as nas --help lists them: the road first, then what else there is to do with a run, with models, with tables
VERBS = ("profile", "search", "select", "export", "report", "judge", "exits", "train", "compare", "evaluate", "measure",
         "predict", "sample", "validate", "spaces", "presets", "targets", "settings")
app.registered_commands.sort(key=lambda command: VERBS.index(command.callback.__name__))  # type: ignore[union-attr]
for _command in app.registered_commands:  # whole in nas --help, too, where the parser would cut it
    _command.short_help = inspect.cleandoc(_command.callback.__doc__ or "").partition("\n")[0]


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Runs a command; exits with 0, with 2 and a line on stderr, with 130 if interrupted, with 141 if nobody reads."""
    streams.prepare()
    words = [_home(word) for word in (sys.argv[1:] if args is None else args)]
    if "OMP_WAIT_POLICY" not in os.environ:
        # PyTorch's idle threads spin long by default: beside any other load a step then takes 12 times as long
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # left alone in the background of a shell
        signal.signal(signal.SIGINT, _interrupt)
    if not torchrun.leads():  # torchrun's other processes help to train; the first alone reads settings, writes, prints
        torchrun.end_on_signals()
        if words[:1] == ["search"] and not {"-h", "--help"} & set(words):
            from nas.training import followers

            followers.follow()
        sys.exit(0)
    _seen.clear()
    try:
        with named_by(CommandNames(words)):
            code = app(args=words or ["--help"], prog_name="nas", standalone_mode=False)
        streams.finish()
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except (SystemExit, BrokenPipeError):  # the parser ends the former itself, with 1
        if streams.abandoned():
            sys.exit(streams.SIGPIPE)
        raise
    except Exception as error:
        if not _seen:  # numpy makes an ImportError of an interrupt while it is being imported
            text = one_line(error)
            if text is None or os.environ.get("NAS_DEBUG") == "1":
                raise
            streams.say(text)
            sys.exit(2)
        code = 130
    if code == 130:
        streams.say("interrupted: the same command continues")
    sys.exit(code if isinstance(code, int) else 0)


def _home(word: str) -> str:
    """Expands ~ in ``--out=~/x``, as every shell does in ``--out ~/x``: else there would be a folder of that name."""
    flag, equals, value = word.partition("=")
    return f"{flag}={os.path.expanduser(value)}" if equals and value.startswith("~") else os.path.expanduser(word)


_seen: list[int] = []  # signals that asked to stop


def _interrupt(signum: int, frame: object) -> NoReturn:
    _seen.append(signum)
    raise KeyboardInterrupt
