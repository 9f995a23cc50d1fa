"""How a command ends: a mistake is one line and 2, a signal 130, what is ours keeps its traceback."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from pretended import Call, pretend

from nas import cli
from nas.errors import UserError


def raiser(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(("error", "code", "expected"), [
    (UserError("two\nlines"), 2, "nas: two lines\n"),
    (PermissionError(13, "Permission denied", "x/y"), 2, "nas: x/y: Permission denied\n"),
    (OSError(28, "No space left on device"), 2, "nas: No space left on device\n"),
    (KeyboardInterrupt(), 130, "nas: interrupted: the same command continues\n"),
])
def test_what_goes_wrong_inside_is_one_line(call: Call, monkeypatch: pytest.MonkeyPatch, error: BaseException,
                                            code: int, expected: str) -> None:
    pretend(monkeypatch, "nas.latency.costs", targets=raiser(error))
    assert call("targets") == (code, "", expected)


def test_our_own_mistakes_and_debugging_keep_the_traceback(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "nas.latency.costs", targets=raiser(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["targets"])
    pretend(monkeypatch, "nas.latency.costs", targets=raiser(UserError("x")))
    monkeypatch.setenv("NAS_DEBUG", "1")
    with pytest.raises(UserError):
        cli.main(["targets"])


def heard() -> None:
    """A shell's background jobs begin with SIGINT ignored, and what they start inherits that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    code = ("import sys, time, types, nas.pipeline; m = types.ModuleType('nas.pipeline.search')\n"
            "sys.modules['nas.pipeline.search'] = nas.pipeline.search = m\n"
            "def search(*_):\n    print('ready', file=sys.stderr, flush=True); time.sleep(3600)\n"
            "m.search, m.refuse_settings, m.STAGES = search, (lambda config: None), ()\n"
            "from nas.cli import main; main(['search', '--target', 'cpu', '--json'])")
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, preexec_fn=heard) as process:
        assert process.stderr is not None and process.stderr.readline() == "ready\n"
        process.send_signal(number)
        out, err = process.communicate()
    assert (process.returncode, out, err) == (130, "", "nas: interrupted: the same command continues\n")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), typer.Abort()])
def test_an_interrupt_that_the_parser_does_not_see_ends_with_130(call: Call, monkeypatch: pytest.MonkeyPatch,
                                                                 error: BaseException) -> None:
    monkeypatch.setattr(cli, "app", raiser(error))
    assert call("targets") == (130, "", "nas: interrupted: the same command continues\n")


def test_an_interrupted_import_is_an_interrupt(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def importing(*_: Any) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None  # as numpy does

    pretend(monkeypatch, "nas.latency.costs", targets=importing)
    assert call("targets") == (130, "", "nas: interrupted: the same command continues\n")
    pretend(monkeypatch, "nas.latency.costs", targets=raiser(UserError("x")))
    assert call("targets") == (2, "", "nas: x\n")


def test_python_m_nas() -> None:
    done = subprocess.run([sys.executable, "-m", "nas", "nope"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith("nas: No such command")


@pytest.mark.parametrize(("word", "meant"), [
    ("--out=~/x", "--out=/home/me/x"), ("~/x", "/home/me/x"), ("data=~/x", "data=/home/me/x"), ("--out=a~", "--out=a~"),
    ("--out", "--out"), ("", ""), ("a=b=~", "a=b=~")])
def test_a_home_is_expanded_wherever_it_stands(monkeypatch: pytest.MonkeyPatch, word: str, meant: str) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert cli._home(word) == meant
