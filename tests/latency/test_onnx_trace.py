"""Kernels of ONNX graphs: those of the module that they came from, and small graphs worked out by hand."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hostile import read_or_refused
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from nas import sampling
from nas.errors import UserError
from nas.files import shipped
from nas.latency.fusion import Group, Kernel
from nas.latency.onnx_graph import read_graph
from nas.latency.onnx_trace import UNKNOWN
from nas.latency.onnx_trace import trace as trace_graph
from nas.latency.trace import kernels
from nas.lower.onnx import export
from nas.plan import Task, layout
from nas.space import Space
from nas.subnet import build

FIXED = [1, 8, 6, 6]


def graph(tmp_path: Path, nodes: list[onnx.NodeProto], shape: Any = FIXED, **weights: Any) -> Path:
    """A model from ``x`` to ``y``; ``weights`` are shapes of floats, or arrays."""
    constants = [numpy_helper.from_array(np.zeros(w, np.float32) if isinstance(w, tuple) else w, name)
                 for name, w in weights.items()]
    made = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
                             [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], constants)
    path = tmp_path / "m.onnx"
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.example", 1)]
    onnx.save(helper.make_model(made, opset_imports=opsets, ir_version=10), path)
    return path


def node(kind: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), output.split(), name=f"the_{kind}_{output}", **attributes)


def trace(path: Path, size: int | None = None) -> list[Group]:
    return trace_graph(read_graph(path, size, weights=False))


def found(path: Path, size: int | None = None) -> list[Kernel]:
    return [group.kernel for group in trace(path, size)]


@pytest.mark.parametrize("space", shipped("search_spaces", ".yaml"))
@pytest.mark.parametrize("size", [32, 160])
def test_subnets_have_the_kernels_of_their_module(tmp_path: Path, space: str, size: int) -> None:
    plan = layout(Space.load(space), Task(size, 3, 10))
    for draw in (sampling.sample, sampling.sample_thinned):
        net = build(plan, draw(plan, random.Random(size)))
        export(net, tmp_path / "m.onnx", in_ch=3, size=size, metadata={})
        expected = kernels(net, 3, size)
        assert found(tmp_path / "m.onnx") == expected and len(expected) > 10


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet18", "efficientnet_b0", "regnet_y_400mf"])
def test_known_networks_have_the_kernels_of_their_module(tmp_path: Path, name: str) -> None:
    """As PyTorch's older exporter writes them: batch norms apart, SiLU in two nodes."""
    net = getattr(torchvision.models, name)().eval()
    torch.onnx.export(net, (torch.zeros(1, 3, 64, 64),), str(tmp_path / "m.onnx"), dynamo=False, opset_version=17,
                      training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False)
    assert found(tmp_path / "m.onnx") == kernels(net, 3, 64)


def test_shapes_that_the_graph_computes_itself(tmp_path: Path) -> None:
    """A channel shuffle of a network with an open batch: Shape, Gather, Concat and Reshape."""

    class Shuffle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            n, c, h, w = x.size()
            return F.relu(x).view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, -1, h, w)

    torch.onnx.export(Shuffle(), (torch.zeros(2, 8, 6, 6),), str(tmp_path / "m.onnx"), dynamo=False, opset_version=13,
                      input_names=["x"], dynamic_axes={"x": {0: "n", 2: "h", 3: "w"}})
    kinds = {n.op_type for n in onnx.load(tmp_path / "m.onnx").graph.node}
    assert {"Shape", "Reshape", "Transpose"} <= kinds
    got = [(k.kind, k.moved) for k in found(tmp_path / "m.onnx", size=6)]
    assert got == [("pointwise", 2 * 288), ("copy", 2 * 288)]


def test_conv_bn_act_and_residual_by_hand(tmp_path: Path) -> None:
    path = graph(tmp_path, [
        node("Conv", "x w", "a", strides=[2, 2], pads=[1, 1, 1, 1]), node("BatchNormalization", "a s s s s", "b"),
        node("Relu", "b", "c"), node("Conv", "c v", "d", group=1), node("Add", "d c", "e"), node("Relu", "e", "y"),
    ], w=(16, 8, 3, 3), s=(16,), v=(16, 16, 1, 1))
    assert found(path) == [Kernel("conv", 8, 16, 6, 3, 3.0, 2), Kernel("conv", 16, 16, 3, 3, fused_add=True)]
    assert [[n.kind for n in group.nodes] for group in trace(path)] == [["Conv", "BatchNormalization", "Relu"],
                                                                       ["Conv", "Add", "Relu"]]
    assert trace(path)[0].head.name == "the_Conv_a"


