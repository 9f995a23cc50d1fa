"""The Python interface on the tiny space: what it returns is what the files of the run say, its keywords the command's.
"""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from tiny_search import SHORT
from tiny_space import TINY

import nas
from nas import api
from nas.cli import runs, tables
from nas.cli import train as cli_train
from nas.config.yaml import parsed
from nas.picks import Front, Pick, SearchRun
from nas.progress import NoProgress

SETTINGS = {key: parsed(value, key) for key, value in (word.split("=") for word in SHORT)}
QUIET = NoProgress()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("api")
    (path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return path


def search(folder: Path, name: str = "run", **given: Any) -> SearchRun:
    return api.search(space=folder / "tiny.yaml", target="gpu-v100", data="digits", size=16, limit=160,
                      threads=1, run=folder / name, settings=SETTINGS, progress=QUIET, **given)


@pytest.fixture(scope="module")
def run(folder: Path) -> SearchRun:
    return search(folder)


def test_the_front_is_that_of_the_run(run: SearchRun, folder: Path) -> None:
    written = json.loads((folder / "run/front.json").read_text())
    front = run.front
    assert [pick.id for pick in front] == [card["id"] for card in written["front"]] and len(front) == len(front.picks)
    assert [pick.id for pick in front.dominated] == [card["id"] for card in written["dominated"]]
    first, card = front[0], written["front"][0]
    assert list(first.ms) == ["gpu-v100"] and first.measured_ms == {"gpu-v100": None}
    assert (first.accuracy, first.macs, first.arch.id) == (card["accuracy"], card["macs"], first.id)
    assert front[first.id] is first and front[-1:] == front.picks[-1:]
    with pytest.raises(KeyError):
        front["nobody"]
    assert search(folder) == run and search(folder).front == front  # the same call finds it finished
    assert nas.load_run(str(folder / "run")).front == front


def test_a_run_that_is_not_that_far_says_so(run: SearchRun, folder: Path) -> None:
    (folder / "half").mkdir(exist_ok=True)
    for name in ("config.json", "environment.json"):
        (folder / "half" / name).write_bytes((folder / "run" / name).read_bytes())
    with pytest.raises(nas.UserError, match=r"front\.json: missing; this run is not that far"):
        _ = nas.load_run(folder / "half").front
    with pytest.raises(nas.UserError, match="no such run directory"):
        nas.load_run(folder / "nothing")


def test_a_model_is_the_exported_one(run: SearchRun) -> None:
    pick, x = run.front[-1], torch.randn(2, 3, 16, 16)
    session = onnxruntime.InferenceSession(str(pick.onnx), providers=["CPUExecutionProvider"])
    model = pick.load_model()
    assert not model.training
    with torch.no_grad():
        logits = model(x).numpy()
        maps = pick.load_model(features_only=True)(x)
    np.testing.assert_allclose(session.run(None, {"input": x.numpy()})[0], logits, rtol=1e-4, atol=1e-4)
    assert [tuple(one.shape[2:]) for one in maps] == sorted((tuple(one.shape[2:]) for one in maps), reverse=True)
    assert [one.shape[1] for one in maps] == [one.channels for one in pick.load_model(features_only=True).maps]


def test_the_best_within_a_budget(run: SearchRun) -> None:
    front = run.front
    assert front.best().select_accuracy == max(pick.select_accuracy for pick in front)
    fastest = front[0]
    assert front.best(ms=fastest.ms["gpu-v100"]) == fastest == front.best(fastest.ms["gpu-v100"], "gpu-v100")
    with pytest.raises(nas.UserError, match=f"the cheapest pick of .* takes {fastest.ms['gpu-v100']:.4g} ms on"):
        front.best(ms=0.9 * fastest.ms["gpu-v100"])
    with pytest.raises(nas.UserError, match="target cpu: the picks are for gpu-v100"):
        front.best(ms=1.0, target="cpu")


def test_a_front_as_a_table_and_as_a_picture(run: SearchRun, tmp_path: Path) -> None:
    front = run.front
    table = front.to_dataframe()
    assert list(table["id"]) == [pick.id for pick in front]
    assert list(table["ms gpu-v100"]) == [pick.ms["gpu-v100"] for pick in front]
    figure = front.plot()
    (axes,) = figure.axes
    assert "gpu-v100" in axes.get_xlabel()
    figure.savefig(tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes() == (front.run / "front.png").read_bytes()


def test_select_and_export(run: SearchRun, folder: Path) -> None:
    other = run.select(target="gpu-v100-b32", progress=QUIET)
    assert other.targets == ("gpu-v100-b32",) and not other[0].fine_tuned
    assert other[0].load_model()(torch.randn(2, 3, 16, 16)).shape == (2, 10)
    middle = sum(pick.ms["gpu-v100-b32"] for pick in (other[0], other[-1])) / 2
    assert run.select(target=["gpu-v100-b32"], budget_ms=middle, progress=QUIET)[0].ms["gpu-v100-b32"] <= middle
    (file,) = run.export(arch=run.front[0].id, out=folder / "out", progress=QUIET)
    assert file == folder / "out" / f"{run.front[0].id}.onnx" and file.is_file()
    with pytest.raises(nas.UserError, match="format=png: known are onnx"):
        run.export(format="png", progress=QUIET)  # type: ignore[arg-type]


def test_a_refused_search_leaves_no_directory(folder: Path) -> None:
    with pytest.raises(nas.UserError, match=r"(?i)budget"):
        search(folder, "refused", budget_ms=1e-6)
    assert not (folder / "refused").exists()
    with pytest.raises(nas.UserError, match="width: given twice"):
        api.search(target="gpu-v100", width=0.5, settings={"width": 1.0}, progress=QUIET)
    with pytest.raises(nas.UserError, match="until=sunset: a search can stop behind"):
        api.search(target="gpu-v100", until="sunset", progress=QUIET)


def test_values_are_taken_as_they_are(folder: Path) -> None:
    """What would be a comment, a number or a list in YAML is a folder's name here."""
    for name in ("images #1", "1e3", "[a, b]", "no"):
        with pytest.raises(nas.UserError) as error:
            api.search(target="gpu-v100", data="cifar10", data_dir=folder / name, run=folder / "none", progress=QUIET)
        assert str(folder / name) in str(error.value)


def test_a_pick_with_exits(folder: Path) -> None:
    front = search(folder, "exits", exits="joint").front
    picks = [pick for pick in (*front, *front.dominated) if pick.exits]
    assert picks and all(pick.onnx.is_file() and pick.arch.exits == pick.exits for pick in picks)
    with pytest.raises(nas.UserError, match=r"has early exits; nas\.exits\.Runtime"):
        picks[0].load_model()


def test_known_networks_are_built_by_name() -> None:
    assert "mobilenet_v2" in nas.list_models() and "ghost" in nas.list_spaces()
    assert {"gpu-v100", "macs", "params"} <= set(nas.list_targets())
    model = nas.create_model("mobilenet_v2@0.5", num_classes=7, size=32)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    features = nas.create_model("mobilenet_v2@0.5", size=64, features_only=True)
    assert [one.shape[1] for one in features(torch.randn(2, 3, 64, 64))] == [one.channels for one in features.maps]
    smallest, largest = (nas.create_model("ghost", size=32, num_classes=3, arch=arch)
                         for arch in ("smallest", "largest"))
    assert sum(p.numel() for p in smallest.parameters()) < sum(p.numel() for p in largest.parameters())
    with pytest.raises(nas.UserError, match=r"arch: ghost has .* networks; give largest, smallest or random"):
        nas.create_model("ghost")


def test_predict_and_measure_read_files(run: SearchRun) -> None:
    file = run.front[0].onnx
    assert nas.predict(file, target="macs", size=16).ms * 1e6 == pytest.approx(run.front[0].macs, rel=1e-6)
    with pytest.raises(nas.UserError, match="no such file"):
        nas.measure("nothing.onnx")
    judged = nas.evaluate(run, arch=run.front[0].id, progress=QUIET)
    assert judged.top1.share == pytest.approx(run.front[0].accuracy, abs=1e-9)


# what an interface calls otherwise, or has no use for
OTHERWISE = {"overrides": "settings", "as_json": "progress", "points": "budgets"}


@pytest.mark.parametrize(("function", "command", "others"), [
    (api.search, runs.search, {"no_baseline": None}), (api.train, cli_train.train, {}),
    (api.profile, tables.profile, {}),
    (api.measure, tables.measure, {"as_json": None}), (api.predict, tables.predict, {"as_json": None}),
    (api.evaluate, cli_train.evaluate, {}), (SearchRun.select, runs.select, {"run": "self", "ops": None}),
    (SearchRun.export, runs.export, {"run": "self", "ops": None, "kind": "format", "features": None})])
def test_keywords_are_those_of_the_command(function: Callable[..., Any], command: Callable[..., Any],
                                           others: dict[str, str | None]) -> None:
    called = {name: OTHERWISE.get(name, name) for name in inspect.signature(command).parameters} | others
    assert set(inspect.signature(function).parameters) == {name for name in called.values() if name}


@pytest.mark.parametrize(("function", "command"), [(api.profile, tables.profile), (api.measure, tables.measure),
                                                   (api.predict, tables.predict), (api.evaluate, cli_train.evaluate)])
def test_defaults_are_those_of_the_command(function: Callable[..., Any], command: Callable[..., Any]) -> None:
    ours, theirs = inspect.signature(function).parameters, inspect.signature(command).parameters
    shared = [name for name in ours if name in theirs and theirs[name].default is not inspect.Parameter.empty]
    assert shared and all((ours[name].default or None) == (theirs[name].default or None) for name in shared)


def test_every_setting_of_a_keyword_is_one_of_the_search() -> None:
    from nas.config.search import Config

    keywords = set(inspect.signature(api.search).parameters) - {"config", "ops", "until", "run", "settings", "progress"}
    assert keywords and keywords <= set(Config.model_fields)


def test_import_nas_is_light_and_complete() -> None:
    code = "import sys, nas; assert 'torch' not in sys.modules; print(*sorted(set(dir(nas)) & set(nas.__all__)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert shown == sorted(nas.__all__)
    assert (nas.Front, nas.Pick, nas.SearchRun) == (Front, Pick, SearchRun)
    assert all(callable(getattr(nas, name)) for name in nas.__all__)
    with pytest.raises(AttributeError):
        nas.nothing  # noqa: B018
