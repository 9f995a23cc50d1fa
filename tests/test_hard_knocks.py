"""What happens to runs on the way: disks that fill up at any write, that may not be written, moves, other versions."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from every import every
from tiny_search import SHORT, Quiet, comparable, config_of, searched, searched_once, selected, weights

from nas import cli, files
from nas.cli.output import one_line
from nas.errors import UserError
from nas.latency import costs
from nas.latency.meta import Meta
from nas.latency.table import LatencyTable
from nas.picks import front_of_run
from nas.pipeline import search as pipeline
from nas.pipeline import supernet
from nas.report.page import page
from nas.report.run_data import collect
from nas.run import directory as runs
from nas.run.directory import Run
from nas.run.records import Front
from nas.run.settings import settings_of


@pytest.fixture(scope="module")
def finished(space_file: Path, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("run") / "whole"
    return path, searched_once(config_of(space_file), path, shared)


class FullDisk:
    """Every file is refused the first time that it is to be written, half of it done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refused: list[str] = []
        write, mend = files._write, runs._mend

        def full(path: Path, content: Callable[[Any], object]) -> None:
            def half(file: Any) -> None:
                content(file)
                self.refuse(path.name, lambda: file.truncate(file.tell() // 2))

            write(path, half)

        def full_log(file: Any) -> None:
            mend(file)
            self.refuse("log.jsonl", lambda: (file.write(b'{"time": "20'), file.flush()))

        monkeypatch.setattr(files, "_write", full)
        monkeypatch.setattr(runs, "_mend", full_log)

    def refuse(self, name: str, half: Callable[[], object]) -> None:
        if name not in self.refused:
            self.refused.append(name)
            half()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_is_full_at_any_file(finished: tuple[Path, dict[str, Any]], space_file: Path, tmp_path: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supernet, "CHECKPOINT_EVERY_S", 0.0)
    disk, path, result, refusals = FullDisk(monkeypatch), tmp_path / "run", None, 0
    while result is None:
        before = len(disk.refused)
        try:
            result = searched(config_of(space_file), path)
        except (UserError, OSError) as error:
            refusals += 1
            line, now = one_line(error), disk.refused[before:]  # with it the log's line of a phase that took long
            assert line and "No space left on device" in line and now[0] in line and set(now[1:]) <= {"log.jsonl"}
            assert not list(path.rglob("*.tmp")) and refusals < 40
            assert all(json.loads(file.read_bytes()) is not None for file in path.rglob("*.json"))
    files_of_all_stages = {"config.json", "log.jsonl", "supernet.pt", "picks.json", "finetune.pt", "card.json",
                           "weights.safetensors", "model.onnx", "front.json", "front.png"}
    assert 15 <= refusals <= len(disk.refused) <= refusals + 1 and files_of_all_stages <= set(disk.refused)
    assert comparable(result) == comparable(finished[1]) and weights(path) == weights(finished[0])


def read_only(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """As a file system that is mounted so: nothing in it can be opened for writing."""
    whole, made = Path.open, files.tempfile.mkstemp

    def opens(self: Path, mode: str = "r", *more: Any, **named: Any) -> Any:
        if self.is_relative_to(path) and set(mode) & set("wa+x"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))
        return whole(self, mode, *more, **named)

    def makes(dir: Path, **named: Any) -> Any:
        if Path(dir).is_relative_to(path):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), f"{dir}/.temporary")
        return made(dir=dir, **named)

    monkeypatch.setattr(Path, "open", opens)
    monkeypatch.setattr(files.tempfile, "mkstemp", makes)


SEARCH = ["search", "--target", "gpu-v100", "--space", "tiny.yaml", "--data", "digits", "--size", "16", "--limit",
          "160", "--threads", "1"]


