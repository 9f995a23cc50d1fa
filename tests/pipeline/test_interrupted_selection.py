"""A selection that is interrupted while it judges goes on with the networks that are left, and ends the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_search import Quiet, comparable, config_of, searched_once, selected

from nas.arch import Arch
from nas.pipeline.selection import Judge
from nas.run.directory import Run
from nas.select import SELECTORS


@pytest.fixture(scope="module")
def made(space_file: Path, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "run"
    searched_once(config_of(space_file), path, shared)
    return path


def copied(made: Path, path: Path, **settings: Any) -> Run:
    """The run with other settings, and nothing judged yet."""
    shutil.copytree(made, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **settings}))
    (path / "log.jsonl").unlink()
    return Run.existing(path)


def select(run: Run) -> dict[str, Any]:
    return selected(run, ["gpu-v100"], [], Quiet())


def counting(monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None) -> list[str]:
    """Ids of what is judged from now on; Ctrl-C at one of them."""
    judged: list[str] = []
    judge = Judge.evaluate

    def evaluate(self: Judge, arch: Arch) -> Any:
        if len(judged) + 1 == stop_at:
            raise KeyboardInterrupt
        judged.append(arch.id)
        return judge(self, arch)

    monkeypatch.setattr(Judge, "evaluate", evaluate)
    return judged


@pytest.mark.parametrize("name", SELECTORS)
def test_the_same_command_judges_the_rest(made: Path, tmp_path: Path, name: str,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    whole = copied(made, tmp_path / "whole", selector=name)
    with monkeypatch.context() as patch:
        every = counting(patch)
        expected = select(whole)
    run = copied(made, tmp_path / "run", selector=name)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        first = counting(patch, stop_at=6)
        select(run)
    with monkeypatch.context() as patch:
        rest = counting(patch)
        assert comparable(select(run)) == comparable(expected)
    assert len(first) == 5 and [*first, *rest] == every and len(set(every)) == len(every) > 6
    with monkeypatch.context() as patch:
        again = counting(patch)
        assert comparable(select(run)) == comparable(expected) and again == []


def test_what_another_supernet_or_other_images_gave_counts_for_nothing(made: Path, tmp_path: Path,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    run = copied(made, tmp_path / "run")
    first = counting(monkeypatch)
    select(run)
    shutil.rmtree(run.path / "selections")
    lines = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    half = [{**line, "state": "nas-of-another"} if number % 2 else line for number, line in enumerate(lines)]
    (run.path / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in half))
    others = {line["id"] for line in half if line.get("state") == "nas-of-another" and line["event"] == "judged"}
    again = counting(monkeypatch)
    select(run)
    assert set(again) == others and 0 < len(others) < len(first)


def test_what_was_judged_before_is_said(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = copied(made, tmp_path / "run")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        counting(patch, stop_at=6)
        select(run)
    seen: list[dict[str, object]] = []

    class Told(Quiet):
        def advance(self, n: float = 1, **figures: object) -> None:
            super().advance(n, **figures)
            seen.append(figures)

    selected(run, ["gpu-v100"], [], Told())
    assert [step["judged before"] for step in seen if step.get("known")] == [1, 2, 3, 4, 5]
