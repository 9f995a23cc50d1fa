"""Tells which ONNX operators a kernel model covers; one with an attribute that it does not cover has no known cost.

Convolutions were fitted on rows of TensorRT (``experiments/v100-kernel-model``): square kernels of 1, 3, 5 and 7,
strides of 1 and 2, no dilation, and as many outputs as a padding of half the kernel gives. Numbers of channels, sides
and groups are continuous in the model, which says how it goes beyond its rows. Everything else is bound by the memory
that it moves, which holds where no element is read many times over and none is computed in another type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, defs, numpy_helper

from nas.latency.fusion import Shape
from nas.lower.onnx import attributes

KERNELS, STRIDES = (1, 3, 5, 7), (1, 2)  # of convolutions in the rows that the model is fitted on
LARGEST_POOL = 7  # side of a window; larger ones that overlap read every element too often to be bound by memory
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)  # an engine computes all in its own precision
Check = Callable[["Site"], "str | None"]


@dataclass(frozen=True)
class Site:
    """Holds an ONNX node with what its graph says of its inputs and outputs."""

    node: onnx.NodeProto
    shapes: Mapping[str, Shape]
    dtypes: Mapping[str, int]
    constants: Mapping[str, onnx.TensorProto]

    @property
    def how(self) -> dict[str, Any]:
        """Returns the attributes that the node states."""
        return attributes(self.node)

    def shape(self, position: int) -> Shape:
        """Returns the shape of an input; () where it is not there or not known."""
        names = self.node.input
        return self.shapes.get(names[position], ()) if position < len(names) else ()

    @property
    def made(self) -> Shape:
        """Returns the shape of the first output."""
        return self.shapes.get(self.node.output[0], ())

    def values(self, position: int) -> list[Any] | None:
        """Returns the values of a constant input; None where it is no constant, [] where it is not there."""
        names = self.node.input
        if position >= len(names) or not names[position]:
            return []
        tensor = self.constants.get(names[position])
        return None if tensor is None else list(np.atleast_1d(numpy_helper.to_array(tensor)).tolist())


@dataclass(frozen=True)
class Cover:
    """Says which attributes of an ONNX operator have known costs: ``any`` at all values, ``only`` at some values.

    Other attributes have to be at their default.
    ``check`` says what else is not covered, from shapes and constants.
    """

    any: tuple[str, ...] = ()
    only: Mapping[str, tuple[Any, ...]] | None = None
    check: Check | None = None


def gap(site: Site) -> str | None:
    """Names what of a node no cost covers, such as ``dilations [2, 2]``; None where all of it is covered."""
    cover = COVERED[site.node.op_type]
    for name, value in site.how.items():
        if name not in cover.any and not _covered(site.node, name, value, cover):
            return f"{name} {_shown(value)}"
    for value in (*site.node.input[:1], *filter(None, site.node.output)):
        if site.dtypes.get(value, TensorProto.FLOAT) not in FLOATS:
            return f"type {str(TensorProto.DataType.Name(site.dtypes[value])).lower()}"
    return cover.check(site) if cover.check else None


def conv_gap(kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], sides: Sequence[int],
             outs: Sequence[int]) -> str | None:
    """Names what of a convolution from maps of ``sides`` to ``outs`` no cost covers; None where all is covered."""
    if len(kernel) != 2 or kernel[0] != kernel[1] or kernel[0] not in KERNELS:
        return f"kernel_shape {list(kernel)}"
    if strides[0] != strides[1] or strides[0] not in STRIDES:
        return f"strides {list(strides)}"
    if kernel[0] > 1 and any(step != 1 for step in dilations):
        return f"dilations {list(dilations)}"
    if len(sides) != len(outs):
        return f"maps of {list(sides)} made to {list(outs)}"
    if any(out > -(-side // strides[0]) for side, out in zip(sides, outs, strict=True)):
        return f"pads that make {list(outs)} of {list(sides)}"
    return None


def pool_gap(window: Sequence[int], strides: Sequence[int], dilations: Sequence[int],
             sides: Sequence[int]) -> str | None:
    """Names what keeps a pooling of maps of ``sides`` from being bound by memory; None where nothing does."""
    if any(step != 1 for step in dilations):
        return f"dilations {list(dilations)}"
    if any(LARGEST_POOL < w < side and step < w for w, step, side in zip(window, strides, sides, strict=True)):
        return f"kernel_shape {list(window)} in steps of {list(strides)}"
    return None


def _covered(node: onnx.NodeProto, name: str, value: Any, cover: Cover) -> bool:
    if cover.only and name in cover.only:
        return value in cover.only[name]
    known = defs.get_schema(node.op_type).attributes
    default = known[name].default_value if name in known else None
    return default is not None and bool(default.name) and value == onnx.helper.get_attribute_value(default)


def _shown(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _conv(site: Site) -> str | None:
    if len(site.shape(1)) != 4:
        return f"a weight of {list(site.shape(1))}"
    kernel, ones = site.shape(1)[2:], [1, 1]
    return conv_gap(kernel, site.how.get("strides", ones), site.how.get("dilations", ones), site.shape(0)[2:],
                    site.made[2:])


def _matrix(site: Site) -> str | None:
    return None if len(site.shape(1)) == 2 else f"a weight of {list(site.shape(1))}"


def _pool(site: Site) -> str | None:
    if len(list(filter(None, site.node.output))) > 1:
        return "a second output"
    window = site.how["kernel_shape"]
    ones = [1] * len(window)
    return pool_gap(window, site.how.get("strides", ones), site.how.get("dilations", ones), site.shape(0)[2:])


def _slice(site: Site) -> str | None:
    steps = site.values(4)
    return None if steps is not None and set(steps) <= {1} else f"steps {'unknown' if steps is None else steps}"


def _dropout(site: Site) -> str | None:
    return None if site.values(2) in ([], [False]) else "training_mode"


_WINDOW = ("auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "strides")
_REDUCED = Cover(("axes", "keepdims"))
_PLAIN = Cover()
COVERED: dict[str, Cover] = {
    "Conv": Cover(("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"), check=_conv),
    "Gemm": Cover(("alpha", "beta", "transB"), check=_matrix),
    "MatMul": Cover(check=_matrix),
    "BatchNormalization": Cover(("epsilon", "momentum")),
    # numbers in an activation change what is computed, not how much is moved
    **dict.fromkeys(("Celu", "Elu", "LeakyRelu", "ThresholdedRelu", "Swish"), Cover(("alpha",))),
    "HardSigmoid": Cover(("alpha", "beta")), "Selu": Cover(("alpha", "gamma")),
    "Gelu": Cover(("approximate",)), "Clip": Cover(("min", "max")),
    **dict.fromkeys(("Abs", "Erf", "Exp", "HardSwish", "Mish", "Neg", "Pow", "PRelu", "Reciprocal", "Relu", "Sigmoid",
                     "Softplus", "Softsign", "Sqrt", "Tanh"), _PLAIN),
    **dict.fromkeys(("Add", "Sum", "Div", "Max", "Min", "Mul", "Sub"), _PLAIN),
    "AveragePool": Cover((*_WINDOW, "count_include_pad"), check=_pool), "MaxPool": Cover(_WINDOW, check=_pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _PLAIN),
    **dict.fromkeys(("ReduceMax", "ReduceMean", "ReduceSum"), _REDUCED),
    **dict.fromkeys(("Softmax", "LogSoftmax"), Cover(("axis",))),
    "Concat": Cover(("axis",)), "Gather": Cover(("axis",)), "Pad": Cover(("mode", "pads", "value")),
    "Slice": Cover(("axes", "ends", "starts"), check=_slice), "Split": Cover(("axis", "num_outputs", "split")),
    "DepthToSpace": Cover(("blocksize", "mode")), "SpaceToDepth": Cover(("blocksize",)), "Tile": _PLAIN,
    "Resize": Cover(("axes", "cubic_coeff_a", "extrapolation_value", "keep_aspect_ratio_policy", "nearest_mode"), {
        "mode": (b"nearest", b"linear"),
        "coordinate_transformation_mode": (b"half_pixel", b"half_pixel_symmetric", b"pytorch_half_pixel",
                                           b"align_corners", b"asymmetric")}),
    "Upsample": Cover(("scales",), {"mode": (b"nearest", b"linear")}),
    "Dropout": Cover(("ratio", "seed"), check=_dropout), "Cast": Cover(("saturate", "to")), "Expand": _PLAIN,
    "Identity": _PLAIN, "Squeeze": Cover(("axes",)), "Unsqueeze": Cover(("axes",)), "Transpose": Cover(("perm",)),
    "Reshape": Cover(("allowzero", "shape")), "Flatten": Cover(("axis",)),
}
