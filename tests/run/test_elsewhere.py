"""A run is used from another folder, or moved, and so are its images, tables and spaces."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_search import SHORT

from nas import cli, paths
from nas.config.search import default_run_dir, resolve
from nas.latency.costs import find
from nas.run.directory import Run

Nas = Callable[..., Any]
COMMAND = ["--space", "tiny.yaml", "--target", "phone.json", "--data", "pictures", "--size", "16", "--threads", "1",
           *(text for text in SHORT if not text.startswith(("budgets", "evaluations"))), "budgets=1", "evaluations=4"]


def pictures(folder: Path, classes: tuple[str, ...] = ("dark", "light"), n: int = 14, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for image in range(n):
            pixels = rng.integers(80 * number, 80 * number + 80, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{image:02}.png")
    return folder


@pytest.fixture(scope="module")
def made(space_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(folder that the search was typed in, its run there)"""
    home = tmp_path_factory.mktemp("home")
    pictures(home / "pictures")
    shutil.copy(space_file, home / "tiny.yaml")
    (home / "phone.json").write_bytes(find("gpu-v100").read_bytes())
    before = Path.cwd()
    os.chdir(home)
    try:
        with pytest.raises(SystemExit) as end:
            cli.main(["search", *COMMAND, "--json"])
    finally:
        os.chdir(before)
    assert end.value.code == 0
    (run,) = (home / "runs").iterdir()
    return home, run


@pytest.fixture
def nas(capfd: pytest.CaptureFixture[str]) -> Nas:
    """Runs a command: what it printed as JSON, or its one line of refusal."""
    def call(*words: str | Path) -> Any:
        with pytest.raises(SystemExit) as end:
            cli.main(list(map(str, words)))
        out, err = capfd.readouterr()
        if end.value.code == 0:
            return json.loads(out)
        assert end.value.code == 2 and "Traceback" not in err
        return err.strip().splitlines()[-1]
    return call


