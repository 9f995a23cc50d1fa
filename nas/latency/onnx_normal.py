"""Puts ONNX graphs of any exporter into one form, so that rules need to know no other.

Functions are inlined, operators are of one opset where onnx's converter can write them so, constants are initialisers,
every node has a name of its own, and the input is called ``input``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
from onnx import GraphProto, NodeProto, TensorProto, helper, inliner, numpy_helper

from nas.latency.onnx_file import check_nodes, entries, inner_graphs, opset, tensors
from nas.lower.emit import OPSET
from nas.lower.onnx import attributes

INPUT = "input"
IR_VERSION = 10  # initialisers need not be inputs, and all that opsets up to 21 have
_FLOATS = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)  # what ``widened`` writes as float
_PLAIN_VALUES = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}


def normalised(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrites a network in the form that this module describes; the argument may change. Raises as onnx does."""
    if model.functions:
        model = inliner.inline_local_functions(model)
    _one_domain(model)
    _replace(model.graph.input, entries(model.graph))
    model.ir_version = max(model.ir_version, IR_VERSION)
    model = _converted(model)
    _lift_constants(model.graph)
    _name_nodes(model.graph, Counter())
    return model


def entry_called_input(model: onnx.ModelProto, entry: str) -> None:
    """Renames the value ``entry`` to ``input``, and another one that has this name already."""
    if entry == INPUT:
        return
    taken = set(_values(model.graph))
    other = next(name for number in range(1, len(taken) + 2) if (name := f"{INPUT}_{number}") not in taken)
    _rename(model.graph, {INPUT: other, entry: INPUT})


def drop_casts(model: onnx.ModelProto, dtypes: Mapping[str, int]) -> None:
    """Turns each Cast to the type that its input already has into an Identity."""
    for node in model.graph.node:
        if node.op_type == "Cast" and attributes(node)["to"] == dtypes.get(node.input[0]):
            node.op_type = "Identity"
            del node.attribute[:]


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the same network in single precision; half precision converts without loss."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    for tensor in tensors(wide.graph):
        if tensor.data_type in _FLOATS:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    _widen_types(wide.graph)
    return wide


def _widen_types(graph: GraphProto) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in _FLOATS:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i in _FLOATS:
                attribute.i = TensorProto.FLOAT
    for inner in inner_graphs(graph.node):
        _widen_types(inner)


def _one_domain(model: onnx.ModelProto) -> None:
    """Writes the domain of ONNX's own operators, also spelt ``ai.onnx``, as empty, and drops domains without use."""
    version, used = opset(model), {node.domain for node in _nodes(model.graph)}
    others = [entry for entry in model.opset_import if entry.domain not in ("", "ai.onnx") and entry.domain in used]
    _replace(model.opset_import, [helper.make_opsetid("", version), *others])
    for node in _nodes(model.graph):
        node.domain = "" if node.domain == "ai.onnx" else node.domain


def _converted(model: onnx.ModelProto) -> onnx.ModelProto:
    """Converts a model of an earlier opset to ``OPSET``, where onnx's converter can; else returns it as it is."""
    if opset(model) >= OPSET:
        return model
    try:
        new = onnx.version_converter.convert_version(model, OPSET)
        check_nodes(new)
    except Exception:  # of whatever kind the converter and the checker have: rules say what they do not know
        return model
    _replace(new.metadata_props, list(model.metadata_props))
    known = {entry.domain for entry in new.opset_import}
    new.opset_import.extend(entry for entry in model.opset_import if entry.domain not in known)
    return new


def _lift_constants(graph: GraphProto) -> None:
    """Turns Constant nodes into initialisers, which is where rules look for weights."""
    kept = []
    for node in graph.node:
        tensor = _constant(node)
        if tensor is None:
            kept.append(node)
        else:
            graph.initializer.append(tensor)
    _replace(graph.node, kept)


def _constant(node: NodeProto) -> TensorProto | None:
    if node.op_type != "Constant" or node.domain or len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    if attribute.name == "value":
        tensor = TensorProto()
        tensor.CopyFrom(attribute.t)
        tensor.name = node.output[0]
        return tensor
    if attribute.name not in _PLAIN_VALUES:
        return None  # strings, and sparse tensors
    value = np.array(helper.get_attribute_value(attribute), _PLAIN_VALUES[attribute.name])
    return numpy_helper.from_array(value, node.output[0])


def _name_nodes(graph: GraphProto, taken: Counter[str]) -> None:
    """Gives every node a unique name: its own or that of its first output, with a number where that is taken."""
    for node in graph.node:
        name = node.name or next(filter(None, node.output), node.op_type)
        while taken[name]:
            taken[name] += 1
            name = f"{name}_{taken[name] - 1}"
        taken[name] += 1
        node.name = name
    for inner in inner_graphs(graph.node):
        _name_nodes(inner, taken)


def _rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)
    for inner in inner_graphs(graph.node):
        _rename(inner, names)


def _values(graph: GraphProto) -> Iterable[str]:
    for value in (*graph.input, *graph.output, *graph.initializer):
        yield value.name
    for node in graph.node:
        yield from (*node.input, *node.output)
    for inner in inner_graphs(graph.node):
        yield from _values(inner)


def _nodes(graph: GraphProto) -> Iterable[NodeProto]:
    yield from graph.node
    for inner in inner_graphs(graph.node):
        yield from _nodes(inner)


def _replace(field: Any, values: list[Any]) -> None:
    """Makes ``values`` the content of a repeated field; some of them may be in it."""
    copies = [type(value)() for value in values]
    for copy, value in zip(copies, values, strict=True):
        copy.CopyFrom(value)
    del field[:]
    field.extend(copies)
