"""Graphs as other exporters write them, small enough to run in milliseconds: what each is called says what is odd."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

FLOAT, HALF, DOUBLE, INT64, BOOL = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT64,
                                    TensorProto.BOOL)
GEMM = "Gemm f wf bf -> y"


def node(text: str, **attributes: Any) -> NodeProto:
    """``Conv x w -> a`` without a name; ``_`` is an input or output that is left out."""
    head, tail = text.split("->")
    kind, *reads = head.split()
    return helper.make_node(kind, ["" if name == "_" else name for name in reads],
                            ["" if name == "_" else name for name in tail.split()], **attributes)


def constant(name: str, value: Any, kind: Any = np.int64) -> TensorProto:
    return numpy_helper.from_array(np.array(value, kind), name)


def random(name: str, *shape: int, kind: Any = np.float32) -> TensorProto:
    values = np.random.default_rng(len(name) + sum(shape)).standard_normal(shape) / 10
    return numpy_helper.from_array(values.astype(kind), name)


def body(x: str = "x", **replaced: list[NodeProto]) -> list[NodeProto]:
    """Three convolutions of stride 2, each with an activation, to ``f`` [N, 16]; nodes by their output's name."""
    nodes = []
    for step, (read, write) in enumerate([(x, "b"), ("b", "d"), ("d", "e2")], 1):
        inner = f"c{step}"
        nodes += replaced.get(inner, [node(f"Conv {read} w{step} -> {inner}", kernel_shape=[3, 3], pads=[1, 1, 1, 1],
                                           strides=[2, 2])])
        nodes += replaced.get(write, [node(f"Relu {inner} -> {write}")])
    return [*nodes, *replaced.get("f", [node("GlobalAveragePool e2 -> p"), node("Flatten p -> f")])]


def weights(kind: Any = np.float32) -> list[TensorProto]:
    return [random("w1", 8, 3, 3, 3, kind=kind), random("w2", 12, 8, 3, 3, kind=kind),
            random("w3", 16, 12, 3, 3, kind=kind), random("wf", 16, 10, kind=kind), random("bf", 10, kind=kind)]


def model(nodes: Iterable[NodeProto], constants: Iterable[TensorProto], opset: int = 17, shape: Any = ("N", 3, 32, 32),
          kind: int = FLOAT, out_kind: int | None = None, entry: str = "x", out: Any = None) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes), "g", [helper.make_tensor_value_info(entry, kind, shape)],
                              [helper.make_tensor_value_info("y", out_kind or kind, out)], list(constants))
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.example", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def whole(*tail: NodeProto, constants: Iterable[TensorProto] = (), opset: int = 17, values: Any = np.float32,
          shape: Any = ("N", 3, 32, 32), kind: int = FLOAT, **replaced: list[NodeProto]) -> onnx.ModelProto:
    """``body`` with a linear layer, or with ``tail``, behind it."""
    return model([*body(**replaced), *(tail or [node(GEMM)])], [*weights(values), *constants], opset, shape, kind)


def ended(kind: str, opset: int = 17, **attributes: Any) -> onnx.ModelProto:
    return whole(node(GEMM.replace("y", "z")), node(f"{kind} z -> y", **attributes), opset=opset)


def _value_called_input() -> onnx.ModelProto:
    made = whole()
    for item in made.graph.node:
        item.input[:] = ["input" if name == "b" else name for name in item.input]
        item.output[:] = ["input" if name == "b" else name for name in item.output]
    return made


def _hard_swish(opset: int) -> onnx.ModelProto:
    return whole(opset=opset, b=[node("HardSigmoid c1 -> s", alpha=1 / 6, beta=0.5), node("Mul c1 s -> b")])


def _sliced(slice_: NodeProto, opset: int, *constants: TensorProto) -> onnx.ModelProto:
    return whole(opset=opset, constants=constants, b=[node("Relu c1 -> r"), slice_])


def _shape_arithmetic(opset: int) -> onnx.ModelProto:
    """Flattens as PyTorch's view(x.size(0), -1) does."""
    wider = node("Unsqueeze n0 -> n1", axes=[0]) if opset < 13 else node("Unsqueeze n0 axis -> n1")
    flat = [node("GlobalAveragePool e2 -> p"), node("Shape p -> s"), node("Gather s zero -> n0", axis=0), wider,
            node("Concat n1 rest -> r", axis=0), node("Reshape p r -> f")]
    return whole(opset=opset, constants=[constant("zero", 0), constant("rest", [-1]), constant("axis", [0])], f=flat)


