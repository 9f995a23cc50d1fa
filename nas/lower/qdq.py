"""Quantises an ONNX graph to 8 bits: QuantizeLinear and DequantizeLinear around operators that have an int8 kernel.

ONNX Runtime fuses each of them with its neighbours into one kernel of integers (QLinearConv and its like,
https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html). Its own ``quantize_static`` takes ten
times as long, and a latency table needs a thousand graphs. Maps are asymmetric uint8, weights symmetric int8 a channel,
biases int32. What has no such kernel (a hard swish) stays in float, so nothing is refused.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from nas.lower.int8 import Array, Map, Step, fused, maps, scale_of, symmetric

COMPUTE = ("Conv", "Gemm", "Add", "Mul", "Concat", "GlobalAveragePool", "AveragePool", "Sigmoid")
PASS = ("MaxPool", "Slice", "Flatten", "Reshape", "Transpose")  # their output has the scale of their input
WEIGHTED = ("Conv", "Gemm")
GEMM = {"alpha": 1.0, "beta": 1.0, "transA": 0}
UNIT = Map((), 0.0, 1.0)  # range of a hard sigmoid behind a convolution, whose clamp is the saturation of uint8


def quantise(model: onnx.ModelProto, calibration: Iterable[Tensor] | None = None,
             weight_bits: int = 8) -> onnx.ModelProto:
    """Quantises a graph; its ``input`` and ``output`` stay in float. ``calibration``: batches [n, in_ch, size, size].

    The default, one image of Gaussian noise, will do for timing, which does not depend on the scales. ``weight_bits``
    is 7 for processors that add products in 16 bits, which saturate. Raises UserError for no calibration images, and
    for ones on which the network is not finite.
    """
    if calibration is None:
        _, *shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
        calibration = [torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))]
    writer = _Writer(model, maps(model, calibration), 2 ** (weight_bits - 1) - 1)
    for step in writer.steps:
        writer.write(step)
    quantised = onnx.ModelProto()
    quantised.CopyFrom(model)
    del quantised.graph.node[:], quantised.graph.initializer[:], quantised.graph.value_info[:]
    quantised.graph.node.extend(writer.nodes)
    used = {name for node in writer.nodes for name in node.input}
    quantised.graph.initializer.extend(numpy_helper.from_array(value, name)
                                       for name, value in writer.constants.items() if name in used)
    return quantised


class _Writer:
    """Writes the nodes of the quantised graph, step by step.

    A map that an int8 kernel wrote exists in 8 bits only; one in float gets a copy in 8 bits where it is needed.
    """

    def __init__(self, model: onnx.ModelProto, ranges: dict[str, Map], largest: int) -> None:
        self.constants = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
        self.steps = fused(model.graph.node, self.constants)
        self.nodes: list[onnx.NodeProto] = []
        self._maps, self._largest = ranges, largest
        self._units: dict[str, tuple[str, str]] = {}  # names of scale and zero point, by map in 8 bits
        self._read = {name for step in self.steps if self._computes(step) for name in step.node.input}

    def write(self, step: Step) -> None:
        inputs, wide = list(step.node.input), f"{step.output}/wide"
        if self._computes(step):
            narrow = [self._narrow(name) for name in (inputs[:1] if step.kind in WEIGHTED else inputs)]
            narrow += self._weights(step, narrow[0]) if step.kind in WEIGHTED else []
            if step.kind == "Gemm" and step.act is None and step.output not in self._read:
                self._node(step.node, narrow, step.output)  # logits leave the last kernel in float
            else:
                self._node(step.node, narrow, wide)
                unit = UNIT if step.act == "HardSigmoid" else self._maps[step.output]
                self._quantise(wide, step.output, self._unit(step.output, unit))
        elif step.kind in PASS and inputs[0] in self._units:
            self._node(step.node, inputs, wide)
            self._quantise(wide, step.output, self._units[inputs[0]])
        elif step.behind is None:
            self._node(step.node, inputs, step.output)
        else:
            self._node(step.node, inputs, wide)
            self._node(step.behind, [wide, *step.behind.input[1:]], step.output)

    def _computes(self, step: Step) -> bool:
        """Tells whether ONNX Runtime has an int8 kernel for a step: maps from maps, with constant weights."""
        constant = [name in self.constants for name in step.node.input]
        if step.kind == "Gemm" and any(step.get(name, default) != default for name, default in GEMM.items()):
            return False
        if step.kind in WEIGHTED:
            return not constant[0] and all(constant[1:])
        return step.kind in COMPUTE and not any(constant)

    def _narrow(self, name: str) -> str:
        """Returns the name of a map in 8 bits; quantises a map that is in float only."""
        if name in self._units:
            return name
        copy = f"{name}/narrow"
        if copy not in self._units:
            self._quantise(name, copy, self._unit(name, self._maps[name]))
        return copy

    def _unit(self, name: str, span: Map) -> tuple[str, str]:
        """Adds constants for the scale and the zero point of a map, and returns their names."""
        scale = scale_of(span.low, span.high)
        return (self._constant(f"{name}/scale", np.array(scale, np.float32)),
                self._constant(f"{name}/zero", np.array(round(-span.low / scale), np.uint8)))

    def _quantise(self, source: str, target: str, unit: tuple[str, str]) -> None:
        self.nodes += [helper.make_node("QuantizeLinear", [source, *unit], [f"{target}/stored"]),
                       helper.make_node("DequantizeLinear", [f"{target}/stored", *unit], [target])]
        self._units[target] = unit

    def _weights(self, step: Step, source: str) -> list[str]:
        """Adds the integer weight and bias of a convolution or linear layer that reads ``source``; returns their names.
        """
        weight, *bias = (self.constants[name] for name in step.node.input[1:])
        axis = int(step.kind == "Gemm" and not step.get("transB", 0))
        unit = float(self.constants[self._units[source][0]])
        stored, offset, scale = symmetric(step, weight, bias[0] if bias else None, axis, unit, self._largest)
        return [self._dequantised(f"{step.output}/weight", stored, scale, axis),
                self._dequantised(f"{step.output}/bias", offset, unit * scale, 0)]

    def _dequantised(self, name: str, stored: Array, scale: Array, axis: int) -> str:
        inputs = [self._constant(f"{name}/stored", stored), self._constant(f"{name}/scale", scale.astype(np.float32)),
                  self._constant(f"{name}/zero", np.zeros(len(scale), stored.dtype))]
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [name], axis=axis))
        return name

    def _constant(self, name: str, value: Array) -> str:
        self.constants[name] = value
        return name

    def _node(self, node: onnx.NodeProto, inputs: list[str], output: str) -> None:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:], copy.output[:] = inputs, [output]
        self.nodes.append(copy)
