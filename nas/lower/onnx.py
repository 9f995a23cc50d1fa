"""Writes a module as one ONNX file: weights inside, batch dynamic, batch norms folded, metadata filled in.

What is measured and what is deployed come from the same ``lower``, so that the latencies are those of the network
that is handed out. The graph is made by ``nas.lower.emit`` and by ``torch.onnx`` for modules that it has no rule for.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from nas.errors import UserError
from nas.files import write_atomic
from nas.lower.emit import OPSET, NoRule, emit_many
from nas.ops import deployed

OUTPUT = ("output",)
MAX_BYTES = 2**31 - 1  # limit of a protobuf message; larger weights would have to be in other files


def export(module: nn.Module, path: Path, *, in_ch: int, size: int, metadata: dict[str, str],
           batch: int | str = "N", outputs: Sequence[str] = OUTPUT) -> None:
    """Converts a module to ONNX, ``input`` [batch, in_ch, size, size] -> ``outputs``, and writes it with its metadata.

    Raises UserError if the weights do not fit into one file.
    """
    refuse_too_large(path, sum(value.nbytes for value in (*module.parameters(), *module.buffers())))
    save(lower(module, in_ch=in_ch, size=size, batch=batch, outputs=outputs), path, metadata)


def save(model: onnx.ModelProto, path: Path, metadata: dict[str, str]) -> None:
    """Writes a graph atomically, with ``metadata_props``. Raises UserError if it does not fit into one file."""
    refuse_too_large(path, sum(len(tensor.raw_data) for tensor in model.graph.initializer))
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    data = model.SerializeToString()
    write_atomic(path, lambda file: file.write(data))


def refuse_too_large(path: Path, weight_bytes: int) -> None:
    """Raises UserError for weights that one ONNX file does not hold; protobuf itself cannot even say their size."""
    if weight_bytes > MAX_BYTES:
        raise UserError(f"{path}: {weight_bytes / 2**30:.1f} GiB of weights, and ONNX in one piece holds less than "
                        "2 GiB")


def lower(module: nn.Module, *, in_ch: int, size: int, batch: int | str = "N",
          outputs: Sequence[str] = OUTPUT) -> onnx.ModelProto:
    """Converts a module in eval mode to an ONNX graph; several ``outputs`` are those of a tuple that it returns.

    It takes milliseconds a block through ``nas.lower.emit``, seconds where it needs ``torch.onnx``.
    """
    try:
        return emit_many(module, {"input": (in_ch, size, size)}, outputs, batch)
    except NoRule:
        return through_torch(module, in_ch=in_ch, size=size, batch=batch, outputs=outputs)


def through_torch(module: nn.Module, *, in_ch: int, size: int, batch: int | str = "N",
                  outputs: Sequence[str] = OUTPUT) -> onnx.ModelProto:
    """Converts a module as ``lower`` does, with PyTorch's exporter; whatever that prints goes to stderr."""
    module = deployed(module)
    x = torch.zeros(2 if isinstance(batch, str) else batch, in_ch, size, size)
    shapes = ({0: torch.export.Dim(batch)},) if isinstance(batch, str) else None
    training = module.training
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(module.eval(), (x,), dynamo=True, dynamic_shapes=shapes, opset_version=OPSET,
                                        input_names=["input"], output_names=list(outputs), verbose=False)
    finally:
        module.train(training)
    assert program is not None
    return program.model_proto


def plain(model: onnx.ModelProto, entry: str, shape: tuple[int, ...]) -> onnx.ModelProto:
    """Simplifies a graph for the int8 formats: ``input`` of a fixed shape, batch norms folded, constants computed.

    Raises UserError for what ONNX Runtime does not load.
    """
    import onnxruntime

    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.value_info[:]
    for value in fixed.graph.input:
        if value.name == entry:
            for dim, side in zip(value.type.tensor_type.shape.dim, shape, strict=True):
                dim.dim_value = side
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "plain.onnx")
        try:
            onnxruntime.InferenceSession(fixed.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its own classes have no public base
            raise UserError(f"ONNX Runtime: {str(error).splitlines()[0][:200]}") from None
        result = onnx.load(options.optimized_model_filepath)
    for value in result.graph.input:
        value.name = "input" if value.name == entry else value.name
    for node in result.graph.node:
        node.input[:] = ["input" if name == entry else name for name in node.input]
    _join_hard_swish(result.graph)
    return result


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Returns the attributes that a node states, by name; ONNX's defaults are not among them."""
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _join_hard_swish(graph: onnx.GraphProto) -> None:
    """Turns ``x * HardSigmoid(x)``, as ONNX Runtime writes a HardSwish, back into a HardSwish."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for gate in [node for node in graph.node if node.op_type == "HardSigmoid"]:
        alpha = attributes(gate).get("alpha", 0.2)
        read = readers.get(gate.output[0], [])
        if (len(read) == 1 and read[0].op_type == "Mul" and gate.input[0] in read[0].input
                and abs(alpha - 1 / 6) < 1e-6):
            read[0].op_type = "HardSwish"
            read[0].input[:] = [gate.input[0]]
            graph.node.remove(gate)