SIGMOID = [node("Sigmoid", "a", "b"), node("Mul", "a b", "y")]
HARD = [node("Add", "a three", "b"), node("Clip", "b zero six", "c"), node("Mul", "a c", "d"),
        node("Div", "d six", "y")]
GELU = [node("Div", "a six", "b"), node("Erf", "b", "c"), node("Add", "c three", "d"), node("Mul", "a d", "y")]


@pytest.mark.parametrize("pieces", [SIGMOID, HARD, GELU])
def test_an_activation_in_pieces_joins_the_convolution(tmp_path: Path, pieces: list[onnx.NodeProto]) -> None:
    numbers = {name: np.float32(value) for name, value in (("zero", 0), ("three", 3), ("six", 6))}
    path = graph(tmp_path, [node("Conv", "x w", "a"), *pieces], w=(4, 8, 1, 1),
                 **{name: np.array(value) for name, value in numbers.items()})
    assert found(path) == [Kernel("conv", 8, 4, 6, 6)]


def test_squeeze_excite_is_pool_two_convolutions_and_a_product(tmp_path: Path) -> None:
    path = graph(tmp_path, [node("GlobalAveragePool", "x", "a"), node("Conv", "a w", "b"), node("Relu", "b", "c"),
                            node("Conv", "c v", "d"), node("HardSigmoid", "d", "e"), node("Mul", "x e", "y")],
                 w=(2, 8, 1, 1), v=(8, 2, 1, 1))
    assert found(path) == [Kernel("pool", 8, 8, 6, 1, moved=8 * 36 + 8), Kernel("conv", 8, 2, 1, 1),
                           Kernel("conv", 2, 8, 1, 1), Kernel("pointwise", 8, 8, 6, 6, moved=2 * 8 * 36 + 8)]


def test_head_with_matmul_and_bias_is_one_convolution(tmp_path: Path) -> None:
    path = graph(tmp_path, [node("GlobalAveragePool", "x", "a"), node("Flatten", "a", "b"), node("MatMul", "b w", "c"),
                            node("Add", "c bias", "y")], w=(8, 10), bias=(10,))
    assert found(path) == [Kernel("pool", 8, 8, 6, 1, moved=8 * 36 + 8), Kernel("conv", 8, 10, 1, 1)]


def test_concat_slice_split_pad_and_resize_are_memory_bound(tmp_path: Path) -> None:
    path = graph(tmp_path, [
        node("MaxPool", "x", "p", kernel_shape=[1, 1]), node("Concat", "x p", "a", axis=1),
        node("Slice", "a zero twelve one", "b"), node("Split", "b", "c d", axis=1, num_outputs=2),
        node("Pad", "c pads", "e"), node("Resize", "e none scales", "f"), node("Concat", "f", "g", axis=1),
        node("Concat", "g", "y", axis=1)],
        zero=np.array([0]), twelve=np.array([12]), one=np.array([1]), none=np.zeros(0, np.float32),
        pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]), scales=np.array([1, 1, 2, 2], np.float32))
    assert [(k.kind, k.moved) for k in found(path)] == [
        ("pool", 2 * 288), ("cat", 2 * 576), ("copy", 2 * 432), ("copy", 2 * 216), ("copy", 2 * 6 * 64),
        ("resize", 6 * (64 + 256)), ("cat", 2 * 6 * 256), ("cat", 2 * 6 * 256)]


def test_only_a_reshape_behind_a_transpose_moves_elements(tmp_path: Path) -> None:
    shape = np.array([1, 36, 8])
    plain = graph(tmp_path, [node("Reshape", "x s", "y")], s=np.array([1, 288]))
    assert found(plain) == []
    turned = graph(tmp_path, [node("Transpose", "x", "a", perm=[0, 2, 3, 1]), node("Reshape", "a s", "y")], s=shape)
    assert [(k.kind, k.moved) for k in found(turned)] == [("copy", 2 * 288)]
    ones = graph(tmp_path, [node("Transpose", "x", "a", perm=[1, 0, 2, 3]), node("Reshape", "a s", "y")], s=shape)
    assert found(ones) == []


UNKNOWNS = {
    "Softmax": [node("Softmax", "x", "y")],
    "MatMul": [node("MatMul", "x x", "y")],
    "ConvTranspose": [node("ConvTranspose", "x w", "y")],
    "BatchNormalization": [node("BatchNormalization", "x s s s s", "y m v", training_mode=1)],
}