@pytest.mark.parametrize("command", [[*SEARCH, *SHORT], ["select"], ["export"], ["report"]], ids=lambda words: words[0])
def test_a_run_that_may_not_be_written_is_one_line(
        finished: tuple[Path, dict[str, Any]], space_file: Path, tmp_path: Path, command: list[str],
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run"
    shutil.copytree(finished[0], path)
    read_only(monkeypatch, path)
    words = [str(space_file) if word == "tiny.yaml" else word for word in command[1:]]
    with pytest.raises(SystemExit) as end:
        cli.main([command[0], *(["--run"] if words else []), str(path), *words])
    last = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2 and "Read-only file system" in last and str(path) in last and "temporary" not in last


def test_a_run_that_may_not_be_written_is_still_shown(finished: tuple[Path, dict[str, Any]], tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    read_only(monkeypatch, finished[0])
    with pytest.raises(SystemExit) as end:
        cli.main(["report", str(finished[0]), "--out", str(tmp_path / "page.html")])
    assert not end.value.code and "</html>" in (tmp_path / "page.html").read_text()


def test_a_run_that_was_moved_half_way_ends_the_same(finished: tuple[Path, dict[str, Any]], space_file: Path,
                                                     tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supernet, "CHECKPOINT_EVERY_S", 0.0)
    for number, stop_at in enumerate((30, 40, None)):
        place = tmp_path / f"place {number}" / "run"
        if number:
            place.parent.mkdir()
            shutil.move(tmp_path / f"place {number - 1}" / "run", place)
        if stop_at is not None:
            with pytest.raises(KeyboardInterrupt):
                searched(config_of(space_file), place, Quiet(stop_at))
        else:
            result = searched(config_of(space_file), place)
    assert comparable(result) == comparable(finished[1]) and weights(place) == weights(finished[0])


def test_a_finished_run_is_all_there_where_its_space_and_images_are_not(
        finished: tuple[Path, dict[str, Any]], shared: Path, tmp_path: Path) -> None:
    """On another machine: no file of the space; exported, selected from, shown and loaded from Python."""
    path, gone = tmp_path / "elsewhere" / "run", tmp_path / "gone.yaml"
    shutil.copytree(finished[0], path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "space": str(gone)}))
    run, card = Run.existing(path), finished[1]["front"][-1]
    (file,) = pipeline.export(run, card["id"], None, tmp_path / "out", Quiet()).to_json()["files"]
    assert file["predicted_ms"] == card["ms"] and file["relative_diff"] < 1e-4
    chosen = selected(run, ["gpu-v100"], [card["ms"]["gpu-v100"]], Quiet())
    assert every(one["ms"]["gpu-v100"] <= card["ms"]["gpu-v100"] for one in chosen["front"])
    page_data = collect(run)
    assert not page_data["notes"] and not any(str(made) in page(page_data) for made in (finished[0].parent, shared))
    pick = front_of_run(path, run.read("front.json", Front))[-1]
    assert pick.load_model() is not None and pick.onnx.is_file() and pick.onnx.is_relative_to(path)


def test_a_run_of_another_format_is_refused_with_the_reason(finished: tuple[Path, dict[str, Any]], space_file: Path,
                                                            tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(finished[0], path)
    environment = json.loads((path / "environment.json").read_text())
    assert environment["format"] == 2
    (path / "environment.json").write_text(json.dumps({**environment, "format": 3, "nas": "9.0"}))
    for read in (lambda: Run.existing(path), lambda: searched(config_of(space_file), path)):
        with pytest.raises(UserError, match=r"run: format 3 of a run, made by nas 9\.0; this is nas .* knows format 2"):
            read()
    before = {key: value for key, value in environment.items() if key != "format"}  # of before it was written
    (path / "environment.json").write_text(json.dumps(before))
    with pytest.raises(UserError, match="format 1 of a run"):
        Run.existing(path)
    (path / "environment.json").write_text(json.dumps(environment))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "quantum": True}))
    with pytest.raises(UserError, match=r"config\.json: quantum: unknown key; a run of another version: use"):
        settings_of(Run.existing(path))


def test_a_table_of_another_format_is_refused_with_the_reason(tmp_path: Path) -> None:
    LatencyTable("mine", Meta(device="cpu")).save(tmp_path / "mine.json")
    model = json.loads((costs.folder("latency_tables") / "gpu-v100.json").read_bytes())
    table = json.loads((tmp_path / "mine.json").read_bytes())
    for value in (model, table):
        (tmp_path / "other.json").write_text(json.dumps({**value, "format": 2}))
        with pytest.raises(UserError, match=r"other\.json: format 2, of another version of nas"):
            costs.load(str(tmp_path / "other.json"))


RUNS = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np, onnxruntime
for file in sys.argv[2:]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    mean, std = (np.array([*map(float, metadata[key].split())], np.float32)[:, None, None] for key in ("mean", "std"))
    pixels = np.arange(3 * 16 * 16, dtype=np.float32).reshape(3, 16, 16) % 256
    logits = session.run(None, {"input": ((pixels / 255 - mean) / std)[None]})[0]
    print(metadata["classes"].split("\\n")[int(logits.argmax())], float(logits.sum()))
print(sorted(name for name in ("torch", "nas", "onnx", "scipy") if name in sys.modules))
"""


def test_an_exported_file_needs_onnxruntime_and_numpy_only(finished: tuple[Path, dict[str, Any]],
                                                           tmp_path: Path) -> None:
    """A Python without site-packages, and a folder with these two packages in it."""
    for package in (np, onnxruntime):
        home = Path(package.__file__).parent
        for part in (home, home.parent / f"{home.name}.libs"):
            if part.is_dir():
                (tmp_path / part.name).symlink_to(part)
    paths = [str(finished[0] / card["onnx"]) for card in finished[1]["front"]]
    command = [sys.executable, "-I", "-S", "-c", RUNS, str(tmp_path), *paths]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *answers, loaded = done.stdout.splitlines()
    assert loaded == "[]" and len(answers) == len(paths)
    for answer in answers:
        name, total = answer.split()
        assert name in {str(digit) for digit in range(10)} and np.isfinite(float(total))
