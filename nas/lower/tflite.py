"""Converts a module to an int8 TFLite file, which microcontrollers and their NPUs run.

It is made of the same graph as the ONNX file (``nas.lower.emit``: batch norms folded), so that the two are one network.
ONNX Runtime runs that graph on calibration images; the smallest and largest value of every map give its scale
(post-training quantisation: asymmetric maps, symmetric weights a channel, 32-bit biases; TFLite's quantisation
specification, https://ai.google.dev/edge/litert/models/quantization_spec). Maps are [1, H, W, C] in TFLite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from nas.errors import UserError
from nas.lower.emit import NoRule, emit
from nas.lower.flatbuffer import Array, Model, Quantization
from nas.lower.int8 import Map, Step, fused, maps, scale_of, symmetric
from nas.lower.onnx import attributes

SAME, VALID = 0, 1  # the schema's Padding
NONE, RELU, RELU6 = 0, 1, 3  # the schema's ActivationFunctionType
FUSED = {"Relu": RELU, "Clip": RELU6, "HardSigmoid": NONE}  # activations that an operator can apply to its output
SHARED = ("Concat", "Slice", "Flatten", "Reshape", "GlobalAveragePool", "ReduceMean", "MaxPool")  # one scale for all
WEIGHTS = {"Conv": 4, "Gemm": 2}  # dimensions of the weight, which has to be constant
GEMM = {"alpha": 1.0, "beta": 1.0, "transA": 0}
ONES = (1, 1)
UNIT = Quantization.of(1 / 256, -128)  # of values between 0 and 1
HAIR = 1 / 512  # tolerance of that range, half a step: ONNX Runtime's sigmoid gives 1.0000001, too


def lower(module: nn.Module, *, in_ch: int, size: int, calibration: Iterable[Tensor] | None = None) -> bytes:
    """Converts a module in eval mode to a TFLite file: ``input`` [1, size, size, in_ch] int8 -> ``output`` int8.

    ``calibration``: batches [n, in_ch, size, size] as the module gets them; default: 8 of Gaussian noise. Raises
    UserError, which names the operator, for what has no rule here, and where the ``tflite`` package is missing.
    """
    model = Model()
    try:
        graph = emit(module, in_ch=in_ch, size=size)
    except NoRule as error:
        raise _unknown(str(error)) from None
    if calibration is None:
        calibration = [torch.randn(8, in_ch, size, size, generator=torch.Generator().manual_seed(0))]
    return _Quantizer(graph, model, calibration).write()


def convert(graph: onnx.ModelProto, calibration: Iterable[Tensor]) -> bytes:
    """Converts any CNN in ONNX that ``nas.lower.onnx.plain`` simplified to a TFLite file; raises as ``lower`` does."""
    return _Quantizer(graph, Model(), calibration).write()


def nhwc(map_: Map) -> tuple[int, ...]:
    """Returns the shape of a map in TFLite for one image: [1, H, W, C], or [1, C] for a vector."""
    return (1, *map_.shape[1:], map_.shape[0]) if len(map_.shape) == 3 else (1, *map_.shape)


def _unknown(what: str) -> UserError:
    return UserError(f"int8 TFLite: no rule for the operator {what}; add one to nas/lower/tflite.py")


class _Quantizer:
    """Converts an ONNX graph: fuses activations, chooses the scales, and writes operator by operator."""

    def __init__(self, graph: onnx.ModelProto, model: Model, calibration: Iterable[Tensor]) -> None:
        self.model = model
        self.constants = {w.name: numpy_helper.to_array(w) for w in graph.graph.initializer}
        self.steps = _steps(graph.graph.node, self.constants)  # first, as an operator without a rule may not run either
        self.maps = maps(graph, calibration)
        self._scales = _scales(self.steps, self.maps)
        self._index: dict[str, int] = {}

    def write(self) -> bytes:
        self._index["input"] = self.model.tensor("input", nhwc(self.maps["input"]), "int8", self._scales["input"])
        for step in self.steps:
            RULES[step.kind](self, step)
        return self.model.serialize([self._index["input"]], [self._index[self.steps[-1].output]])

    def scale(self, name: str) -> Quantization:
        if name not in self._scales:
            raise _unknown(f"that reads the constant {name}")
        return self._scales[name]

    def read(self, name: str) -> int:
        self.scale(name)
        return self._index[name]

    def output(self, step: Step) -> int:
        """Adds the tensor that a step writes and returns its index; that of the last step is called ``output``."""
        name = "output" if step is self.steps[-1] else step.output
        index = self.model.tensor(name, nhwc(self.maps[step.output]), "int8", self._scales[step.output])
        self._index[step.output] = index
        return index

    def ints(self, step: Step, values: Any) -> int:
        return self.model.constant(f"{step.output}/const", np.array(values, np.int32))

    def weights(self, step: Step, weight: Array, bias: Array | None, axis: int) -> tuple[int, int]:
        """Adds weight and bias of a step in 8 and 32 bits, a scale for each channel along ``axis``; returns indices."""
        unit = float(self.scale(step.node.input[0]).scale[0])
        stored, offset, scale = symmetric(step, weight, bias, axis, unit)
        zero = np.zeros(len(scale), np.int64)
        return (self.model.constant(f"{step.output}/weight", stored, Quantization(scale, zero, axis)),
                self.model.constant(f"{step.output}/bias", offset, Quantization(unit * scale, zero)))


def _steps(nodes: Sequence[onnx.NodeProto], constants: dict[str, Array]) -> list[Step]:
    """Fuses activations into the nodes before them. Raises UserError for an operator that has no rule."""
    steps = fused(nodes, constants)
    for step in steps:
        if step.kind not in RULES or not _plain(step.node, constants):
            raise _unknown(f"{step.kind} ({step.node.name or step.node.output[0]})")
    return steps


def _plain(node: onnx.NodeProto, constants: dict[str, Array]) -> bool:
    """Tells whether attributes and weights of a node that its rule does not look at are as the rule assumes."""
    how = attributes(node)
    if node.op_type in WEIGHTS:
        weight = constants.get(node.input[1])
        if weight is None or weight.ndim != WEIGHTS[node.op_type] or any(name not in constants for name in
                                                                        filter(None, node.input[1:])):
            return False
    if node.op_type == "Gemm":
        return all(how.get(name, default) == default for name, default in GEMM.items())
    return not how.get("ceil_mode", 0)


def _scales(steps: Sequence[Step], maps: dict[str, Map]) -> dict[str, Quantization]:
    """Chooses the scale of every map; maps that an operator only moves share one. Raises UserError for a conflict."""
    group = {name: {name} for name in ["input", *(step.output for step in steps)]}
    for step in steps:
        if step.kind in SHARED:
            joined = set().union(*(group[name] for name in [*step.node.input, step.output] if name in group))
            group.update(dict.fromkeys(joined, joined))
    scales: dict[str, Quantization] = {}
    unit = {step.output for step in steps
            if "HardSigmoid" in (step.act, step.kind) or step.kind in ("Sigmoid", "Softmax")}
    for name, members in group.items():
        low, high = min(maps[m].low for m in members), max(maps[m].high for m in members)
        fixed = sorted(members & unit)
        if fixed and (low < -HAIR or high > 1 + HAIR):
            raise _unknown(f"that joins {fixed[0]}, between 0 and 1, with a wider map")
        scale = scale_of(low, high)
        scales[name] = UNIT if fixed else Quantization.of(scale, round(-128 - low / scale))
    return scales


Rule = Callable[[_Quantizer, Step], None]
RULES: dict[str, Rule] = {}


def _rule(*kinds: str) -> Callable[[Rule], Rule]:
    def add(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(kinds, rule))
        return rule

    return add


@_rule("Conv")
def _conv(q: _Quantizer, step: Step) -> None:
    weight, *bias = (q.constants[name] for name in step.node.input[1:] if name)
    out, inner, *_ = weight.shape
    groups = step.get("group", 1)
    depthwise = groups > 1 and inner == 1
    stored = weight.transpose(1, 2, 3, 0) if depthwise else weight.transpose(0, 2, 3, 1)
    where, padding = _padded(q, step)
    inputs = [where, *q.weights(step, stored, bias[0] if bias else None, 3 if depthwise else 0)]
    (stride_h, stride_w), (dilation_h, dilation_w) = step.get("strides", ONES), step.get("dilations", ONES)
    common = {"Padding": padding, "StrideW": stride_w, "StrideH": stride_h, "DilationWFactor": dilation_w,
              "DilationHFactor": dilation_h, "FusedActivationFunction": FUSED[step.act] if step.act else NONE}
    if depthwise:
        q.model.operator("DEPTHWISE_CONV_2D", inputs, [q.output(step)], "DepthwiseConv2DOptions",
                         DepthMultiplier=out // groups, **common)
    else:
        q.model.operator("CONV_2D", inputs, [q.output(step)], "Conv2DOptions", **common)


def _padded(q: _Quantizer, step: Step) -> tuple[int, int]:
    """Returns a step's input and its padding; adds a PAD where neither SAME nor VALID pads as PyTorch does.

    That is so at stride 2 on even sides.
    """
    name = step.node.input[0]
    sides, outs = q.maps[name].shape[1:], q.maps[step.node.output[0]].shape[1:]
    spans = [d * (k - 1) + 1 for d, k in zip(step.get("dilations", ONES), _window(q, step), strict=True)]
    strides = step.get("strides", ONES)
    needed = [(o - 1) * s + span - n for n, o, s, span in zip(sides, outs, strides, spans, strict=True)]
    before = _before(step, [max(0, total) for total in needed])
    after = [max(0, total - pad) for total, pad in zip(needed, before, strict=True)]
    if not any(before + after):
        return q.read(name), VALID
    same = all(o == -(-n // s) and pad == max(0, total) // 2 and pad + rest == max(0, total)
               for n, o, s, pad, rest, total in zip(sides, outs, strides, before, after, needed, strict=True))
    if same:
        return q.read(name), SAME
    margins = [[0, 0], *([b, a] for b, a in zip(before, after, strict=True)), [0, 0]]
    shape = [1, *(n + b + a for n, (b, a) in zip(sides, margins[1:3], strict=True)), q.maps[name].shape[0]]
    padded = q.model.tensor(f"{step.output}/pad", shape, "int8", q.scale(name))
    q.model.operator("PAD", [q.read(name), q.ints(step, margins)], [padded], "PadOptions")
    return padded, VALID


def _before(step: Step, totals: list[int]) -> list[int]:
    """Returns the padding above and left, computed from these totals where the operator leaves it to ONNX."""
    how = step.get("auto_pad", b"NOTSET")
    if how == b"NOTSET":
        return list(step.get("pads", (0, 0, 0, 0))[:2])
    return [{b"SAME_UPPER": total // 2, b"SAME_LOWER": -(-total // 2)}.get(how, 0) for total in totals]


def _window(q: _Quantizer, step: Step) -> tuple[int, ...]:
    shape = step.get("kernel_shape") or q.constants[step.node.input[1]].shape[2:]
    return tuple(shape)


@_rule("Gemm")
def _gemm(q: _Quantizer, step: Step) -> None:
    weight, *bias = (q.constants[name] for name in step.node.input[1:] if name)
    stored = weight if step.get("transB", 0) else weight.T
    inputs = [q.read(step.node.input[0]), *q.weights(step, stored, bias[0] if bias else None, 0)]
    q.model.operator("FULLY_CONNECTED", inputs, [q.output(step)], "FullyConnectedOptions",
                     FusedActivationFunction=FUSED[step.act] if step.act else NONE)


@_rule("Add", "Mul")
def _binary(q: _Quantizer, step: Step) -> None:
    inputs = [q.read(name) for name in step.node.input]
    q.model.operator(step.kind.upper(), inputs, [q.output(step)], f"{step.kind}Options",
                     FusedActivationFunction=FUSED[step.act] if step.act else NONE)


@_rule("HardSwish", "Sigmoid", "Relu")
def _unary(q: _Quantizer, step: Step) -> None:
    code = {"HardSwish": "HARD_SWISH", "Sigmoid": "LOGISTIC", "Relu": "RELU"}[step.kind]
    q.model.operator(code, [q.read(step.node.input[0])], [q.output(step)])


@_rule("Concat")
def _concat(q: _Quantizer, step: Step) -> None:
    axis = step.get("axis") % (1 + len(q.maps[step.output].shape))
    axis = {0: 0, 1: 3, 2: 1, 3: 2}[axis] if len(q.maps[step.output].shape) == 3 else axis
    q.model.operator("CONCATENATION", [q.read(name) for name in step.node.input], [q.output(step)],
                     "ConcatenationOptions", Axis=axis)


@_rule("Slice")
def _slice(q: _Quantizer, step: Step) -> None:
    shape = q.maps[step.node.input[0]].shape
    starts, _, axes, steps = _slices(q, step)
    if set(steps) != {1} or len(shape) != 3:
        raise _unknown(f"{step.kind} with a step, or of a vector")
    begin = [0, 0, 0, 0]
    for start, axis in zip(starts, axes, strict=True):
        if axis % 4:  # axis 0 is the batch, which is one image
            side = shape[axis % 4 - 1]
            begin[{1: 3, 2: 1, 3: 2}[axis % 4]] = min(max(start if start >= 0 else side + start, 0), side)
    q.model.operator("SLICE", [q.read(step.node.input[0]), q.ints(step, begin),
                               q.ints(step, nhwc(q.maps[step.output]))], [q.output(step)], "SliceOptions")


def _slices(q: _Quantizer, step: Step) -> tuple[list[int], ...]:
    """Returns starts, ends, axes and steps of a Slice, with ONNX's defaults for the last two."""
    names = [*step.node.input[1:], "", ""][:4]
    if any(name and name not in q.constants for name in names):
        raise _unknown(f"{step.kind} whose place is computed")
    starts, ends, axes, steps = ([int(v) for v in q.constants[name].ravel()] if name else [] for name in names)
    return starts, ends, axes or list(range(len(starts))), steps or [1] * len(starts)


