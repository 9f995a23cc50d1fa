"""Infers the shape of every value of an ONNX graph at batch 1, also where exporters computed shapes inside the graph.

ONNX's own inference does one node at a time here; what it cannot see through, arithmetic on shapes, is computed by
ONNX's reference evaluator before the node that needs it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import defs, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from nas.lower.onnx import attributes

Shape = tuple[int, ...]
SMALL = 1024  # elements of a constant that may be a shape; weights are larger or do not matter


def shapes(model: onnx.ModelProto, entry: str, shape: Shape) -> tuple[dict[str, Shape], dict[str, int]]:
    """Infers shapes from that of the input ``entry``; returns those that are known in full, and types of elements.

    Raises what onnx raises for a broken tensor.
    """
    types = {tensor.name: helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
             for tensor in model.graph.initializer}
    small = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer
             if math.prod(tensor.dims) <= SMALL and tensor.data_location != onnx.TensorProto.EXTERNAL}
    for value in model.graph.input:
        types[value.name] = value.type
        if value.name == entry:
            types[entry] = helper.make_tensor_type_proto(value.type.tensor_type.elem_type, shape)
    inference = _Inference(model, types, small)
    return inference.shapes(), inference.dtypes()


class _Inference:
    """Visits the nodes of a graph in order; collects ``types`` of values, and small ``values`` that can be computed."""

    def __init__(self, model: onnx.ModelProto, types: dict[str, onnx.TypeProto],
                 values: dict[str, np.ndarray[Any, Any]]) -> None:
        self.model, self.types, self.values = model, types, values
        self.declared = {value.name: value.type for value in (*model.graph.value_info, *model.graph.output)}
        self.opsets = {opset.domain: opset.version for opset in model.opset_import}
        for node in model.graph.node:
            self._visit(node)

    def shapes(self) -> dict[str, Shape]:
        return {name: sides for name, kind in self.types.items() if (sides := _sides(kind)) is not None}

    def dtypes(self) -> dict[str, int]:
        return {name: kind.tensor_type.elem_type for name, kind in self.types.items()}

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
            results = ReferenceEvaluator(self._alone(node, feeds)).run(None, feeds)
        except Exception:  # an operator that the evaluator lacks: its shape is known all the same
            return
        for name, result in zip(filter(None, node.output), results, strict=True):
            self._value(name, np.asarray(result))

    def _alone(self, node: onnx.NodeProto, feeds: Mapping[str, np.ndarray[Any, Any]]) -> onnx.ModelProto:
        """Makes a model of one node and its inputs, so that the evaluator runs it in the version that the file uses.

        A node without a model would be run in its operator's newest version.
        """
        inputs = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
                  for name, value in feeds.items()]
        outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        return helper.make_model(helper.make_graph([node], "node", inputs, outputs),
                                 opset_imports=self.model.opset_import, ir_version=self.model.ir_version)

    def _infer(self, node: onnx.NodeProto, inputs: list[str]) -> None:
        """Infers the types of a node's outputs; where that fails, takes those that the file declares."""
        try:
            schema = defs.get_schema(node.op_type, self.opsets.get(node.domain, 1), node.domain)
            inferred = shape_inference.infer_node_outputs(
                schema, node, {name: self.types[name] for name in inputs if name in self.types},
                {name: numpy_helper.from_array(self.values[name]) for name in inputs if name in self.values},
                opset_imports=list(self.model.opset_import), ir_version=self.model.ir_version)
        except Exception:  # no such operator, or one on which inference fails
            inferred = {}
        for name in filter(None, node.output):
            kind = inferred.get(name)
            if kind is None or _sides(kind) is None:
                kind = self._declared(name)
            if kind is not None:
                self.types[name] = kind

    def _declared(self, name: str) -> onnx.TypeProto | None:
        """Returns the type that the file declares for a value, at batch 1 where that is open."""
        if name not in self.declared:
            return None
        kind = onnx.TypeProto()
        kind.CopyFrom(self.declared[name])
        dims = kind.tensor_type.shape.dim
        if dims and not dims[0].HasField("dim_value"):
            dims[0].dim_value = 1
        return kind


def _sides(kind: onnx.TypeProto) -> Shape | None:
    """Returns the shape of a tensor's type; None where any side is open."""
    dims = kind.tensor_type.shape.dim
    known = kind.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims)
    return tuple(dim.dim_value for dim in dims) if known else None
