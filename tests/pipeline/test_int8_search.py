"""The road end to end where the target is this machine in int8: what is stated is the int8 file's."""

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from tiny_search import Quiet, config_of, searched, selected
from tiny_space import TINY

from nas.errors import UserError
from nas.latency import bench, costs, profile
from nas.latency.devices import local_device
from nas.latency.devices.onnxruntime import Cpu
from nas.latency.table import LatencyTable
from nas.pipeline import search as pipeline
from nas.pipeline.budgets import budgets_of_target
from nas.plan import Layout, Task, layout
from nas.run import tables
from nas.run.directory import Run
from nas.space import Space
from nas.training import evaluation
from nas.training.data import Data, Split, load, normalise

Made = tuple[Path, dict[str, Any], Quiet]


@pytest.fixture(scope="module", autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """In an empty folder, with a protocol that takes no time."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for name in ("SECONDS_A_GRAPH", "SECONDS_A_NETWORK"):
            patch.setattr(bench, name, 0.002)
        for name, value in {"FITTED_ON": 3, "CHECKED_S": 0.02, "HELD_OUT": 2, "ATTEMPTS": 1}.items():
            patch.setattr(profile, name, value)
        yield home


@pytest.fixture(scope="module")
def finished(elsewhere: Path) -> Made:
    Path("tiny.yaml").write_text(yaml.safe_dump(TINY))
    assert tables.find_costs("cpu-int8") is None
    progress = Quiet()
    result = searched(config_of(Path("tiny.yaml"), target="cpu-int8"), Path("run"), progress)
    return elsewhere / "run", result, progress


@cache
def images() -> Data:
    return load("digits", data_dir=None, size=16, seed=0, limit=160)


def right(path: Path, split: Split) -> float:
    """Share of the images of a split that the file gets right."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    logits = session.run(None, {"input": normalise(split.images, images()).numpy()})[0]
    return float(np.mean(logits.argmax(1) == split.labels.numpy()))


def test_the_table_is_made_and_completed_in_int8(finished: Made, tiny_space: Space) -> None:
    _, _, progress = finished
    table = LatencyTable.load(costs.LOCAL / "cpu-int8.json")
    assert table.int8_on_cpu and table.meta.weight_bits in (7, 8)
    device = local_device(table.meta)
    assert isinstance(device, Cpu) and device.precision == "int8"
    assert any(re.match(r"cpu-int8: \d+ rows are not measured yet; measuring them now into ", note)
               for note in progress.notes)
    key = next(iter(table.rows))
    del table.rows[key]
    table.save(costs.LOCAL / "cpu-int8.json")
    tables.complete("cpu-int8", layout(tiny_space, Task(16, 3, 10)), Quiet())
    assert key in LatencyTable.load(costs.LOCAL / "cpu-int8.json").rows


def test_a_table_of_another_machine_is_used_and_said_to_be_one(finished: Made, tiny_space: Space) -> None:
    table = LatencyTable.load(costs.LOCAL / "cpu-int8.json")
    table.meta.processor = "Abacus 3000"
    table.save(Path("other.json"))
    progress, plan = Quiet(), layout(tiny_space, Task(16, 3, 10))
    assert tables.complete("other.json", plan, progress) == Path("other.json")
    assert [note[:40] for note in progress.notes] == ["other.json: measured on Abacus 3000 with"]
    tables.complete("cpu-int8", plan, progress)
    assert len(progress.notes) == 1


def test_a_card_states_the_int8_file(finished: Made) -> None:
    (path, result, _), data = finished, images()
    assert result["front"]
    for point in result["front"]:
        card = json.loads((path / "archs" / point["id"] / "card.json").read_text())
        int8 = path / card["int8_onnx"]
        assert int8.name == "model.int8.onnx" and (path / card["onnx"]).name == "model.onnx"
        for prefix, file in (("", int8), ("float_", path / card["onnx"])):
            assert card[f"{prefix}accuracy"] == pytest.approx(right(file, data.test))
            assert card[f"{prefix}select_accuracy"] == pytest.approx(
                np.mean([right(file, view) for view in evaluation.views(data.select, data.augment, 0)]))
        assert card["measured_ms"]["cpu-int8"] > 0 and card["drift"]["cpu-int8"] > 0
        assert card["sqnr_db"] > 10 and card["same_top1"] > 0.7
        assert card["relative_diff"] < 1e-4  # of the float file
        metadata = {p.key: p.value for p in onnx.load(int8).metadata_props}
        assert metadata["id"] == card["id"] and metadata["precision"] == "int8" and metadata["weight_bits"] in "78"
        assert {"stored", "weight"} <= {part for w in onnx.load(int8).graph.initializer for part in w.name.split("/")}


def test_export_as_int8_onnx(finished: Made, tmp_path: Path) -> None:
    path, result, _ = finished
    best = result["front"][-1]["id"]
    run = Run.existing(path)
    (file,) = pipeline.export(run, best, None, tmp_path, Quiet(), "int8-onnx").to_json()["files"]
    assert file["onnx"] == str(tmp_path / f"{best}.int8.onnx")
    assert file["sqnr_db"] > 10 and file["measured_ms"]["cpu-int8"] > 0
    assert Path(file["onnx"]).read_bytes() == (path / "archs" / best / "model.int8.onnx").read_bytes()
    (file,) = pipeline.export(run, best, None, tmp_path, Quiet()).to_json()["files"]
    assert file["measured_ms"] == {"cpu-int8": None}  # a float file is not what the target's milliseconds are of


def test_beside_another_target_accuracies_are_still_the_int8_files(finished: Made,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    path, _, _ = finished
    monkeypatch.setattr(pipeline, "budgets_of_target", lambda *given: budgets_of_target(*given)[-1:])  # one will do
    result = selected(Run.existing(path), ["gpu-v100", "cpu-int8"], [], Quiet())
    card = result["front"][0]
    assert card["measured_ms"]["gpu-v100"] is None and card["measured_ms"]["cpu-int8"] > 0
    assert card["accuracy"] == pytest.approx(right(path / card["int8_onnx"], images().test))


def test_what_is_refused(finished: Made, tiny: Layout, tiny_space: Space) -> None:
    with pytest.raises(UserError, match=r"cpu-int8\.json: precision was 'int8' and is 'fp32' now"):
        profile.profile(tiny, costs.LOCAL / "cpu-int8.json")
    with pytest.raises(UserError, match=r"run: profile\(device='cpu', precision='int8', space="):
        LatencyTable.load(costs.LOCAL / "cpu-int8.json").ms(layout(tiny_space, Task(32, 3, 4)).stem)
    with pytest.raises(UserError, match=r"profile\(device='cpu', precision='int8', space='SPACE'\)"):
        costs.find("cpu-int8-b4")