@_rule("Softmax")
def _softmax(q: _Quantizer, step: Step) -> None:
    """Writes a SOFTMAX, which TFLite computes over the last axis: there, the channels of a map, or all of a vector."""
    dims = 1 + len(q.maps[step.node.input[0]].shape)
    if step.get("axis", -1) % dims != 1:
        raise _unknown(f"{step.kind} over anything but the channels")
    q.model.operator("SOFTMAX", [q.read(step.node.input[0])], [q.output(step)], "SoftmaxOptions", Beta=1.0)


@_rule("Flatten", "Reshape")
def _flatten(q: _Quantizer, step: Step) -> None:
    source, shape = q.maps[step.node.input[0]].shape, nhwc(q.maps[step.output])
    if len(source) == 3 and source[1:] != (1, 1):
        raise _unknown(f"{step.kind} of a map larger than 1x1, whose order differs in TFLite")
    q.model.operator("RESHAPE", [q.read(step.node.input[0]), q.ints(step, shape)], [q.output(step)], "ReshapeOptions")


@_rule("GlobalAveragePool", "ReduceMean")
def _pool(q: _Quantizer, step: Step) -> None:
    """Writes a global mean as AVERAGE_POOL_2D: MEAN costs an Ethos-U two to four times as much (Vela 5.2)."""
    channels, height, width = q.maps[step.node.input[0]].shape
    axes = step.get("axes") or [int(axis) for name in step.node.input[1:] for axis in q.constants[name]]
    if step.kind == "ReduceMean" and sorted(axis % 4 for axis in axes) != [2, 3]:
        raise _unknown("ReduceMean over anything but height and width")
    flat = len(q.maps[step.output].shape) == 1
    pooled = (q.model.tensor(f"{step.output}/pool", (1, 1, 1, channels), "int8", q.scale(step.output)) if flat
              else q.output(step))
    q.model.operator("AVERAGE_POOL_2D", [q.read(step.node.input[0])], [pooled], "Pool2DOptions", Padding=VALID,
                     StrideW=1, StrideH=1, FilterWidth=width, FilterHeight=height, FusedActivationFunction=NONE)
    if flat:
        q.model.operator("RESHAPE", [pooled, q.ints(step, (1, channels))], [q.output(step)], "ReshapeOptions")


@_rule("MaxPool")
def _max_pool(q: _Quantizer, step: Step) -> None:
    if any(step.get("pads", ())) and q.maps[step.node.input[0]].low < 0:
        raise _unknown("MaxPool with padding of a map that has values below zero")  # TFLite pads with zeros
    if len(step.node.output) > 1 or any(d != 1 for d in step.get("dilations", ONES)):
        raise _unknown("MaxPool with dilation or indices")
    where, padding = _padded(q, step)
    (stride_h, stride_w), (height, width) = step.get("strides", ONES), _window(q, step)
    q.model.operator("MAX_POOL_2D", [where], [q.output(step)], "Pool2DOptions", Padding=padding, StrideW=stride_w,
                     StrideH=stride_h, FilterWidth=width, FilterHeight=height, FusedActivationFunction=NONE)
