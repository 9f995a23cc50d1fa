"""What a file costs: the sum of its kernels, and what is said of those that have no price."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from nas import sampling
from nas.errors import UserError
from nas.files import shipped
from nas.latency import costs
from nas.latency.fusion import Kernel
from nas.latency.kernel_model import KernelModel
from nas.latency.meta import Meta
from nas.latency.predict import LeftOut, predict
from nas.latency.table import LatencyTable
from nas.lower.onnx import export
from nas.plan import Task, layout, plan
from nas.space import Space
from nas.subnet import build


@pytest.fixture(scope="module")
def v100() -> KernelModel:
    model = costs.load("gpu-v100")
    assert isinstance(model, KernelModel)
    return model


def model(path: Path, *nodes: onnx.NodeProto) -> Path:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8, 6, 6])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [value], [out])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.mark.parametrize("space", shipped("search_spaces", ".yaml"))
def test_a_subnet_costs_what_its_operators_cost(tmp_path: Path, v100: KernelModel, space: str) -> None:
    place = layout(Space.load(space), Task(96, 3, 10))
    for seed in range(3):
        arch = sampling.sample_thinned(place, random.Random(seed))
        export(build(place, arch), tmp_path / "m.onnx", in_ch=3, size=96, metadata={})
        result = predict(tmp_path / "m.onnx", v100)
        assert result.ms == pytest.approx(sum(v100.ms_many(plan(place, arch))), rel=1e-9)
        assert result.ms == pytest.approx(sum(operator.ms for operator in result.operators))
        assert (result.unknown, result.method, result.batch) == ((), "kernel-database", 1)


def test_operators_are_launches_with_names_and_what_is_fused(tmp_path: Path, v100: KernelModel) -> None:
    pool = helper.make_node("MaxPool", ["x"], ["a"], name="first", kernel_shape=[3, 3])
    path = model(tmp_path / "m.onnx", pool, helper.make_node("Relu", ["a"], ["b"], name="second"),
                 helper.make_node("Sigmoid", ["b"], ["y"]))
    result = predict(path, v100)
    kernels = [Kernel("pool", 8, 8, 6, 4, moved=8 * (36 + 16)), Kernel("pointwise", 8, 8, 4, 4, moved=2 * 8 * 16)]
    names = [(operator.name, operator.op) for operator in result.operators]
    assert names == [("first", "MaxPool"), ("second", "Relu+Sigmoid")]
    assert [operator.ms for operator in result.operators] == pytest.approx(v100.kernel_ms(kernels).tolist())


def test_an_unknown_operator_is_an_error_unless_allowed(tmp_path: Path, v100: KernelModel) -> None:
    nodes = [helper.make_node("Softmax", ["x"], ["a"], name="attention"), helper.make_node("LRN", ["a"], ["b"], size=1),
             helper.make_node("Relu", ["x"], ["c"]), helper.make_node("Sub", ["a", "c"], ["y"])]
    path = model(tmp_path / "m.onnx", *nodes)
    with pytest.raises(UserError, match=r"m\.onnx: no kernel is known for Softmax \(attention\); allow_un") as error:
        predict(path, v100)
    assert "\n" not in str(error.value) and "LRN" not in str(error.value)  # nobody reads its result
    result = predict(path, v100, allow_unknown=True)
    assert result.unknown == (LeftOut("attention", "Softmax", ""),)
    assert [operator.op for operator in result.operators] == ["Relu", "Sub"]
    assert result.ms == pytest.approx(sum(operator.ms for operator in result.operators))


def test_an_operator_of_somebody_else_is_named_where_its_shape_is_not_known(tmp_path: Path, v100: KernelModel) -> None:
    mine = helper.make_node("Mine", ["x"], ["a"], name="it", domain="com.example")
    last = model(tmp_path / "last.onnx", helper.make_node("Mine", ["x"], ["y"], name="it", domain="com.example"))
    with pytest.raises(UserError, match=r"no kernel is known for Mine \(it\)"):
        predict(last, v100)
    assert predict(last, v100, allow_unknown=True).operators == ()
    read = model(tmp_path / "read.onnx", mine, helper.make_node("Relu", ["a"], ["y"]))
    with pytest.raises(UserError, match=r"the shape of 'a' does not follow from the input's, behind it, for which"):
        predict(read, v100, allow_unknown=True)
    declared = onnx.load(read)
    declared.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, ["n", 4, 2, 2]))
    onnx.save(declared, read)
    result = predict(read, v100, allow_unknown=True)
    assert [operator.ms for operator in result.operators] == pytest.approx(
        v100.kernel_ms([Kernel("pointwise", 4, 4, 2, 2, moved=2 * 16)]).tolist())


def test_a_table_has_no_price_for_any_graph(tmp_path: Path) -> None:
    path = model(tmp_path / "m.onnx", helper.make_node("Relu", ["x"], ["y"]))
    with pytest.raises(UserError, match=r"m\.onnx: the table mine has rows for .*nas measure .*m\.onnx$"):
        predict(path, LatencyTable("mine", Meta(device="cpu")))


def test_batch_multiplies_what_is_moved_but_not_the_launch(tmp_path: Path) -> None:
    """A pool of 2 MiB an image: memory-bound at any batch."""
    value: dict[str, Any] = {}
    for name in ("gpu-v100-b32", "gpu-v100-b64"):
        one = costs.load(name)
        assert isinstance(one, KernelModel)
        kernel = Kernel("pool", 64, 64, 112, 56, moved=64 * (112**2 + 56**2))
        value[name] = float(one.raw_ms([kernel])[0])
    moved_ms = 2 * 64 * (112**2 + 56**2) / 9e8
    assert value["gpu-v100-b32"] == pytest.approx(32 * moved_ms + 0.0085)
    assert value["gpu-v100-b64"] == pytest.approx(64 * moved_ms + 0.0085)
