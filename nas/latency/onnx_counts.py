"""Counts multiply-adds and parameters of an ONNX graph for one image, operator by operator."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx

from nas.latency.onnx_graph import Graph, Shape
from nas.lower.onnx import attributes

_LEARNED = {"BatchNormalization": (1, 2), "DequantizeLinear": (0,), "Gather": (0,), "Add": (0, 1), "Sub": (0, 1),
            "Mul": (0, 1), "Div": (0, 1), "PRelu": (1,)}  # inputs that are learned; of all others with weights: from 1
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "InstanceNormalization", "LayerNormalization",
             "GroupNormalization", "LSTM", "GRU", "RNN", "DeformConv")
_UNCOUNTED = ("Attention", "DeformConv", "Einsum", "GRU", "LSTM", "RNN", "ConvInteger", "MatMulInteger", "QLinearConv",
              "QLinearMatMul", "If", "Loop", "Scan")  # they multiply and add, and no rule here counts that


@dataclass(frozen=True)
class OperatorCount:
    """Holds the count of one operator, in millions; None where that is not known."""

    name: str
    op: str
    millions: float | None


def counts(graph: Graph, what: str) -> list[OperatorCount]:
    """Counts ``what``, ``macs`` or ``params``, of every operator that has any, in order."""
    how = {"macs": _macs, "params": _params}[what]
    return [OperatorCount(name, op, None if count is None else count / 1e6)
            for name, op, count in how(graph) if count != 0]


def multiply_adds(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int | None:
    """Returns how often a node multiplies and adds for one image, 0 where it never does; None where no rule says it."""
    if node.domain or node.op_type in _UNCOUNTED:
        return None
    if node.op_type not in _RULES:
        return 0
    known = [shapes[name] for name in (*node.input[:2], node.output[0]) if name in shapes]
    return _RULES[node.op_type](node, known) if len(known) == 3 else None


def _macs(graph: Graph) -> Iterator[tuple[str, str, int | None]]:
    for node in graph.model.graph.node:
        yield _name(node), node.op_type, multiply_adds(node, graph.shapes)


def _params(graph: Graph) -> Iterator[tuple[str, str, int | None]]:
    """Counts learned numbers, each tensor once: no scalars, which are constants, and no statistics of batch norms."""
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in graph.model.graph.initializer}
    left = {name: size for name, size in sizes.items() if size > 1}
    for node in graph.model.graph.node:
        places = _LEARNED.get(node.op_type, range(len(node.input)) if node.op_type == "MatMul" else
                              range(1, len(node.input)) if node.op_type in _WEIGHTED else ())
        names = [node.input[place] for place in places if place < len(node.input)]
        yield _name(node), node.op_type, sum(left.pop(name, 0) for name in names)


def _name(node: onnx.NodeProto) -> str:
    return node.name or node.output[0]


def _gemm(node: onnx.NodeProto, shapes: Sequence[Shape]) -> int:
    rows = shapes[0][0 if attributes(node).get("transA", 0) else 1]
    return math.prod(shapes[2]) * rows


_RULES: dict[str, Callable[[onnx.NodeProto, Sequence[Shape]], int]] = {
    "Conv": lambda node, shapes: math.prod(shapes[2]) * math.prod(shapes[1][1:]),
    "ConvTranspose": lambda node, shapes: math.prod(shapes[0]) * math.prod(shapes[1][1:]),
    "MatMul": lambda node, shapes: math.prod(shapes[2]) * shapes[0][-1],
    "Gemm": _gemm}
