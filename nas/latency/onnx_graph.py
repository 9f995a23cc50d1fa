"""Reads ONNX files of any exporter, checks them and brings them into one form, for all commands that read graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from onnx import TensorProto

from nas.errors import UserError, setting
from nas.latency import onnx_ending, onnx_shapes
from nas.latency.onnx_ending import Ending, find_ending
from nas.latency.onnx_file import check_nodes, check_order, check_sides, load_model, no_model, tensors
from nas.latency.onnx_normal import INPUT, drop_casts, entry_called_input, normalised, widened
from nas.lower.onnx import refuse_too_large
from nas.plan import check_image

Shape = tuple[int, ...]
LOGITS_ALONE = Ending()


@dataclass(frozen=True)
class Graph:
    """Holds an image network in the form of ``nas.latency.onnx_normal``; its input ``entry`` is called ``input``.

    ``shape`` of the input and ``shapes`` of all values are those at batch 1; ``batch`` is what the file fixes, None
    where it is open; ``dtypes`` are onnx's numbers of the elements' types; ``cut`` is the ending that was taken off.
    """

    path: Path
    model: onnx.ModelProto
    shape: Shape
    batch: int | None
    shapes: Mapping[str, Shape]
    dtypes: Mapping[str, int]
    ending: Ending
    entry: str = INPUT
    cut: Ending = LOGITS_ALONE

    @property
    def dtype(self) -> str:
        """Returns the type of the input's elements, such as float16."""
        return str(TensorProto.DataType.Name(self.dtypes[self.entry])).lower()

    def logits(self) -> Graph:
        """Returns the graph without a Softmax, LogSoftmax or Sigmoid at its end."""
        model = onnx_ending.without_ending(self.model, self.ending)
        return replace(self, model=model, ending=Ending(), cut=self.ending)

    def in_float(self) -> Graph:
        """Returns the graph in single precision. Raises UserError where the input is not of floating point."""
        if self.dtypes[self.entry] == TensorProto.FLOAT:
            return self
        if self.dtype not in ("float16", "bfloat16", "double"):
            raise UserError(f"{self.path}: its input is {self.dtype}; expected floating point")
        return _inferred(self.path, widened(self.model), self.shape, self.batch)


def read_graph(path: Path, size: int | None = None, weights: bool = True, any_batch: bool = False) -> Graph:
    """Reads an ONNX file whose input is an image; ``size`` is the side of the image where the file leaves it open.

    Without ``weights`` those in files of their own are not read. With ``any_batch`` shapes are those of the batch that
    the file fixes. Raises UserError for a file that is not ONNX, whose input is another, or whose batch is fixed at
    more than 1.
    """
    model = load_model(path, weights)
    refuse_too_large(path, sum(len(tensor.raw_data) for tensor in tensors(model.graph)))
    try:
        check_nodes(model)
        check_order(path, model)
        model = normalised(model)
        entry = _input(path, model.graph)
        shape, batch = _input_shape(path, entry, size, any_batch)
        entry_called_input(model, entry.name)
        return _inferred(path, model, shape, batch)
    except UserError:
        raise
    except Exception as error:  # of whatever kind onnx has for a broken file: its classes have no common base
        raise no_model(path, error) from None


def _inferred(path: Path, model: onnx.ModelProto, shape: Shape, batch: int | None) -> Graph:
    shapes, dtypes = onnx_shapes.shapes(model, INPUT, shape)
    check_sides(path, model, shapes)
    drop_casts(model, dtypes)
    return Graph(path, model, shape, batch, shapes, dtypes, find_ending(model, shapes))


def _input(path: Path, graph: onnx.GraphProto) -> onnx.ValueInfoProto:
    if len(graph.input) != 1:
        names = ", ".join(value.name for value in graph.input) or "none"
        raise UserError(f"{path}: inputs are {names}; expected one, an image [N, C, H, W]")
    return graph.input[0]


def _input_shape(path: Path, entry: onnx.ValueInfoProto, size: int | None,
                 any_batch: bool) -> tuple[Shape, int | None]:
    """Returns the input's shape, with batch 1 and ``size`` where they are open, and the batch that the file fixes."""
    where = f"{path}: input {entry.name!r}"
    if not entry.type.HasField("tensor_type"):
        raise UserError(f"{where} is a {entry.type.WhichOneof('value') or 'value without a type'}; expected an image "
                        "[N, C, H, W]")
    if not entry.type.tensor_type.HasField("shape"):
        raise UserError(f"{where} says no shape; export it as an image [N, C, H, W]")
    dims = [dim.dim_value if dim.dim_value > 0 else None for dim in entry.type.tensor_type.shape.dim]
    if len(dims) != 4:
        raise UserError(f"{where} has {len(dims)} dimensions; expected an image [N, C, H, W]")
    batch, channels, *sides = dims
    if batch not in (1, None) and not any_batch:
        raise UserError(f"{where}: the batch is fixed at {batch}; export it open: the target says the batch")
    if channels is None:
        raise UserError(f"{where}: the number of channels is open; export it with a fixed one")
    check_image(where, sides, size)
    if size is None and None in sides:
        raise UserError(f"{where}: height and width are open; give them with {setting('size')}")
    if size is not None and any(side not in (size, None) for side in sides):
        raise UserError(f"{where}: {setting('size', size)}, but the file says {sides[0]}x{sides[1]}")
    return (batch or 1, channels, *(side or size or 0 for side in sides)), batch
