"""The shape of every value of an ONNX graph at batch 1, also where exporters computed shapes inside the graph.

ONNX's own inference does one node at a time here; what it cannot see through, arithmetic on shapes, is computed by
ONNX's reference evaluator before the node that needs it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import defs, helper, inliner, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from nas.errors import UserError
from nas.lower.onnx import attributes

Shape = tuple[int, ...]
SMALL = 1024  # elements of a constant that may be a shape; weights are larger or do not matter


def load(path: Path, size: int | None = None) -> tuple[onnx.GraphProto, str, dict[str, Shape]]:
    """The graph, its input and the shapes that are known in full; ``size`` is the side of the input where it is open.

    Raises UserError for a file that is not ONNX and for one that has not one image [1 or open, C, H, W] as its input.
    """
    model, entry, shape = opened(path, size, weights=False)
    types = {tensor.name: helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
             for tensor in model.graph.initializer}
    types[entry.name] = helper.make_tensor_type_proto(entry.type.tensor_type.elem_type, shape)
    try:
        small = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer
                 if math.prod(tensor.dims) <= SMALL and tensor.data_location != onnx.TensorProto.EXTERNAL}
    except Exception as error:  # of whatever kind a broken tensor makes
        raise _no_model(path, error) from None
    return model.graph, entry.name, _Inference(model, types, small).shapes()


def opened(path: Path, size: int | None = None, weights: bool = True) -> tuple[onnx.ModelProto, onnx.ValueInfoProto,
                                                                               Shape]:
    """A model, its input and the shape of that; ``weights`` also reads those that lie in files of their own.

    Raises UserError as ``load`` does.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        model = onnx.load(path, load_external_data=weights)
        model = inliner.inline_local_functions(model) if model.functions else model
        if not model.graph.node:
            raise ValueError("there is no graph in it")
        _check_nodes(model)
    except Exception as error:  # protobuf's own classes have no public base
        raise _no_model(path, error) from None
    entry = _input(path, model.graph)
    return model, entry, _input_shape(path, entry, size)


def _no_model(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: not an ONNX file: {' '.join(str(error).split())[:200]}")


class _Inference:
    """``types`` of all values so far, and ``values`` of those that are small and known."""

    def __init__(self, model: onnx.ModelProto, types: dict[str, onnx.TypeProto],
                 values: dict[str, np.ndarray[Any, Any]]) -> None:
        self.model, self.types, self.values = model, types, values
        self.declared = {value.name: value.type for value in (*model.graph.value_info, *model.graph.output)}
        self.opsets = {opset.domain: opset.version for opset in model.opset_import}
        for node in model.graph.node:
            self._visit(node)

    def shapes(self) -> dict[str, Shape]:
        return {name: sides for name, kind in self.types.items() if (sides := _sides(kind)) is not None}

    def _visit(self, node: onnx.NodeProto) -> None:
        inputs = [name for name in node.input if name]
        if node.op_type == "Shape" and inputs[0] in self.types and _sides(self.types[inputs[0]]) is not None:
            shape = np.array(_sides(self.types[inputs[0]]), np.int64)
            how = attributes(node)
            self._value(node.output[0], shape[how.get("start", 0): how.get("end")])
            return
        self._infer(node, inputs)
        if all(name in self.values for name in inputs) and all(map(self._is_small, filter(None, node.output))):
            self._evaluate(node, inputs)

    def _is_small(self, name: str) -> bool:
        sides = _sides(self.types[name]) if name in self.types else None
        return sides is not None and math.prod(sides) <= SMALL

    def _value(self, name: str, value: np.ndarray[Any, Any]) -> None:
        self.types[name] = helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        if value.size <= SMALL:
            self.values[name] = value

    def _evaluate(self, node: onnx.NodeProto, inputs: list[str]) -> None:
        try:
            feeds = {name: self.values[name] for name in inputs}
            results = ReferenceEvaluator(node, opsets=self.opsets).run(None, feeds)
        except Exception:  # an operator that the evaluator lacks: its shape is known all the same
            return
        for name, result in zip(node.output, results, strict=False):
            self._value(name, np.asarray(result))

    def _infer(self, node: onnx.NodeProto, inputs: list[str]) -> None:
        """Outputs that do not follow have the type that the file declares, if any."""
        try:
            schema = defs.get_schema(node.op_type, self.opsets.get(node.domain, 1), node.domain)
            found = shape_inference.infer_node_outputs(
                schema, node, {name: self.types[name] for name in inputs if name in self.types},
                {name: numpy_helper.from_array(self.values[name]) for name in inputs if name in self.values},
                opset_imports=list(self.model.opset_import), ir_version=self.model.ir_version)
        except Exception:  # no such operator, or one on which inference fails
            found = {}
        for name in filter(None, node.output):
            kind = found.get(name)
            if kind is None or _sides(kind) is None:
                kind = self._declared(name)
            if kind is not None:
                self.types[name] = kind

    def _declared(self, name: str) -> onnx.TypeProto | None:
        """What the file says of a value, with its batch closed."""
        if name not in self.declared:
            return None
        kind = onnx.TypeProto()
        kind.CopyFrom(self.declared[name])
        dims = kind.tensor_type.shape.dim
        if dims and not dims[0].HasField("dim_value"):
            dims[0].dim_value = 1
        return kind


def _sides(kind: onnx.TypeProto) -> Shape | None:
    """None where any is open."""
    dims = kind.tensor_type.shape.dim
    known = kind.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims)
    return tuple(dim.dim_value for dim in dims) if known else None


def _check_nodes(model: onnx.ModelProto) -> None:
    """Inputs and attributes are what the operators have: rules may rely on it. Raises onnx's ValidationError.

    Nodes with graphs inside have no rule, and their inner names need more context than is here.
    """
    context = onnx.checker.C.CheckerContext()
    context.ir_version = model.ir_version
    context.opset_imports = {opset.domain: opset.version for opset in model.opset_import}
    for node in model.graph.node:
        if node.domain in ("", "ai.onnx") and not any(a.type == onnx.AttributeProto.GRAPH for a in node.attribute):
            onnx.checker.check_node(node, context)


def _input(path: Path, graph: onnx.GraphProto) -> onnx.ValueInfoProto:
    weights = {tensor.name for tensor in graph.initializer}
    entries = [value for value in graph.input if value.name not in weights]
    if len(entries) != 1:
        names = ", ".join(value.name for value in entries) or "none"
        raise UserError(f"{path}: inputs are {names}; expected one, an image [N, C, H, W]")
    return entries[0]


def _input_shape(path: Path, entry: onnx.ValueInfoProto, size: int | None) -> Shape:
    """Batch 1, and ``size`` for sides that are open."""
    dims = [dim.dim_value if dim.dim_value > 0 else None for dim in entry.type.tensor_type.shape.dim]
    where = f"{path}: input {entry.name!r}"
    if len(dims) != 4:
        raise UserError(f"{where} has {len(dims)} dimensions; expected an image [N, C, H, W]")
    batch, channels, *sides = dims
    if batch not in (1, None):
        raise UserError(f"{where}: the batch is fixed at {batch}; export it open: the target says the batch")
    if channels is None:
        raise UserError(f"{where}: the number of channels is open; export it with a fixed one")
    if size is None and None in sides:
        raise UserError(f"{where}: height and width are open; give them with --size")
    if size is not None and any(side not in (size, None) for side in sides):
        raise UserError(f"{where}: --size {size}, but the file says {sides[0]}x{sides[1]}")
    return 1, channels, *(side or size or 0 for side in sides)
