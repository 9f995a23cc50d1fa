"""A command as a user types it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from pretended import Call

from nas import cli


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """``call("search", ...) -> (exit code, stdout, stderr)`` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NAS_DEBUG", raising=False)
    before = signal.getsignal(signal.SIGTERM)

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.main(words)
        return (int(end.value.code or 0), *capfd.readouterr())

    yield run
    signal.signal(signal.SIGTERM, before)