def _recurrent(kind: str, gates: int) -> onnx.ModelProto:
    nodes = [node("Conv x w1 -> a", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
             node("Reshape a to -> s"), node(f"{kind} s wi wr -> _ h", hidden_size=10), node("Squeeze h axis -> y")]
    constants = [random("w1", 8, 3, 3, 3), constant("to", [16, -1, 128]), random("wi", 1, gates * 10, 128),
                 random("wr", 1, gates * 10, 10), constant("axis", [0])]
    return model(nodes, constants)


def _constants_as_inputs() -> onnx.ModelProto:
    made = whole(opset=11)
    made.graph.input.extend(helper.make_tensor_value_info(w.name, w.data_type, list(w.dims))
                            for w in made.graph.initializer)
    made.ir_version = 3
    return made


def _same_names() -> onnx.ModelProto:
    made = whole()
    for item in made.graph.node:
        item.name = "node"
    return made


def _constant_nodes() -> onnx.ModelProto:
    made = whole(opset=11)
    for number, weight in enumerate(made.graph.initializer):
        made.graph.node.insert(number, helper.make_node("Constant", [], [weight.name], value=weight))
    del made.graph.initializer[:]
    return made


def _branched() -> onnx.ModelProto:
    out = helper.make_tensor_value_info("z", FLOAT, None)
    branches = [helper.make_graph([node(f"{kind} l -> z")], kind, [], [out]) for kind in ("Relu", "Sigmoid")]
    choice = helper.make_node("If", ["cond"], ["y"], then_branch=branches[0], else_branch=branches[1])
    return whole(node("Gemm f wf bf -> l"), node("ReduceMax l -> m", keepdims=0), node("Greater m zero -> cond"),
                 choice, constants=[constant("zero", 0, np.float32)])


def _loop() -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("i", INT64, []), helper.make_tensor_value_info("on", BOOL, []),
              helper.make_tensor_value_info("v", FLOAT, None)]
    outputs = [helper.make_tensor_value_info("on2", BOOL, []), helper.make_tensor_value_info("v2", FLOAT, None)]
    inner = helper.make_graph([node("Identity on -> on2"), node("Relu v -> v2")], "body", inputs, outputs)
    return whole(node("Gemm f wf bf -> l"), helper.make_node("Loop", ["twice", "yes", "l"], ["y"], body=inner),
                 constants=[constant("twice", 2), constant("yes", True, bool)])


def _somebodys() -> onnx.ModelProto:
    mine = node("Mine c1 -> b")
    mine.domain = "com.example"
    return whole(b=[mine])


def _sequence_input() -> onnx.ModelProto:
    made = whole()
    made.graph.input[0].CopyFrom(helper.make_tensor_sequence_value_info("x", FLOAT, None))
    return made


def _conv(**attributes: Any) -> onnx.ModelProto:
    return whole(c1=[node("Conv x w1 -> c1", kernel_shape=[3, 3], **attributes)])