@pytest.mark.parametrize("kind", UNKNOWNS)
def test_what_has_no_rule_is_a_launch_of_unknown_cost(tmp_path: Path, kind: str) -> None:
    path = graph(tmp_path, [*UNKNOWNS[kind], node("Relu", "y", "z"), node("MaxPool", "x", "q", kernel_shape=[1, 1])],
                 w=(8, 4, 3, 3), s=(8,))
    unknown = [group for group in trace(path) if group.head.op == UNKNOWN]
    assert [group.head.kind for group in unknown] == [kind] and len(unknown[0].nodes) == 1


def test_what_the_branches_of_an_if_do_is_never_free(tmp_path: Path) -> None:
    out = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    branches = [helper.make_graph([node(kind, "x", "z")], kind, [], [out]) for kind in ("Relu", "Sigmoid")]
    one = helper.make_node("If", ["flag"], ["y"], name="exit", then_branch=branches[0], else_branch=branches[1])
    found_groups = trace(graph(tmp_path, [one], flag=np.array(True)))
    assert [(group.head.op, group.head.kind) for group in found_groups] == [(UNKNOWN, "If")]


def test_a_constant_that_would_fill_the_memory_is_not_computed(tmp_path: Path) -> None:
    path = graph(tmp_path, [node("ConstantOfShape", "s", "a"), node("ReduceMax", "a", "b", keepdims=0),
                            node("Add", "x b", "y")], s=np.array([10**6, 10**6]))
    assert [k.kind for k in found(path)] == ["pointwise"]


@pytest.mark.parametrize(("shape", "size", "message"), [
    (["n", 8, 6, 6], None, None), ([1, 8, "h", "w"], 6, None), ([1, 8, 6, 6], 6, None),
    ([1, 8, "h", "w"], None, "give them with size"), ([1, 8, 6, 6], 7, "size=7, but the file says 6x6"),
    ([4, 8, 6, 6], None, "the batch is fixed at 4"), ([1, "c", 6, 6], None, "channels is open"),
    ([1, 8], None, "has 2 dimensions"),
])
def test_the_input(tmp_path: Path, shape: list[Any], size: int | None, message: str | None) -> None:
    path = graph(tmp_path, [node("Conv", "x w", "y")], shape, w=(4, 8, 1, 1))
    if message is None:
        assert found(path, size) == [Kernel("conv", 8, 4, 6, 6)]
    else:
        with pytest.raises(UserError, match=message):
            trace(path, size)


def test_two_inputs_are_named(tmp_path: Path) -> None:
    model = onnx.load(graph(tmp_path, [node("Add", "x z", "y")]))
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, FIXED))
    onnx.save(model, tmp_path / "two.onnx")
    with pytest.raises(UserError, match=r"two\.onnx: inputs are x, z; expected one"):
        trace(tmp_path / "two.onnx")


def test_weights_beside_the_file_are_not_needed(tmp_path: Path) -> None:
    model = onnx.load(graph(tmp_path, [node("Conv", "x w", "y")], w=(64, 8, 3, 3)))
    onnx.save(model, tmp_path / "ext.onnx", save_as_external_data=True, location="ext.bin")
    (tmp_path / "ext.bin").unlink()
    assert found(tmp_path / "ext.onnx") == [Kernel("conv", 8, 64, 6, 4, 3.0)]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    nodes = [node("Conv", "x w", "a", strides=[2, 2], pads=[1, 1, 1, 1]), node("Shape", "a", "s"),
             node("Gather", "s i", "n"), node("Concat", "n m", "r", axis=0), node("Reshape", "a r", "b"),
             node("Gemm", "b v", "c"), node("Softmax", "c", "y")]
    return graph(tmp_path_factory.mktemp("sound"), nodes, w=(4, 8, 3, 3), v=(36, 5), i=np.array([0]), m=np.array([36]))


@given(st.integers(0, 10**6), st.integers(0, 255))
def test_a_mutated_file_is_refused_in_one_line_or_traced(sound: Path, place: int, byte: int) -> None:
    whole, path = bytearray(sound.read_bytes()), sound.parent / "mutated.onnx"
    whole[place % len(whole)] = byte
    path.write_bytes(whole)
    groups = read_or_refused(lambda: trace(path), f"{path}: ")
    if groups is not None:
        kernels = [group.kernel for group in groups if group.head.op != UNKNOWN]
        assert all(min(kernel.in_ch, kernel.out_ch, kernel.size_in, kernel.size_out) > 0 for kernel in kernels)
        onnx.save(onnx.load(path), again := path.with_name("again.onnx"))  # by onnx's own reader and writer
        assert trace(again) == groups


@given(st.binary(max_size=300))
def test_bytes_of_any_kind_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.onnx"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"bytes\.onnx: "):
        trace(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.onnx: no such file"):
        trace(tmp_path / "none.onnx")
