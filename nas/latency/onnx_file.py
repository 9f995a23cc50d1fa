"""Reads an ONNX file with what lies beside it, and says in one line what is wrong with it.

Weights may be in files of their own (external data): in the folder of the file or below it, nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import onnx
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, defs, external_data_helper

from nas.errors import UserError
from nas.lower import formats


def load_model(path: Path, weights: bool = True) -> onnx.ModelProto:
    """Reads an ONNX file as it is; without ``weights``, those in separate files, which may be large, are left out.

    Raises UserError for a file that is missing or no ONNX, and for weights that are missing, cut off or elsewhere.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        model = onnx.load(path, load_external_data=False)
        if not model.graph.node:
            raise ValueError("there is no graph in it")
        if not model.graph.output:
            raise ValueError("its graph has no outputs")
    except Exception as error:  # protobuf's own classes have no public base
        raise no_model(path, error) from None
    _check_opset(path, model)
    outside = [tensor for tensor in tensors(model.graph) if external_data_helper.uses_external_data(tensor)]
    if weights and outside:
        for tensor in outside:
            _check_place(path, tensor)
        try:
            external_data_helper.load_external_data_for_model(model, str(path.parent))
        except Exception as error:  # onnx's own classes, OSError, ValueError
            raise UserError(f"{path}: its weights cannot be read: {one_line(error)}") from None
    return model


def runnable(path: Path) -> Path | bytes:
    """Returns what a session can be made of: the file itself, or its model with unique names of nodes.

    Runtimes refuse files in which nodes share a name.

    Raises UserError as ``load_model`` does.
    """
    model = load_model(path)
    names = [node.name for node in model.graph.node if node.name]
    if len(set(names)) == len(names):
        return path
    for node in model.graph.node:
        node.name = ""
    return bytes(model.SerializeToString())


def check_nodes(model: onnx.ModelProto) -> None:
    """Checks that nodes have the inputs and attributes of their operators, on which rules rely.

    Nodes with graphs inside have no rule, and their inner names need more context than is here; operators that onnx
    does not know have none either. Raises onnx's ValidationError.
    """
    context = onnx.checker.C.CheckerContext()
    context.ir_version = model.ir_version
    context.opset_imports = {entry.domain: entry.version for entry in model.opset_import}
    for node in model.graph.node:
        inner = any(a.type == onnx.AttributeProto.GRAPH for a in node.attribute)
        if node.domain in ("", "ai.onnx") and not inner and defs.has(node.op_type, opset(model)):
            onnx.checker.check_node(node, context)


def check_order(path: Path, model: onnx.ModelProto) -> None:
    """Raises UserError for a node that reads what no earlier one, input or weight gives: also a cycle."""
    graph = model.graph
    given = {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
    given |= {tensor.values.name for tensor in graph.sparse_initializer}
    for node in graph.node:
        if missing := [name for name in node.input if name and name not in given]:
            raise UserError(f"{path}: a broken graph: {node.op_type} ({node.name or ', '.join(node.output)}) reads "
                            f"{missing[0]!r}, which nothing before it gives; export it anew")
        given.update(node.output)


def check_sides(path: Path, model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises UserError for maps that shrink to nothing, and for convolutions of other channels than they are given."""
    for node in model.graph.node:
        what = f"{path}: {node.op_type} ({node.name or ', '.join(node.output)})"
        if any(side < 0 for name in node.output for side in shapes.get(name, ())):
            raise UserError(f"{what}: its images are too small for it: its output would have negative sides")
        if node.op_type == "Conv" and all(shapes.get(name) for name in node.input[:2]):
            image, weight = (shapes[name] for name in node.input[:2])
            groups = next((a.i for a in node.attribute if a.name == "group"), 1)
            if len(image) > 1 and len(weight) > 1 and image[1] != weight[1] * groups:
                raise UserError(f"{what}: reads {image[1]} channels, and its weights are for {weight[1] * groups}; "
                                "export it anew")


def no_model(path: Path, error: Exception) -> UserError:
    """Returns the error to raise for a file that onnx refuses."""
    other = formats.not_onnx(path) if path.exists() else None
    return UserError(other or f"{path}: not an ONNX file: {one_line(error)}")


def one_line(error: Exception) -> str:
    """Returns the first 200 characters of an error, on one line."""
    return " ".join(str(error).split())[:200]


def opset(model: onnx.ModelProto) -> int:
    """Returns the version of ONNX's own operators that the model uses; 1 where it names none."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)


def entries(graph: GraphProto) -> list[ValueInfoProto]:
    """Returns the inputs that a caller has to feed: those that are not constants with a default."""
    constants = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in constants]


def fixed_batch(model: onnx.ModelProto) -> int | None:
    """Returns the batch at which a file fixes its first input; None where that is open."""
    dims = [value.type.tensor_type.shape.dim for value in entries(model.graph)]
    return dims[0][0].dim_value if dims and dims[0] and dims[0][0].dim_value > 0 else None


def tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Yields all constants of a graph, those in attributes and in graphs inside nodes, too."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
    for inner in inner_graphs(graph.node):
        yield from tensors(inner)


def inner_graphs(nodes: object) -> Iterator[GraphProto]:
    """Yields the graphs that nodes hold as attributes: branches and bodies of loops."""
    node: NodeProto
    for node in nodes:  # type: ignore[attr-defined]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
            yield from attribute.graphs


def _check_opset(path: Path, model: onnx.ModelProto) -> None:
    if opset(model) > (known := defs.onnx_opset_version()):
        raise UserError(f"{path}: is of opset {opset(model)}, onnx {onnx.__version__} knows up to {known}: "
                        f"export it in opset {known} or earlier")


def _check_place(path: Path, tensor: TensorProto) -> None:
    """Checks that weights outside the file are there, in the folder of the model. Raises UserError."""
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    parts, file = PurePosixPath(location.replace("\\", "/")), path.parent / location
    if not location or parts.is_absolute() or ".." in parts.parts or not _inside(file, path.parent):
        raise UserError(f"{path}: says that weights lie in {location!r}, outside its folder: put them beside it and "
                        "save it anew")
    if not file.is_file():
        raise UserError(f"{path}: its weights lie in {location}, which is missing: put that file into "
                        f"{path.parent.resolve()}")


def _inside(file: Path, folder: Path) -> bool:
    return file.resolve().is_relative_to(folder.resolve())