GRAPHS: dict[str, Callable[[], onnx.ModelProto]] = {
    "nodes without names": whole,
    "nodes of one name": _same_names,
    "a value called input": _value_called_input,
    **{f"x * HardSigmoid(x), opset {n}": lambda n=n: _hard_swish(n) for n in (7, 9, 11, 13, 17)},
    "Slice without steps, opset 9": lambda: _sliced(node("Slice r -> b", starts=[0, 0], ends=[12, 12], axes=[2, 3]), 9),
    "Slice without steps, opset 11": lambda: _sliced(
        node("Slice r from to on -> b"), 11, constant("from", [2, 2]), constant("to", [14, 14]),
        constant("on", [2, 3])),
    "Slice without axes": lambda: _sliced(node("Slice r from to -> b"), 13, constant("from", [0, 0]),
                                          constant("to", [2**31, 8])),
    "half precision": lambda: whole(values=np.float16, kind=HALF),
    "half precision, fixed batch": lambda: whole(values=np.float16, kind=HALF, shape=(1, 3, 32, 32)),
    "double precision": lambda: whole(values=np.float64, kind=DOUBLE),
    "bytes": lambda: model([node("Cast x -> xf", to=FLOAT), *body("xf"), node(GEMM)], weights(),
                           kind=TensorProto.UINT8, out_kind=FLOAT),
    "LSTM": lambda: _recurrent("LSTM", 4), "GRU": lambda: _recurrent("GRU", 3), "RNN": lambda: _recurrent("RNN", 1),
    **{f"shapes computed, opset {n}": lambda n=n: _shape_arithmetic(n) for n in (9, 11, 12, 13, 18, 21)},
    "constants as inputs": _constants_as_inputs,
    "constants as nodes": _constant_nodes,
    "a weight behind Identity": lambda: whole(node("Identity wf -> w"), node("Gemm f w bf -> y")),
    "a weight behind Transpose": lambda: whole(node("Transpose wt -> w"), node("MatMul f w -> m"),
                                               node("Add m bf -> y"), constants=[random("wt", 10, 16)]),
    "optional inputs left out": lambda: whole(node("Gemm f wf _ -> y"), b=[node("Clip c1 _ six -> b")],
                                              constants=[constant("six", 6, np.float32)]),
    "Resize": lambda: whole(b=[node("Resize c1 _ twice -> b", mode="nearest")],
                            constants=[constant("twice", [1, 1, 2, 2], np.float32)]),
    "Upsample, opset 9": lambda: whole(opset=9, b=[node("Upsample c1 twice -> b", mode="nearest")],
                                       constants=[constant("twice", [1, 1, 2, 2], np.float32)]),
    "BatchNormalization, opset 8": lambda: whole(
        opset=8, b=[node("BatchNormalization c1 s s s v -> b")],
        constants=[random("s", 8), constant("v", [1] * 8, np.float32)]),
    "ReduceMean by attribute": lambda: whole(opset=11, f=[node("ReduceMean e2 -> f", axes=[2, 3], keepdims=0)]),
    "a chain of nothing": lambda: whole(node("Identity f -> f1"), node("Dropout f1 -> f2"),
                                        node("Cast f2 -> f3", to=FLOAT), node("Gemm f3 wf bf -> z"),
                                        node("Identity z -> y")),
    "If": _branched, "Loop": _loop,
    "a sequence": lambda: whole(node("Gemm f wf bf -> l"), node("SequenceConstruct l l -> q"),
                                node("ConcatFromSequence q -> y", axis=1)),
    "a sequence as input": _sequence_input,
    "an operator of somebody else": _somebodys,
    "an operator that onnx does not have": lambda: whole(b=[node("ATen c1 -> b")]),
    "height and width open": lambda: whole(shape=("N", 3, "H", "W")),
    "all open": lambda: whole(shape=("N", "C", "H", "W")),
    "no shape": lambda: whole(shape=None),
    "fixed batch of 1": lambda: whole(shape=(1, 3, 32, 32)), "fixed batch of 4": lambda: whole(shape=(4, 3, 32, 32)),
    "a vector as input": lambda: model([node("Gemm x w -> y")], [random("w", 8, 10)], shape=("N", 8)),
    "SAME_UPPER": lambda: _conv(auto_pad="SAME_UPPER"), "VALID": lambda: _conv(auto_pad="VALID"),
    "dilated": lambda: _conv(dilations=[2, 2], pads=[2, 2, 2, 2]),
    **{f"ends in {kind}, opset {n}": lambda kind=kind, n=n: ended(kind, n, **({} if kind == "Sigmoid" else {"axis": 1}))
       for kind in ("Softmax", "LogSoftmax", "Sigmoid") for n in (11, 13, 17)},
    "ends in Softmax behind shapes": lambda: whole(
        node("Reshape f to -> m"), node("Conv m wc -> z"), node("Softmax z -> s", axis=1), node("Flatten s -> t"),
        node("Cast t -> y", to=FLOAT), constants=[constant("to", [-1, 16, 1, 1]), random("wc", 10, 16, 1, 1)]),
}


def no_outputs() -> onnx.ModelProto:
    made = whole()
    del made.graph.output[:]
    return made


def newer() -> onnx.ModelProto:
    made = whole()
    made.opset_import[0].version = 99
    return made


BROKEN: dict[str, Callable[[], onnx.ModelProto]] = {
    "no outputs": no_outputs, "a newer opset": newer,
    "a weight for other channels": lambda: whole(c2=[node("Conv b w5 -> c2")],
                                                    constants=[random("w5", 12, 5, 3, 3)]),
    "a map that shrinks to nothing": lambda: whole(c1=[node("Conv x w40 -> c1")],
                                                   constants=[random("w40", 8, 3, 40, 40)]),
    "images of 100,000 pixels a side": lambda: whole(shape=("N", 3, 100_000, 100_000)),
    "a value that nothing gives": lambda: whole(b=[node("Add c1 nowhere -> b")]),
    "a cycle": lambda: whole(b=[node("Add c1 e -> b"), node("Relu b -> e")])}


def save(made: onnx.ModelProto, path: Path, beside: str | None = None) -> Path:
    """``beside`` is a file for the weights."""
    onnx.save(made, path, save_as_external_data=beside is not None, location=beside, size_threshold=0)
    return path
