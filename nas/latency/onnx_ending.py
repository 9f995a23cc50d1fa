"""What numbers a network's output is made of: logits, or what a Softmax or Sigmoid at its end made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from onnx import NodeProto

from nas.lower.onnx import attributes

LOGITS = "logits"
ENDS = {"Softmax": "probabilities", "LogSoftmax": "log-probabilities", "Sigmoid": "independent probabilities"}
PASSED_ON = ("Identity", "Flatten", "Squeeze", "Unsqueeze", "Reshape", "Cast", "Dropout")  # the same numbers
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Ending:
    """What the output is (``logits`` where nothing else is known), and the node that makes it so, by name."""

    kind: str = LOGITS
    node: str | None = None
    op: str | None = None


def ending(model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> Ending:
    """Of the first output, through nodes behind that only give it another shape or type.

    A Softmax counts where it is over the classes: over the one axis behind the batch that is longer than 1.
    """
    maker = {name: node for node in model.graph.node for name in node.output if name}
    name = model.graph.output[0].name if model.graph.output else ""
    while name in maker and maker[name].op_type in PASSED_ON and not maker[name].domain:
        name = maker[name].input[0]
    node = maker.get(name)
    if node is None or node.domain or node.op_type not in ENDS or not _over_classes(node, shapes):
        return Ending()
    return Ending(ENDS[node.op_type], node.name, node.op_type)


def logits(model: onnx.ModelProto, end: Ending) -> onnx.ModelProto:
    """A copy of the model without the node of its ending."""
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    for node in cut.graph.node:
        if node.name == end.node:
            node.op_type = "Identity"
            del node.attribute[:]
    return cut


def _over_classes(node: NodeProto, shapes: Mapping[str, Shape]) -> bool:
    shape = shapes.get(node.input[0], ())
    if node.op_type == "Sigmoid":
        return math.prod(shape[1:]) > 1  # of one number it is the answer to yes or no
    axis = attributes(node).get("axis", -1)
    if len(shape) < 2 or not -len(shape) <= axis < len(shape) or axis % len(shape) == 0:
        return False
    return shape[axis] == math.prod(shape[1:]) > 1
