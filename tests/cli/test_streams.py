"""Every command's quick form on closed, broken and narrow streams: no traceback, and an exit code that is true."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

from nas.cli import VERBS

QUICK = [["--help"], ["--version"], ["settings"], ["settings", "--json"]]
HELPS = [[verb, "--help"] for verb in VERBS]
FILE = "caf\u00e9\u4e2d[red]\x1b[31m.onnx"
NO_RUN = "no such run directory; nas search makes one and prints it"
STREAMS = [  # redirection, encoding, exit code of what answers, and of a mistake
    (">&-", "utf-8", 2, 2),
    ("2>&-", "utf-8", 0, 2),
    ("<&- >&- 2>&-", "utf-8", 2, 2),
    (">/dev/full", "utf-8", 2, 2),
    ("2>/dev/full", "utf-8", 0, 2),
    ("| true", "utf-8", 141, 2),
    ("", "ascii", 0, 2),
    ("", "latin-1", 0, 2),
]
SHOWN = [(">&-", "utf-8"), ("| true", "utf-8"), ("", "ascii")]  # for what takes seconds: closed, broken and narrow


def shell(words: Sequence[str], redirect: str, encoding: str) -> subprocess.CompletedProcess[bytes]:
    """The sleep lets the reader of a pipe go away first."""
    wait = "sleep 0.3; " if "|" in redirect else ""
    command = f'{{ {wait}"$0" -m nas "$@"; }} {redirect}'
    return subprocess.run(["bash", "-o", "pipefail", "-c", command, sys.executable, *words], capture_output=True,
                          env=os.environ | {"PYTHONIOENCODING": encoding, "COLUMNS": "80"})


@pytest.mark.parametrize(("words", "redirect", "encoding", "code"), [
    *((words, *case[:3]) for words in QUICK for case in STREAMS),
    *((["targets"], *case[:3]) for case in STREAMS if case[:2] in SHOWN),
    *((words, *STREAMS[0][:3]) for words in HELPS)], ids=str)
def test_an_answer(words: list[str], redirect: str, encoding: str, code: int) -> None:
    done = shell(words, redirect, encoding)
    assert done.returncode == code and b"Traceback" not in done.stderr and b"Error" not in done.stderr
    done.stdout.decode(encoding)
    if redirect == ">&-":
        assert done.stderr == b"nas: standard output is closed: the result cannot be written\n"
    elif redirect == "| true":
        assert (done.stdout, done.stderr) == (b"", b"")
    elif code == 0:
        assert done.stdout


@pytest.mark.parametrize(("verb", "message", "redirect", "encoding", "code"), [
    *(("report", NO_RUN, *case[:2], case[3]) for case in STREAMS),
    *(("measure", "no such file", *case[:2], case[3]) for case in STREAMS if case[:2] in SHOWN)], ids=str)
def test_a_mistake(verb: str, message: str, redirect: str, encoding: str, code: int) -> None:
    done = shell([verb, FILE], redirect, encoding)
    assert done.returncode == code and done.stdout == b"" and b"Traceback" not in done.stderr
    if "2>" not in redirect:
        cafe, middle = {"ascii": (r"\xe9", r"\u4e2d"), "latin-1": ("\u00e9", r"\u4e2d")}.get(encoding,
                                                                                          ("\u00e9", "\u4e2d"))
        assert done.stderr.decode(encoding) == f"nas: caf{cafe}{middle}[red]\\x1b[31m.onnx: {message}\n"
