"""The road from Python, on the tiny space: what it returns is what the files of the run say."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from every import every
from tiny_search import SHORT, Quiet
from tiny_space import TINY

from nas import api
from nas.errors import UserError
from nas.plan import Task, candidates, layout

SETTINGS = dict(word.split("=") for word in SHORT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("api")
    (path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return path


def search(folder: Path) -> api.Front:
    return api.search(SETTINGS, space=str(folder / "tiny.yaml"), target="gpu-v100", size=16, limit=160, threads=1,
                      run=folder / "run", progress=Quiet())


@pytest.fixture(scope="module")
def found(folder: Path) -> api.Front:
    return search(folder)


def test_the_front_is_that_of_the_run(found: api.Front, folder: Path) -> None:
    written = json.loads((folder / "run/front.json").read_text())
    assert [pick.id for pick in found.front] == [card["id"] for card in written["front"]]
    assert [pick.id for pick in found.dominated] == [card["id"] for card in written["dominated"]]
    (first, card) = found.front[0], written["front"][0]
    assert first.ms == card["ms"] and list(first.ms) == ["gpu-v100"] and first.measured_ms == {"gpu-v100": None}
    assert (first.accuracy, first.macs, first.arch.id) == (card["accuracy"], card["macs"], first.id)
    assert search(folder) == found  # the same call finds it finished
    assert api.front(folder / "run") == found and api.front(str(folder / "run")).front[0].id == first.id
    (folder / "half").mkdir(exist_ok=True)
    (folder / "half" / "config.json").write_bytes((folder / "run" / "config.json").read_bytes())
    with pytest.raises(UserError, match=r"front\.json: missing; this run is not that far"):
        api.front(folder / "half")


def test_the_network_is_the_exported_one(found: api.Front) -> None:
    pick, x = found.front[-1], torch.randn(2, 3, 16, 16)
    session = onnxruntime.InferenceSession(str(pick.onnx), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        logits = pick.network()(x).numpy()
    np.testing.assert_allclose(session.run(None, {"input": x.numpy()})[0], logits, rtol=1e-4, atol=1e-4)


def test_a_pick_within_a_budget(found: api.Front) -> None:
    most = max(found.front, key=lambda pick: pick.select_accuracy)
    assert found.within(1e9).select_accuracy == most.select_accuracy
    fastest = found.front[0]
    assert found.within(fastest.ms["gpu-v100"]) == fastest
    with pytest.raises(UserError, match=f"the cheapest pick of .* takes {fastest.ms['gpu-v100']:.4g} ms on gpu-v100"):
        found.within(0.9 * fastest.ms["gpu-v100"])


def test_select_and_export(found: api.Front, folder: Path) -> None:
    other = api.select(folder / "run", "gpu-v100-b32", progress=Quiet())
    assert other.targets == ("gpu-v100-b32",) and not other.front[0].fine_tuned
    assert other.front[0].network()(torch.randn(2, 3, 16, 16)).shape == (2, 10)
    (file,) = api.export(folder / "run", found.front[0].id, out=folder / "out",
                         progress=Quiet())
    assert file == folder / "out" / f"{found.front[0].id}.onnx" and file.is_file()


def test_space_and_costs(folder: Path) -> None:
    plan = layout(api.space(str(folder / "tiny.yaml")), Task(16, 1, 10))
    assert every(ms > 0 for ms in api.costs("gpu-v100").ms_many(candidates(plan)))
    with pytest.raises(UserError, match="--target gpu-v10"):
        api.costs("gpu-v10")


def test_a_refused_search_leaves_no_directory(folder: Path) -> None:
    with pytest.raises(UserError, match=r"(?i)budget"):
        api.search(SETTINGS, space=str(folder / "tiny.yaml"), target="gpu-v100", size=16, limit=160, threads=1,
                   budget_ms=[1e-6], run=folder / "refused", progress=Quiet())
    assert not (folder / "refused").exists()


def test_a_pick_with_exits(folder: Path) -> None:
    found = api.search(SETTINGS, space=str(folder / "tiny.yaml"), target="gpu-v100", size=16, limit=160, threads=1,
                       exits="joint", run=folder / "exits", progress=Quiet())
    picks = [pick for pick in (*found.front, *found.dominated) if pick.exits]
    assert every(pick.onnx.is_file() and pick.arch.exits == pick.exits for pick in picks)
    with pytest.raises(UserError, match=r"has early exits; nas\.exits\.Runtime"):
        picks[0].network()


def test_an_unknown_format_is_named(found: api.Front, folder: Path) -> None:
    with pytest.raises(UserError, match="format png: known are onnx"):
        api.export(folder / "run", format="png", progress=Quiet())
