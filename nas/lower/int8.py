"""Quantises after training, for all int8 formats: fuses activations, finds ranges of maps, rounds weights.

ONNX Runtime runs the float graph on calibration images, and the smallest and largest value of every map give its scale.
Weights are symmetric, with a scale for each output channel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from torch import Tensor

from nas.errors import UserError
from nas.lower.onnx import attributes

Array = np.ndarray[Any, Any]
TAKES = {"Conv": ("Relu", "Clip", "HardSigmoid"), "Gemm": ("Relu", "Clip", "HardSigmoid"), "Add": ("Relu", "Clip")}
DEAD = 1e-6  # a map that is zero everywhere (SE layers of a few channels die) must not get a scale of zero


@dataclass(frozen=True)
class Map:
    """Describes a tensor of the ONNX graph: shape without the batch, smallest and largest value (zero is between)."""

    shape: tuple[int, ...]
    low: float
    high: float


@dataclass
class Step:
    """Holds an ONNX node with the activation that is fused into it, if any; ``output`` is what both together write."""

    node: onnx.NodeProto
    output: str
    behind: onnx.NodeProto | None = None

    @property
    def kind(self) -> str:
        return str(self.node.op_type)

    @property
    def act(self) -> str | None:
        """Returns the operator type of the fused activation, None where there is none."""
        return None if self.behind is None else str(self.behind.op_type)

    def get(self, name: str, default: Any = None) -> Any:
        return attributes(self.node).get(name, default)


def maps(graph: onnx.ModelProto, calibration: Iterable[Tensor]) -> dict[str, Map]:
    """Runs the graph on batches [n, in_ch, size, size] and returns shape and range of every map by name.

    Raises UserError for no batches, for a NaN, and for a graph that ONNX Runtime does not run.
    """
    names = [name for node in graph.graph.node for name in node.output if name]
    watched = onnx.ModelProto()
    watched.CopyFrom(graph)
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised, and said once
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    ranges: dict[str, Map] = {}
    for batch in calibration:
        images = batch.numpy()
        try:
            values = session.run(names, {"input": images})
        except Exception as error:  # its own classes have no public base
            raise UserError(f"ONNX Runtime: {str(error).splitlines()[0][:200]}") from None
        for name, value in zip(["input", *names], [images, *values], strict=True):
            old = ranges.get(name, Map(value.shape[1:], 0.0, 0.0))  # zero is always representable: padding needs it
            low, high = np.minimum(old.low, value.min()), np.maximum(old.high, value.max())  # these keep a NaN
            ranges[name] = Map(old.shape, float(low), float(high))
    if not ranges:
        raise UserError("int8: there are no calibration images")
    if not all(np.isfinite([m.low, m.high]).all() for m in ranges.values()):
        raise UserError("int8: the network's maps are not finite on the calibration images")
    return ranges


def scale_of(low: float, high: float) -> float:
    """Returns the step with which 256 values span the range from ``low`` to ``high``."""
    return (high - low if high - low > DEAD else 1.0) / 255


def fused(nodes: Sequence[onnx.NodeProto], constants: Mapping[str, Array]) -> list[Step]:
    """Joins activations with the nodes before them, where int8 kernels compute both at once; keeps the order."""
    reads = Counter(name for node in nodes for name in node.input)
    steps: list[Step] = []
    maker: dict[str, Step] = {}
    for node in nodes:
        before = maker.get(node.input[0]) if node.input and reads[node.input[0]] == 1 else None  # no one else reads it
        if before is None or not _fuses(before, node, constants):
            before = Step(node, node.output[0])
            steps.append(before)
        elif node.op_type != "Identity":
            before.behind = node
        before.output = node.output[0]
        maker[node.output[0]] = before
    return steps


def symmetric(step: Step, weight: Array, bias: Array | None, axis: int, unit: float,
              largest: int = 127) -> tuple[Array, Array, Array]:
    """Rounds a step's weights to int8 and biases to int32; returns both and the scale of each channel along ``axis``.

    Biases are in units of ``unit``, the scale of the input, times the scale of the weights.
    """
    bias = np.zeros(weight.shape[axis], np.float32) if bias is None else bias
    if step.act == "HardSigmoid":  # x / 6 + 1/2 goes into the weights, the clamp is int8's own saturation
        weight, bias = weight / 6, bias / 6 + 0.5
    peak = np.abs(weight).max(axis=tuple(i for i in range(weight.ndim) if i != axis))
    scale = np.maximum.reduce([peak / largest, np.abs(bias) / unit / 2**30, np.full_like(peak, 1e-12)])
    wide = scale.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
    stored = np.clip(np.rint(weight / wide), -largest, largest).astype(np.int8)
    return stored, np.rint(bias / (unit * scale)).astype(np.int32), scale


def is_hard_sigmoid(node: onnx.NodeProto) -> bool:
    """Tells whether a node is PyTorch's hard sigmoid, x / 6 + 1/2 cut to [0, 1]."""
    how = attributes(node)
    return bool(node.op_type == "HardSigmoid" and abs(how.get("alpha", 0.2) - 1 / 6) < 1e-3
                and abs(how.get("beta", 0.5) - 0.5) < 1e-3)


def _fuses(step: Step, node: onnx.NodeProto, constants: Mapping[str, Array]) -> bool:
    if node.op_type == "Identity":
        return True
    if node.op_type == "Clip":
        bounds = [constants[name].item() for name in node.input[1:] if name in constants]
        if bounds != [0, 6]:
            return False
    if node.op_type == "HardSigmoid" and not is_hard_sigmoid(node):
        return False
    return step.act is None and node.op_type in TAKES.get(step.kind, ())
