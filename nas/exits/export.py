"""Writes a network with exits as ONNX: one file with nested ``If`` for single images, and one a segment for batches.

``If`` holds one condition, so that it cannot route the images of a batch: that file has batch 1. A branch has its
weights in its own graph: if they were left in the graph around it, ONNX Runtime would not use its blocked convolutions.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from nas.errors import UserError
from nas.exits import runtime
from nas.exits.files import ExitFiles, Handover
from nas.exits.graft import emit_segment
from nas.exits.net import Combine, MultiExit, Network
from nas.exits.thresholds import Policy
from nas.lower.emit import NoRule
from nas.lower.onnx import save

BRANCHED, SEGMENT, RUNTIME = "model.onnx", "segment-{}.onnx", "runtime.py"
FLOAT_BYTES = 4


def export(net: MultiExit, folder: Path, *, in_ch: int, size: int, policy: Policy,
           metadata: dict[str, str]) -> ExitFiles:
    """Writes ``model.onnx``, ``segment-0.onnx`` ... and ``runtime.py``, which runs either, into ``folder``.

    Raises UserError for a network with calls that have no rule in nas.lower.emit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = segments(net, in_ch=in_ch, size=size)
    kept = {**metadata, runtime.KEY: json.dumps(policy.to_json(), allow_nan=False)}
    save(branched(net, policy, in_ch=in_ch, size=size), folder / BRANCHED, kept)
    names = [SEGMENT.format(index) for index in range(len(parts))]
    for old in {path.name for path in folder.glob(SEGMENT.format("*"))} - set(names):  # of more exits, written before
        (folder / old).unlink()
    for name, part in zip(names, parts, strict=True):
        save(part, folder / name, kept)
    shutil.copyfile(runtime.__file__, folder / RUNTIME)
    return ExitFiles(onnx=BRANCHED, segments=names, runtime=RUNTIME, cuts=[_handover(part) for part in parts[:-1]])


def check(net: Network, *, in_ch: int, size: int) -> None:
    """Raises UserError, as ``export`` would, for a network before it is trained; leaves it as it is."""
    whole = MultiExit(net, Combine())
    modes = [(module, module.training) for module in whole.modules()]
    try:
        segments(whole.eval(), in_ch=in_ch, size=size)
    finally:
        for module, training in modes:
            module.training = training


def segments(net: MultiExit, *, in_ch: int, size: int, batch: int | str = "N") -> list[onnx.ModelProto]:
    """Returns one graph a segment: ``input``, or ``map`` and ``state``, -> ``logits``, ``map_out`` and ``state_out``.

    The last has ``logits`` alone, and ``state`` is there where the exits of the network build on each other. Raises
    UserError as ``export`` does.
    """
    models, shapes = [], {"input": (in_ch, size, size)}
    for segment in net.segments():
        with torch.no_grad():
            made = segment.eval()(*(torch.zeros(1, *shape) for shape in shapes.values()))
        try:
            models.append(emit_segment(segment, shapes, ["logits", "map_out", "state_out"][:len(made)], batch))
        except NoRule as error:
            raise UserError(f"exits: no rule for {error} in nas/lower/emit.py: files with exits cannot hold it"
                            ) from None
        shapes = {name: tuple(y.shape[1:]) for name, y in zip(("map", "state"), made[1:], strict=False)}
    return models


def branched(net: MultiExit, policy: Policy, *, in_ch: int, size: int) -> onnx.ModelProto:
    """Builds one graph: ``input`` [1, in_ch, size, size] -> ``output`` [1, classes] and ``exit`` (its number, from 0).

    ``thresholds`` [exits - 1] is an input with a default, so that it can be changed without another file.
    """
    parts, last = list[_Part](), {"input": "input"}
    models = segments(net, in_ch=in_ch, size=size, batch=1)
    for index, model in enumerate(models):
        parts.append(_Part(model.graph, index, last))
        last = parts[-1].handed
    level = parts[-1].graph([], [])
    for part in reversed(parts[:-1]):
        level = _level(part, policy, level)
    names = dict(zip((value.name for value in level.output), ("output", "exit"), strict=True))
    for node in level.node:
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in level.output:
        value.name = names[value.name]
    thresholds = np.array(policy.point.thresholds[:-1], np.float32)
    if len(thresholds) > 1:
        each = [_threshold(index, len(thresholds)) for index in range(len(thresholds))]
        level.node.insert(0, helper.make_node("Split", ["thresholds"], each, axis=0, num_outputs=len(each)))
    level.initializer.append(numpy_helper.from_array(thresholds, "thresholds"))
    level.input.extend([helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, in_ch, size, size]),
                        helper.make_tensor_value_info("thresholds", TensorProto.FLOAT, [len(thresholds)])])
    return helper.make_model(level, opset_imports=models[0].opset_import, ir_version=10, producer_name="nas")


