"""Foreign graphs through every command that reads them: a result, or one true line."""

from __future__ import annotations

import atexit
import contextlib
import io
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import onnxruntime
import pytest
import torch
import torchvision
from every import every
from foreign_graphs import BROKEN, GRAPHS, ended, save, whole
from hostile import read_or_refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from PIL import Image

from nas.errors import UserError
from nas.exits.graft import graft
from nas.latency import costs, devices
from nas.latency.onnx_graph import read_graph
from nas.latency.predict import predict
from nas.latency.timing import summary
from nas.pipeline.evaluate import evaluate

try:
    import ethosu.regor  # noqa: F401

    NPU = ["ethos-u55-128"]
except ImportError:
    NPU = []


def exits(path: Path) -> int:
    """How many ``nas exits`` would train."""
    graph = read_graph(path).in_float().logits()
    return len(graft(graph.model, graph.entry, graph.shapes, hidden=4).exits)


loaded = cache(costs.load)


def priced(target: str) -> Callable[[Path], float]:
    return lambda path: predict(path, loaded(target)).ms


def evaluated(path: Path) -> float:
    """The loss on ten classes of one image."""
    return evaluate(path, data=str(images()), split="all", size=32).loss


@cache
def images() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="nas-foreign-"))
    for name in range(10):
        for k in range(4):
            (folder / str(name)).mkdir(exist_ok=True)
            pixels = np.random.default_rng(4 * name + k).integers(0, 255, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(folder / str(name) / f"{k}.png")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


COMMANDS: dict[str, Callable[[Path], Any]] = {
    **{target: priced(target) for target in ("gpu-v100", "gpu-v100-int8-b32", *NPU)},
    "measure": lambda path: devices.measure(path, "cpu").ms, "exits": exits, "evaluate": evaluated}


@pytest.fixture(autouse=True)
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs in place of a second of them."""
    monkeypatch.setattr(devices, "repeated", lambda run: summary([run(), run()]))


def outcome(command: str, path: Path) -> str | float:
    """A number above zero, or what is wrong in one line that names the file or the node."""
    try:
        value = COMMANDS[command](path)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 500
        return str(error)
    assert value > 0
    return float(value)


GOOD = ("nodes without names", "a value called input", "x * HardSigmoid(x)", "shapes computed", "half", "constants",
        "a weight behind", "BatchNorm", "ReduceMean", "a chain", "fixed batch of 1", "ends in Softmax",
        "ends in Sigmoid", "Slice without")
REFUSED = {  # what no command but measure can do, and why
    "LSTM": "LSTM|no place for an exit", "GRU": "GRU|no place for an exit", "RNN": "RNN|no place for an exit",
    "If": "If", "Loop": "Loop", "a sequence as input": "sequence", "bytes": "uint8",
    "an operator of somebody else": "not follow|not a registered|not one output", "all open": "channels is open",
    "an operator that onnx does not have": "not follow|not a registered|not an operator of ONNX",
    "height and width open": "size", "no shape": "says no shape", "fixed batch of 4": "the batch is fixed at 4",
    "a vector as input": "has 2 dimensions"}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", GRAPHS)
def test_a_result_or_one_line(tmp_path: Path, name: str, command: str) -> None:
    result = outcome(command, save(GRAPHS[name](), tmp_path / "m.onnx"))
    if name.startswith(GOOD) and not (command == "exits" and name.startswith("Slice")):
        assert isinstance(result, float), result
    if name in REFUSED and command not in ("measure", "evaluate"):
        assert isinstance(result, str) and re.search(REFUSED[name], result), result


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", BROKEN)
def test_what_no_command_takes(tmp_path: Path, name: str, command: str) -> None:
    result = outcome(command, save(BROKEN[name](), tmp_path / "m.onnx"))
    assert isinstance(result, str) and re.search("m.onnx[: ]", result)


@pytest.mark.parametrize("name", [name for name in GRAPHS if name.startswith(GOOD)])
def test_the_normal_form_computes_the_same(tmp_path: Path, name: str) -> None:
    path = save(GRAPHS[name](), tmp_path / "m.onnx")
    graph = read_graph(path)
    kind = {"float16": np.float16, "double": np.float64}.get(graph.dtype, np.float32)
    image = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(kind)
    runs = [onnxruntime.InferenceSession(onnx.load(path).SerializeToString() if not i else
                                         graph.in_float().model.SerializeToString()) for i in (0, 1)
            if not (i == 0 and name in ("nodes of one name",))]
    entry = onnx.load(path).graph.input[0].name
    expected = runs[0].run(None, {entry: image})[0]
    made = runs[-1].run(None, {"input": image.astype(np.float32)})[0]
    np.testing.assert_allclose(made, expected.astype(np.float32), atol=2e-3 if kind == np.float16 else 1e-5)
    names = [node.name for node in graph.model.graph.node]
    assert every(names) and len(set(names)) == len(names)


def test_rules_are_not_needed_where_the_converter_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes follow in old operators, too."""
    def fails(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
        raise RuntimeError("no adapter")

    monkeypatch.setattr(onnx.version_converter, "convert_version", fails)
    for opset in (9, 11, 12):
        path = save(GRAPHS[f"shapes computed, opset {opset}"](), tmp_path / "m.onnx")
        assert read_graph(path).shapes["f"] == (1, 16) and isinstance(outcome("gpu-v100", path), float)
        assert "is of opset" in str(outcome("exits", path))


def test_a_file_keeps_its_metadata(tmp_path: Path) -> None:
    made = whole(opset=11)
    onnx.helper.set_model_props(made, {"classes": "a\nb"})
    assert read_graph(save(made, tmp_path / "m.onnx")).model.metadata_props[0].value == "a\nb"


@pytest.mark.parametrize("command", COMMANDS)
def test_weights_beside_the_file(tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "at").mkdir()
    path = save(whole(), tmp_path / "at" / "m.onnx", beside="w.bin")
    expected = outcome(command, save(whole(), tmp_path / "one.onnx"))
    assert isinstance(outcome(command, path), float) and isinstance(expected, float)
    monkeypatch.chdir(tmp_path / "at")
    assert isinstance(outcome(command, Path("m.onnx")), float)  # relative to the file, wherever one stands
    if command.startswith("gpu-v100"):
        return  # their cost does not depend on weights
    if command not in ("measure", "evaluate"):  # ONNX Runtime reads weights of any size
        with monkeypatch.context() as smaller:
            smaller.setattr("nas.lower.onnx.MAX_BYTES", 1000)
            assert "GiB of weights" in str(outcome(command, path))
    (tmp_path / "at" / "w.bin").write_bytes(b"short")
    assert "cannot be read" in str(outcome(command, path))
    (tmp_path / "at" / "w.bin").unlink()
    assert "its weights lie in w.bin, which is missing" in str(outcome(command, path))


@pytest.mark.parametrize("location", ["../w.bin", "/etc/hostname", "sub/../../w.bin"])
def test_weights_elsewhere_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "at").mkdir()
    path = save(whole(), tmp_path / "at" / "m.onnx", beside="w.bin")
    shutil.move(tmp_path / "at" / "w.bin", tmp_path / "w.bin")
    made = onnx.load(path, load_external_data=False)
    for weight in made.graph.initializer:
        weight.external_data[0].value = location
    path.write_bytes(made.SerializeToString())
    assert "outside its folder" in str(outcome("measure", path))


@pytest.mark.parametrize(("kind", "ends"), [("Softmax", "probabilities"), ("LogSoftmax", "log-probabilities"),
                                            ("Sigmoid", "independent probabilities"), ("Relu", "logits")])
def test_what_a_network_ends_in(tmp_path: Path, kind: str, ends: str) -> None:
    graph = read_graph(save(ended(kind), tmp_path / "m.onnx"))
    plain = read_graph(save(whole(), tmp_path / "plain.onnx"))
    assert graph.ending.kind == ends
    image = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    runs = [onnxruntime.InferenceSession(made.model.SerializeToString()).run(None, {"input": image})[0]
            for made in (graph.logits(), plain)]
    assert np.allclose(*runs, atol=1e-6) == (kind != "Relu")


def test_a_softmax_over_something_else_is_no_ending(tmp_path: Path) -> None:
    assert read_graph(save(ended("Softmax", axis=0), tmp_path / "m.onnx")).ending.kind == "logits"
    one = whole(onnx.helper.make_node("Gemm", ["f", "w1f"], ["z"]), onnx.helper.make_node("Sigmoid", ["z"], ["y"]),
                constants=[numpy_helper.from_array(np.ones((16, 1), np.float32), "w1f")])
    assert read_graph(save(one, tmp_path / "m.onnx")).ending.kind == "logits"  # of one number: yes or no


def test_a_log_softmax_is_the_cpus_beside_an_npu(tmp_path: Path) -> None:
    if not NPU:
        pytest.skip("needs ethos-u-vela")
    path, plain = save(ended("LogSoftmax"), tmp_path / "m.onnx"), save(whole(), tmp_path / "plain.onnx")
    assert "LogSoftmax (y) at its end would run on the CPU" in str(outcome(NPU[0], path))
    result = predict(path, loaded(NPU[0]), allow_unknown=True)
    assert [operator.op for operator in result.unknown] == ["LogSoftmax"]
    assert result.ms == pytest.approx(predict(plain, loaded(NPU[0])).ms, rel=0.1)
    with pytest.raises(UserError, match="allow_unknown: ethos-u55-128 is an NPU"):
        predict(plain, loaded(NPU[0]), allow_unknown=True)


EXPORTED = ("mobilenet_v3_small", "shufflenet_v2_x0_5", "resnet18", "efficientnet_b0", "squeezenet1_1", "googlenet")


@pytest.mark.parametrize("name", EXPORTED)
def test_exports_of_torchvision(tmp_path: Path, name: str) -> None:
    """The same kernels and exits at each opset; ``benchmarks/foreign_graphs.py`` goes through all of torchvision."""
    how = {"init_weights": False} if name == "googlenet" else {}
    network, results = torchvision.models.get_model(name, weights=None, **how).eval(), []
    for opset in (11, 16, 20):
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(network, (torch.zeros(1, 3, 64, 64),), str(tmp_path / "m.onnx"), dynamo=False,
                              opset_version=opset, input_names=["input"], dynamic_axes={"input": {0: "n"}})
        results.append([outcome(command, tmp_path / "m.onnx") for command in ("gpu-v100", "exits")])
        assert isinstance(outcome("measure", tmp_path / "m.onnx"), float)
    assert every(isinstance(value, float) for value in results[0])
    assert every(result == pytest.approx(results[0]) for result in results[1:])


CHANGES = ("a name", "an attribute", "a value's name", "a type", "an input", "a node", "an opset")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(GRAPHS)), st.lists(st.tuples(st.sampled_from(CHANGES), st.integers(0, 999)), max_size=4),
       st.sampled_from(["gpu-v100", "exits", "measure"]))
def test_changed_graphs(tmp_path: Path, name: str, changes: list[tuple[str, int]], command: str) -> None:
    """Whatever is taken out or renamed: a result or one line."""
    made = GRAPHS[name]()
    for change, at in changes:
        nodes = made.graph.node
        if not nodes:
            break
        place = nodes[at % len(nodes)]
        if change == "a name":
            place.name = "" if at % 2 else "same"
        elif change == "an attribute" and place.attribute:
            del place.attribute[at % len(place.attribute)]
        elif change == "a value's name" and place.input:
            place.input[at % len(place.input)] = ("input", "y", "", "nowhere")[at % 4]
        elif change == "a type":
            made.graph.input[0].type.tensor_type.elem_type = (0, 1, 7, 10, 11, 16)[at % 6]
        elif change == "an input" and place.input:
            del place.input[at % len(place.input)]
        elif change == "a node":
            nodes.remove(place)
        elif change == "an opset":
            made.opset_import[0].version = 1 + at % 26
    path = tmp_path / "m.onnx"
    path.write_bytes(made.SerializeToString())
    found = read_or_refused(lambda: COMMANDS[command](path), "m.onnx", "model")
    assert found is None or found > 0