@pytest.fixture
def moved(made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the run and its images on a machine where nothing of the first is; we stand beside them."""
    home, run = made
    shutil.copytree(run, tmp_path / "there/run")
    shutil.copytree(home / "pictures", tmp_path / "there/images")
    os.rename(home, home.with_name("gone"))
    monkeypatch.chdir(tmp_path / "there")
    yield tmp_path / "there"
    os.rename(home.with_name("gone"), home)


def test_settings_name_no_relative_path(made: tuple[Path, Path]) -> None:
    home, run = made
    settings = Run.existing(run).config
    assert (settings["data"], settings["space"], settings["target"]) == (
        str(home / "pictures"), str(home / "tiny.yaml"), [str(home / "phone.json")])


def test_the_same_images_have_the_same_directory_from_anywhere(made: tuple[Path, Path], tmp_path: Path,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    home, run = made
    (tmp_path / "link").symlink_to(home / "pictures")
    monkeypatch.setenv("HOME", str(home))
    names = set()
    for place, data in ((home, "pictures"), (home, "./pictures/"), (home / "pictures", "."), (tmp_path, "link"),
                        (tmp_path, "~/pictures"), (tmp_path, str(home / "pictures"))):
        monkeypatch.chdir(place)
        flags = {"space": str(home / "tiny.yaml"), "target": [str(home / "phone.json")], "data": data, "size": 16,
                 "threads": 1}
        names.add(default_run_dir(resolve(None, COMMAND[10:], flags)).name)
    assert names == {run.name}


def test_every_command_that_reads_images_works_from_another_folder(made: tuple[Path, Path], tmp_path: Path, nas: Nas,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = made[1]
    front = nas("select", run, "--budgets", "1", "--json")
    pick = front["budgets"][0]["id"]
    assert front["target"] == [str(made[0] / "phone.json")]
    assert nas("export", run, "--format", "int8-onnx", "--arch", pick, "--out", "out", "--json")["files"]
    assert nas("evaluate", run, "--arch", pick, "--json")["n"] > 0
    assert nas("exits", run, "--arch", pick, "--epochs", "1", "--json")["folder"].startswith(str(run))
    assert not (tmp_path / "data").exists()


def test_a_moved_run_names_the_flag_and_goes_on_with_it(moved: Path, nas: Nas) -> None:
    pick = json.loads((moved / "run/front.json").read_text())["front"][0]["id"]
    commands = (("select", "run", "--budgets", "1"), ("evaluate", "run", "--arch", pick),
                ("export", "run", "--format", "int8-onnx", "--arch", pick),
                ("exits", "run", "--arch", pick, "--epochs", "1"))
    for words in commands:
        assert "--data" in nas(*words, "--json") and "where nothing is now" in nas(*words, "--json")
    for words in (commands[1], commands[3]):
        assert nas(*words, "--data", "images", "--json")
        assert "where nothing is now" in nas("select", "run", "--json")  # these only read the run
    chosen = nas(*commands[0], "--target", "phone.json", "--data", "images", "--json")  # as the run called its table
    assert chosen["budgets"] and chosen["target"] == json.loads((moved / "run/front.json").read_text())["target"]
    assert Run.existing(moved / "run").config["data"] == str(moved / "images")
    assert nas(*commands[2], "--json")["files"] and nas(*commands[1], "--json")["n"] > 0  # it knows now


def test_a_search_goes_on_where_everything_was_moved(moved: Path, made: tuple[Path, Path], nas: Nas) -> None:
    """The same command with the paths of the new machine, in the copied run; the table is told by its name."""
    shutil.copy(moved / "run/space.yaml", "tiny.yaml")
    shutil.copy(next((moved / "run/tables").iterdir()), "phone.json")
    before = json.loads((moved / "run/front.json").read_text())
    (moved / "run/front.json").unlink()
    words = [str(moved / "images") if word == "pictures" else word for word in COMMAND]
    again = nas("search", *words, "--run", "run", "--json")
    assert {key: again[key] for key in before} == before
    assert "began with train.lr = 0.003, now 0.1" in nas("search", *words, "train.lr=0.1", "--run", "run", "--json")


@pytest.mark.parametrize(("change", "said"), [
    (lambda to: pictures(to, seed=1), "as many of each class, with other pixels"),
    (lambda to: pictures(to, n=15), "15 of the class 'dark', and there were 14"),
    (lambda to: pictures(to, classes=("dark", "bright")), "the class 'bright' is new"),
    (lambda to: pictures(to, classes=("dark", "light", "red")), "the class 'red' is new"),
])
def test_other_images_are_refused_with_what_differs(made: tuple[Path, Path], tmp_path: Path, nas: Nas, said: str,
                                                    change: Callable[[Path], Path]) -> None:
    home, run = made
    other, settings = change(tmp_path / "other"), (run / "config.json").read_bytes()
    pick = json.loads((run / "front.json").read_text())["front"][0]["id"]
    for words in (("select", run, "--budgets", "1"), ("export", run, "--format", "tflite", "--arch", pick),
                  ("exits", run, "--arch", pick, "--out", tmp_path / "exits"), ("judge", run, "--storage", "sqlite://")):
        assert said in nas(*words, "--data", other, *(["--json"] if words[0] != "judge" else []))
    assert (run / "config.json").read_bytes() == settings
    assert nas("evaluate", run, "--arch", pick, "--data", home / "pictures", "--json")["n"] > 0


def test_an_export_that_reads_no_images_takes_none(made: tuple[Path, Path], nas: Nas) -> None:
    assert "reads no images" in nas("export", made[1], "--data", made[0] / "pictures")


def test_cifar10_is_found_again_where_it_lay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve(None, [], {"target": ["cpu"], "data": "cifar10", "data_dir": "archive"}).data_dir == str(
        tmp_path / "archive")


@pytest.mark.parametrize(("key", "typed", "meant"), [
    ("data", "digits", "digits"), ("data", "cifar10", "cifar10"), ("data", "./digits", "{}/digits"),
    ("data", "digitz", "digitz"), ("data", "nowhere/pictures", "{}/nowhere/pictures"), ("target", "cpu", "cpu"),
    ("target", ["cpu", "t.json"], ["cpu", "{}/t.json"]), ("space", "ghost", "ghost"),
    ("space", "ghost@0.5", "ghost@0.5"), ("space", "s.yaml", "{}/s.yaml"), ("space", "s.yaml@0.5", "{}/s.yaml@0.5"),
    ("init", "runs/a", "{}/runs/a"), ("seed", 3, 3), ("data", "", ""),
])
def test_paths_are_made_absolute_and_names_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str,
                                                   typed: Any, meant: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    (tmp_path / "s.yaml").touch()
    assert paths.located(key, typed) == json.loads(json.dumps(meant).replace("{}", str(tmp_path.resolve())))


@given(st.text(max_size=30))
def test_any_text_is_located_once_and_stays_there(text: str) -> None:
    for locate in (paths.absolute, paths.images, paths.target, paths.space):
        assert locate(locate(text)) == locate(text)
    base, width = paths.space_parts(text)
    assert text == (f"{base}@{width}" if width or base != text else base)
