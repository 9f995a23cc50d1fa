"""Tells whether a network's output is logits, or what a Softmax or Sigmoid at its end made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto

from nas.lower.onnx import attributes

LOGITS = "logits"
ENDS = {"Softmax": "probabilities", "LogSoftmax": "log-probabilities", "Sigmoid": "independent probabilities"}
SUM_TOLERANCE = 1e-2  # of a sum of a thousand probabilities in half precision or 8 bits
LEAST = 1e-12  # stands for a probability that came out as zero
PASSED_ON = ("Identity", "Flatten", "Squeeze", "Unsqueeze", "Reshape", "Cast", "Dropout")  # the same numbers
Shape = tuple[int, ...]
Values = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Ending:
    """Says what the output is (``logits`` where nothing else is known), and names the node that makes it so."""

    kind: str = LOGITS
    node: str | None = None
    op: str | None = None


def find_ending(model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> Ending:
    """Returns the ending of the first output; nodes that only change shape or type are passed over.

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


def kind_by_values(outputs: Values) -> str:
    """Tells from outputs [n, classes] what they are: ``probabilities`` where all rows sum to 1, else ``logits``."""
    summed = np.allclose(outputs.sum(1), 1, atol=SUM_TOLERANCE) and outputs.shape[1] > 1
    return ENDS["Softmax"] if len(outputs) and summed and outputs.min() >= 0 else LOGITS


def as_logits(outputs: Values, kind: str) -> Values:
    """Turns outputs [n, classes] of a kind into logits; of Sigmoids into those that give the same probabilities."""
    if kind in (LOGITS, ENDS["LogSoftmax"]):
        return outputs
    p = np.clip(outputs.astype(np.float64), LEAST, None)
    return np.asarray(np.log(p) if kind == ENDS["Softmax"] else np.log(p) - np.log(np.clip(1 - p, LEAST, None)))


def without_ending(model: onnx.ModelProto, end: Ending) -> onnx.ModelProto:
    """Returns a copy of the model without the node of its ending, so that its output is logits."""
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
        return math.prod(shape[1:]) > 1  # a single number is the answer to a yes or no question
    axis = attributes(node).get("axis", -1)
    if len(shape) < 2 or not -len(shape) <= axis < len(shape) or axis % len(shape) == 0:
        return False
    return shape[axis] == math.prod(shape[1:]) > 1