class _Part:
    """Puts a segment into the whole graph: its names become unique, and it reads what the segment before made.

    ``logits`` is the name of its prediction, ``handed`` are those of the map and the state for the next.
    """

    def __init__(self, segment: GraphProto, index: int, read: dict[str, str]) -> None:
        self.index, names = index, {**read, "": ""}
        self.classes = segment.output[0].type.tensor_type.shape.dim[1].dim_value
        results = {value.name for value in segment.output}
        self.nodes, self.weights, made = list[NodeProto](), list[TensorProto](), dict[str, str]()
        for node in segment.node:
            inputs = [names.get(name, f"s{index}_{name}") for name in node.input]
            if node.output[0] in results:  # an Identity, which would be run as a copy before a branch
                made[node.output[0]] = inputs[0]
                continue
            renamed = NodeProto()
            renamed.CopyFrom(node)
            renamed.input[:], renamed.output[:] = inputs, [name and f"s{index}_{name}" for name in node.output]
            renamed.name = renamed.output[0]
            self.nodes.append(renamed)
        for weight in segment.initializer:
            self.weights.append(TensorProto())
            self.weights[-1].CopyFrom(weight)
            self.weights[-1].name = f"s{index}_{weight.name}"
        self.logits = made.pop("logits")
        self.handed = {name.removesuffix("_out"): value for name, value in made.items()}

    def graph(self, nodes: Sequence[NodeProto], weights: Sequence[TensorProto]) -> GraphProto:
        """Makes a graph of its nodes and those that follow; if none do, prediction and number of the exit go out."""
        names = f"output_{self.index}", f"exit_{self.index}"
        follow = nodes or _answer(self.logits, self.index, *names)
        return helper.make_graph([*self.nodes, *follow], f"from_{self.index}", [], _outputs(*names, self.classes),
                                 [*self.weights, *weights])


def _level(part: _Part, policy: Policy, beyond: GraphProto) -> GraphProto:
    """Makes the graph of a segment, how sure its exit is, and an ``If``: its prediction, or the graph ``beyond``."""
    index = part.index
    sure = _Sure(part, policy.kind, policy.temperatures[index], len(policy.temperatures) - 1)
    names = f"here_{index}", f"here_exit_{index}"
    leave = helper.make_graph(_answer(part.logits, index, *names), f"leave_{index}", [], _outputs(*names, part.classes))
    choice = helper.make_node("If", [sure.condition], [f"output_{index}", f"exit_{index}"], name=f"if_{index}",
                              then_branch=leave, else_branch=beyond)
    return part.graph([*sure.nodes, choice], sure.weights)


def _threshold(index: int, exits: int) -> str:
    """Returns the name of an exit's threshold [1]; that of the input itself where there is one exit."""
    return f"threshold_{index}" if exits > 1 else "thresholds"


def _answer(logits: str, index: int, output: str, exit_: str) -> list[NodeProto]:
    number = numpy_helper.from_array(np.array(index, np.int64))
    return [helper.make_node("Identity", [logits], [output]), helper.make_node("Constant", [], [exit_], value=number)]


class _Sure:
    """Writes ``nas.exits.runtime.confidence`` as nodes, and compares it with the threshold of the exit."""

    def __init__(self, part: _Part, kind: str, temperature: float, exits: int) -> None:
        self.index, self.logits, self.nodes, self.weights = (
            part.index, part.logits, list[NodeProto](), list[TensorProto]())
        if kind == "patience":
            sure = self._patience()
        else:
            # Mul, which networks have: what runs once an image is as slow as its code is cold
            scaled = self.node("Mul", self.logits, self.constant(np.float32(1 / temperature)))
            p = self.node("Softmax", scaled, axis=1)
            if kind == "max-softmax":
                sure = self.node("ReduceMax", p, keepdims=0)  # over all axes: without them ONNX Runtime is faster
            else:
                log_p = self.node("LogSoftmax", scaled, axis=1)
                negative = self.node("ReduceSum", self.node("Mul", p, log_p), keepdims=0)
                share = self.node("Div", negative, self.constant(np.float32(math.log(part.classes))))
                sure = self.node("Add", share, self.constant(np.float32(1)))
        self.condition = self.node("GreaterOrEqual", sure, _threshold(part.index, exits))

    def _patience(self) -> str:
        """Counts how many exits before agree in a row; ``class_i`` and ``run_i`` are read by the next exit."""
        i = self.index
        self.nodes.append(helper.make_node("ArgMax", [self.logits], [f"class_{i}"], axis=1, keepdims=0))
        if i:
            same = self.node("Cast", self.node("Equal", f"class_{i}", f"class_{i - 1}"), to=TensorProto.FLOAT)
            run = self.node("Mul", same, self.node("Add", f"run_{i - 1}", self.constant(np.float32(1))))
        else:
            run = self.constant(np.zeros(1, np.float32))
        self.nodes.append(helper.make_node("Identity", [run], [f"run_{i}"]))
        return self.node("ReduceMax", run, self.constant(np.zeros(1, np.int64)), keepdims=0)

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"sure_{self.index}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, value: Any) -> str:
        name = f"sure_{self.index}_w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name


def _outputs(logits: str, exit_: str, classes: int) -> Sequence[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(logits, TensorProto.FLOAT, [1, classes]),
            helper.make_tensor_value_info(exit_, TensorProto.INT64, [])]


def _handover(part: onnx.ModelProto) -> Handover:
    shapes = {value.name.removesuffix("_out"): [dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]]
              for value in part.graph.output if value.name != "logits"}
    return Handover(**shapes, bytes=FLOAT_BYTES * sum(math.prod(shape) for shape in shapes.values()))
