"""Workers of a selection: what they are started with, and how many threads each takes."""

from __future__ import annotations

import inspect
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from own_ops import DOUBLE, forgotten
from tiny_search import Quiet, config_of
from tiny_space import TINY
from typer.main import get_command

from nas import cli
from nas.ops import user_files
from nas.pipeline import search as pipeline
from nas.pipeline import worker, workers
from nas.run.directory import Run


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Started:
    """In place of a process: keeps what it was started with."""

    pid = 1
    calls: list[tuple[list[str], dict[str, str]]]

    def __init__(self, command: list[str], env: dict[str, str], **_: Any) -> None:
        self.calls.append((command, env))

    def terminate(self) -> None:
        pass

    wait = terminate


def test_a_crew_gets_the_files_of_operators_and_its_own_share_of_the_cores(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Started.calls = []
    monkeypatch.setattr(workers, "subprocess", SimpleNamespace(Popen=Started, DEVNULL=subprocess.DEVNULL))
    monkeypatch.setattr(workers, "_cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    file = tmp_path / "my_ops.py"
    file.write_text(DOUBLE)
    with forgotten():
        user_files.load([file])
        run = Run.open(tmp_path / "run", {})
        with workers.Crew(run, f"sqlite:///{tmp_path}/s.db", 3, "nas-x"):
            pass
    assert len(Started.calls) == 3
    for command, env in Started.calls:
        assert command[1:4] == ["-m", "nas.pipeline.worker", str(run.path)] and env["OMP_NUM_THREADS"] == "2"
        assert command[4:] == [f"sqlite:///{tmp_path}/s.db", str(os.getpid()), str(file)]


def test_a_worker_judges_with_the_operators_that_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(pipeline, "judge", lambda run, storage, progress, parent: seen.append(
        (run.path, storage, parent, [source.operators for source in user_files.loaded()])))
    file = tmp_path / "my_ops.py"
    file.write_text(DOUBLE)
    run = Run.open(tmp_path / "run", {})
    with forgotten():
        worker.main([str(run.path), "sqlite:///s.db", "7", str(file)])
    assert seen == [(run.path, "sqlite:///s.db", 7, [("double",)])]


def test_a_worker_says_in_a_line_what_it_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        worker.main([str(tmp_path / "none"), "sqlite:///s.db", "7"])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"{tmp_path / 'none'}: no such run directory; ")


@pytest.mark.parametrize(("parent", "expected"), [(7, 1), (None, 2)])
def test_a_worker_of_a_crew_takes_its_share_whatever_the_run_trained_with(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: None, parent: int | None, expected: int) -> None:
    seen: list[int] = []
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY))
    run = Run.open(tmp_path / "run", config_of(file).model_copy(update={"threads": 2}).to_json())
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(pipeline.supernet, "load_trained", lambda inputs: None)
    monkeypatch.setattr(pipeline.selection, "judge_for_others", lambda *_: seen.append(torch.get_num_threads()))
    pipeline.judge(run, "sqlite:///x.db", Quiet(), parent)
    assert seen == [expected]


def test_every_verb_that_reads_a_space_or_builds_the_networks_of_a_run_takes_ops() -> None:
    group: Any = get_command(cli.app)
    verbs = group.commands
    reads = {name for name, verb in verbs.items() if {"space", "spaces", "run"} & {one.name for one in verb.params}}
    assert reads >= {"search", "select", "judge", "export", "train", "compare", "report", "profile", "sample"}
    for name in {*reads, "exits", "spaces"}:
        assert "ops" in {one.name for one in verbs[name].params}, name
        assert "run_files(ops)" in inspect.getsource(inspect.unwrap(verbs[name].callback)), name
