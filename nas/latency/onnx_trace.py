"""Lists the fused kernels that an inference engine launches for an ONNX graph (for a module: ``nas.latency.trace``).

Shapes are inferred at batch 1, fusion is ``nas.latency.fusion``: a network has the same kernels whether it is asked for
as a module or as the file that it was exported to. Work on weights and on shapes alone is free.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx

from nas.errors import UserError
from nas.latency.coverage import Site, gap
from nas.latency.fusion import Group, Node, Shape, fuse
from nas.latency.onnx_graph import Graph
from nas.lower.onnx import attributes

UNKNOWN = "unknown"  # ``op`` of a node without a rule: its own kernel, of unknown cost
_UNARY = frozenset((
    "Abs", "Celu", "Clip", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Neg", "Pow",
    "PRelu", "Reciprocal", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Swish", "Tanh",
    "ThresholdedRelu"))
_JOINS = frozenset(("Div", "Max", "Min", "Mul", "Sub"))
_POOLS = frozenset((
    "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "ReduceMax", "ReduceMean", "ReduceSum"))
_COPIES = frozenset(("DepthToSpace", "Gather", "Pad", "Slice", "SpaceToDepth", "Split", "Tile"))
_FREE = frozenset(("Cast", "Dropout", "Identity", "Squeeze", "Unsqueeze"))
_ABOUT_SHAPES = frozenset(("Shape", "Size"))  # what they return is no feature map


@dataclass(frozen=True)
class Value:
    """Describes a feature map: the node that made it, its shape, and whether a transpose left its elements in place."""

    node: int
    shape: Shape
    permuted: bool = False


def trace(graph: Graph) -> list[Group]:
    """Lists the launches of a graph in order; those that no kernel is known for have ``head.op == UNKNOWN``.

    Raises UserError for a graph whose shapes do not follow from its input's, and for one that does not read it.
    """
    tracer = _Tracer(graph)
    for node in graph.model.graph.node:
        tracer.visit(node)
    outputs = [tracer.maps[out.name].node for out in graph.model.graph.output if out.name in tracer.maps]
    if not outputs:
        raise UserError(f"{graph.path}: its output does not depend on its input")
    return fuse(tracer.nodes, outputs)


class _Tracer:
    """Turns ONNX nodes into nodes of ``nas.latency.fusion``; node 0 is the input."""

    def __init__(self, graph: Graph) -> None:
        self.path, self.shapes, self.dtypes, self.last = graph.path, graph.shapes, graph.dtypes, graph.ending.node
        self.constants = {tensor.name: tensor for tensor in graph.model.graph.initializer}
        self.nodes = [Node("input", (), (), graph.shape)]
        self.maps = {graph.entry: Value(0, graph.shape)}

    def visit(self, node: onnx.NodeProto) -> None:
        read = [name for name in _reads(node) if name in self.maps]
        if not read or node.op_type in _ABOUT_SHAPES:
            return
        maps = [replace(self.maps[name], shape=self.shape(name)) for name in read]
        rule = _RULES.get(node.op_type) if not node.domain else None
        why = gap(Site(node, self.shapes, self.dtypes, self.constants)) if rule else None
        if rule is None or why or not rule(self, node, maps):
            for name in filter(None, node.output):  # the shape is needed only where it is read
                self._append(UNKNOWN, node, maps, name, self.shapes.get(name, ()), why=why or "")

    def shape(self, name: str) -> Shape:
        if name not in self.shapes:
            unknown = [node.name for node in self.nodes if node.op == UNKNOWN]
            behind = f", behind {unknown[-1]}, for which no kernel is known" if unknown else ""
            raise UserError(f"{self.path}: the shape of {name!r} does not follow from the input's{behind}; "
                            "time the file instead: nas measure")
        return self.shapes[name]

    def add(self, op: str, node: onnx.NodeProto, maps: Sequence[Value], output: str | None = None,
            **how: Any) -> bool:
        """Adds a node that makes ``output`` (the first, unless given); returns True: the ONNX node is understood."""
        name = output or node.output[0]
        self._append(op, node, maps, name, self.shape(name), **how)
        return True

    def _append(self, op: str, node: onnx.NodeProto, maps: Sequence[Value], name: str, shape: Shape,
                **how: Any) -> None:
        self.nodes.append(Node(op, tuple(m.node for m in maps), tuple(m.shape for m in maps), shape,
                               name=node.name or name, kind=node.op_type, **how))
        self.maps[name] = Value(len(self.nodes) - 1, shape)

    def keep(self, node: onnx.NodeProto, value: Value, permuted: bool | None = None) -> bool:
        """Notes that a node only gives its map another shape, which takes no time; returns True: it is understood."""
        shape = self.shape(node.output[0])
        self.maps[node.output[0]] = Value(value.node, shape, value.permuted if permuted is None else permuted)
        return True

    def is_map(self, name: str) -> bool:
        return name in self.maps


def _conv(tracer: _Tracer, node: onnx.NodeProto, maps: list[Value]) -> bool:
    weight, how = tracer.shapes.get(node.input[1], ()), attributes(node)
    if len(maps) > 1 or len(weight) != 4 or min(*weight, *how.get("strides", [1]), how.get("group", 1)) < 1:
        return False
    return tracer.add("conv", node, maps, kernel=math.sqrt(math.prod(weight[2:])), groups=how.get("group", 1),
                      stride=max(how.get("strides", [1])))


def _linear(tracer: _Tracer, node: onnx.NodeProto, maps: list[Value]) -> bool:
    if tracer.is_map(node.input[1]) or not tracer.is_map(node.input[0]):
        return False  # a product of two maps, as in attention
    return tracer.add("conv", node, maps[:1])


def _norm(tracer: _Tracer, node: onnx.NodeProto, maps: list[Value]) -> bool:
    return not attributes(node).get("training_mode") and tracer.add("norm", node, maps)


def _unary(tracer: _Tracer, node: onnx.NodeProto, maps: list[Value]) -> bool:
    return len(maps) == 1 and tracer.add("act", node, maps)


def _binary(tracer: _Tracer, node: onnx.NodeProto, maps: list[Value]) -> bool:
    if len(maps) == 1:  # the other one is a weight
        bias = node.op_type == "Add" and tracer.nodes[maps[0].node].op == "conv"
        return tracer.add("norm" if bias else "act", node, maps)
    root = _common_root(tracer.nodes, maps)
    if root is not None:  # x * sigmoid(x) and the like: an activation in pieces
        return tracer.add("act", node, [replace(maps[0], node=root)])
    return tracer.add("add" if node.op_type in ("Add", "Sum") else "join", node, maps)


def _common_root(nodes: Sequence[Node], maps: Sequence[Value]) -> int | None:
    """Returns the node of which all the maps are elementwise functions; None where there is none."""
    chains = [_chain(nodes, value.node) for value in maps]
    return next((index for index in chains[0] if all(index in chain for chain in chains[1:])), None)


def _chain(nodes: Sequence[Node], index: int) -> list[int]:
    """Lists a node and those before it, back to the first that is not computed element by element from another."""
    chain = [index]
    while nodes[chain[-1]].op in ("act", "norm"):
        chain.append(nodes[chain[-1]].inputs[0])
    return chain


def _moves(op: str) -> Callable[[_Tracer, onnx.NodeProto, list[Value]], bool]:
    return lambda tracer, node, maps: tracer.add(op, node, maps[:1])


def _cat(tracer: _Tracer, node: onnx.NodeProto, maps: list[Value]) -> bool:
    return tracer.add("cat", node, maps)


def _softmax(tracer: _Tracer, node: onnx.NodeProto, maps: list[Value]) -> bool:
    """Prices the Softmax at the end of a classifier alone, which is small; others, as in attention, are unknown."""
    return node.name == tracer.last and tracer.add("softmax", node, maps)


def _copy(tracer: _Tracer, node: onnx.NodeProto, maps: list[Value]) -> bool:
    """Adds a copy for each output; it is free where the output is the whole input."""
    if not tracer.is_map(node.input[0]):
        return False
    for name in filter(None, node.output):
        if tracer.shape(name) == maps[0].shape and node.op_type != "Gather":
            tracer.maps[name] = maps[0]
        else:
            tracer.add("copy", node, maps[:1], name)
    return True


def _free(tracer: _Tracer, node: onnx.NodeProto, maps: list[Value]) -> bool:
    return tracer.keep(node, maps[0])


def _expand(tracer: _Tracer, node: onnx.NodeProto, maps: list[Value]) -> bool:
    """Adds a copy where the output is larger than the input; else it is free."""
    return _free(tracer, node, maps) if tracer.shape(node.output[0]) == maps[0].shape else (
        tracer.add("copy", node, maps[:1]))


def _transpose(tracer: _Tracer, node: onnx.NodeProto, maps: list[Value]) -> bool:
    """Marks the map as permuted: a transpose is free, but a later reshape has to move the elements.

    Sides of 1 may go anywhere.
    """
    shape = maps[0].shape
    order = [axis for axis in attributes(node).get("perm", range(len(shape))[::-1]) if shape[axis] > 1]
    return tracer.keep(node, maps[0], maps[0].permuted or order != sorted(order))


def _reshape(tracer: _Tracer, node: onnx.NodeProto, maps: list[Value]) -> bool:
    return tracer.add("copy", node, maps) if maps[0].permuted else tracer.keep(node, maps[0])


_RULES: dict[str, Callable[[_Tracer, onnx.NodeProto, list[Value]], bool]] = {
    "Conv": _conv, "Gemm": _linear, "MatMul": _linear, "BatchNormalization": _norm, "Concat": _cat, "Add": _binary,
    "Sum": _binary, "Transpose": _transpose, "Reshape": _reshape, "Flatten": _reshape, "Resize": _moves("resize"),
    "Upsample": _moves("resize"), "Expand": _expand, "Softmax": _softmax, "LogSoftmax": _softmax,
    **dict.fromkeys(_UNARY, _unary), **dict.fromkeys(_JOINS, _binary),
    **dict.fromkeys(_POOLS, _moves("pool")), **dict.fromkeys(_COPIES, _copy), **dict.fromkeys(_FREE, _free),
}


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yields the names of the values that a node reads, also those that branches of an If read from outside."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _reads(inner)
