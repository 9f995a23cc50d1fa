"""Adds exits to a network given as an ONNX graph: cuts it where one map alone goes on, and runs the pieces as they are.

The graph is frozen: PyTorch trains heads on the maps that ONNX Runtime hands out.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
import onnxruntime
import torch
from onnx import GraphProto, NodeProto, TensorProto, helper
from torch import Tensor, nn

from nas.errors import UserError
from nas.exits.batch import read_from, shapes_from_batch
from nas.exits.net import Segment, logits_of
from nas.lower.emit import emit_many
from nas.ops.heads import ExitHead

HIDDEN = 128  # channels of a head's convolution, as in the spaces
LEAST_OPSET = 18  # reductions have their axes as an input, as the nodes behind an exit are written
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Cut:
    """Marks a map [N, channels, side, side] that is all that the nodes up to ``node``, which makes it, hand on."""

    name: str
    node: int
    channels: int
    side: int


def cuts(graph: GraphProto, entry: str, shapes: Mapping[str, Shape], aside: frozenset[str] = frozenset()) -> list[Cut]:
    """Returns where an exit may stand: on the last such map before each smaller one, behind the first convolution.

    Values ``aside`` may go on beside it: any piece has them. A map that was widened for the step to the smaller one, as
    in an inverted bottleneck, is replaced by what it was widened from.
    """
    last_read = _last_reads(graph)
    made, alive, places = {entry}, {entry}, list[Cut]()
    seen = False
    for index, node in enumerate(graph.node):
        if not any(name in made for name in node.input):
            continue  # of constants alone
        made.update(node.output)
        seen |= node.op_type == "Conv"
        alive = {name for name in (*alive, *node.output) if last_read.get(name, -1) > index} - aside
        shape = shapes.get(next(iter(alive)), ()) if len(alive) == 1 else ()
        if seen and len(shape) == 4 and shape[2] == shape[3] and shape[2] > 1 and alive & set(node.output):
            places.append(Cut(next(iter(alive)), index, shape[1], shape[2]))
    return [_narrowest(list(same)) for _, same in itertools.groupby(places, key=lambda cut: cut.side)][:-1]


def _narrowest(same: list[Cut]) -> Cut:
    """Returns the best of maps of one size for an exit: the last, or the narrowest before it, as long as none is wider.

    Going back from the last map, it stops at the first that has more channels than the map behind it.
    """
    best = same[-1]
    for later, before in itertools.pairwise(reversed(same)):
        if before.channels > later.channels:
            break
        best = min(best, before, key=lambda cut: cut.channels)
    return best


class Part(nn.Module):
    """Runs a piece of the graph between two cuts as a module without parameters: [N, C, S, S] -> its one output."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        self.model = model
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(model.SerializeToString(), options,
                                                     providers=["CPUExecutionProvider"])

    def forward(self, x: Tensor) -> Tensor:
        read = self._session.get_inputs()[0].name
        made = self._session.run(None, {read: x.detach().cpu().contiguous().numpy()})[0]
        return torch.from_numpy(made).to(x.device)


class Grafted(nn.Module):
    """Makes an ONNX graph a ``nas.exits.net.Network``: pieces, cut at ``places``, with new exit heads between."""

    def __init__(self, model: onnx.ModelProto, places: Sequence[Cut], parts: Sequence[Part],
                 heads: Sequence[nn.Module], classes: int) -> None:
        super().__init__()
        self.model, self.places = model, places
        self.parts, self.exits, self.classes = nn.ModuleList(parts), nn.ModuleList(heads), classes
        self.head = nn.Identity()

    def stages(self) -> list[tuple[nn.Module, nn.Module]]:
        return list(zip(self.parts, [*self.exits, self.head], strict=True))

    def logits(self, x: Tensor) -> list[Tensor]:
        return logits_of(self.stages(), x)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the network without its exits: images [N, C, S, S] -> logits [N, classes]."""
        for part in self.parts:
            x = part(x)
        return x


def graft(model: onnx.ModelProto, entry: str, shapes: Mapping[str, Shape], hidden: int = HIDDEN) -> Grafted:
    """Puts an exit at each of a graph's ``cuts``. Raises UserError for a network that has none, or one that is no
    classifier.
    """
    _check_form(model)
    whole = model
    model, of_shapes = shapes_from_batch(model, entry, shapes)
    graph, places = model.graph, cuts(model.graph, entry, shapes, of_shapes)
    out = shapes.get(graph.output[0].name, ())
    if len(graph.output) != 1 or len(out) != 2:
        raise UserError("the network has not one output [N, classes]: exits are for classifiers")
    if not places:
        raise UserError("the network has no place for an exit: nowhere does one map alone go on before a smaller one")
    at = [Cut(entry, -1, 0, 0), *places, Cut(graph.output[0].name, len(graph.node) - 1, 0, 0)]
    try:
        parts = [Part(_piece(model, a, b, shapes)) for a, b in itertools.pairwise(at)]
        heads = [ExitHead(cut.channels, out[1], 1, hidden) for cut in places]
        grafted = Grafted(model, places, parts, heads, out[1])
        x = torch.rand(2, *shapes[entry][1:], generator=torch.Generator().manual_seed(0))
        answer = grafted(x)
        if len(answer) != 2:
            raise ValueError("two images give one answer")
        if of_shapes and not torch.allclose(answer, Part(_piece(whole, at[0], at[-1], shapes))(x), 1e-3, 1e-3):
            raise ValueError("its pieces give other answers than the whole")
    except Exception as error:  # of ONNX Runtime, which has no public base
        raise UserError(f"the network does not run in batches ({str(error).splitlines()[0][:160]}); export it with "
                        "the batch left open") from None
    return grafted


def emit_segment(segment: Segment, shapes: Mapping[str, Sequence[int]], names: Sequence[str],
                 batch: int | str) -> onnx.ModelProto:
    """Writes a segment as an ONNX graph with inputs of ``shapes`` and outputs ``names``; copies a trunk that is ONNX
    already.
    """
    parts = [m for m in (segment.trunk, *segment.trunk.children()) if isinstance(m, Part)]
    if not parts:
        return emit_many(segment, shapes, names, batch)
    first, *rest = shapes
    with torch.no_grad():
        through = segment.trunk(torch.zeros(1, *shapes[first]))
    nodes, weights, name = list[NodeProto](), list[TensorProto](), first
    for number, part in enumerate(parts):
        renamed, needed, name = _renamed(part.model.graph, f"t{number}_", name)
        nodes, weights = [*nodes, *renamed], [*weights, *needed]
    tail = Segment(segment.index, segment.last, nn.Identity(), segment.head, segment.combine).eval()
    made = emit_many(tail, {"trunk": through.shape[1:], **{other: shapes[other] for other in rest}}, names, batch)
    for node in made.graph.node:
        node.input[:] = [name if read == "trunk" else read for read in node.input]
    entry = helper.make_tensor_value_info(first, TensorProto.FLOAT, [batch, *shapes[first]])
    inputs = [entry, *(value for value in made.graph.input if value.name != "trunk")]
    graph = helper.make_graph([*nodes, *made.graph.node], "nas", inputs, list(made.graph.output),
                              [*weights, *made.graph.initializer])
    return helper.make_model(graph, opset_imports=parts[0].model.opset_import, ir_version=10, producer_name="nas")


def _piece(model: onnx.ModelProto, start: Cut, end: Cut, shapes: Mapping[str, Shape]) -> onnx.ModelProto:
    """Cuts out the nodes that compute ``end`` from ``start`` on, with the batch left open."""
    producer = {name: index for index, node in enumerate(model.graph.node) for name in node.output if name}
    needed, asked = set[int](), [end.name]
    while asked:
        name = asked.pop()
        if name != start.name and name in producer and producer[name] not in needed:
            needed.add(producer[name])
            asked += model.graph.node[producer[name]].input
    nodes = [read_from(model.graph.node[index], start.name) for index in sorted(needed)]
    read = {name for node in nodes for name in node.input}
    weights = [weight for weight in model.graph.initializer if weight.name in read]
    ends = [helper.make_tensor_value_info(cut.name, TensorProto.FLOAT, ["N", *shapes[cut.name][1:]])
            for cut in (start, end)]
    graph = helper.make_graph(nodes, "part", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _renamed(graph: GraphProto, prefix: str, entry: str) -> tuple[list[NodeProto], list[TensorProto], str]:
    """Returns copies of nodes and weights under unique names, reading ``entry``; and the name of what they make."""
    names = {graph.input[0].name: entry, "": ""}
    nodes, weights = list[NodeProto](), list[TensorProto]()
    for node in graph.node:
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.input[:], copy.output[:] = ([names.get(name, prefix + name) for name in side]
                                       for side in (node.input, node.output))
        copy.name = prefix + node.name
        nodes.append(copy)
    for weight in graph.initializer:
        weights.append(TensorProto())
        weights[-1].CopyFrom(weight)
        weights[-1].name = prefix + weight.name
    return nodes, weights, prefix + graph.output[0].name


def _last_reads(graph: GraphProto) -> dict[str, int]:
    """Returns value -> the last node that reads it; what the graph puts out is read behind them all."""
    last = {name: index for index, node in enumerate(graph.node) for name in node.input}
    return last | {value.name: len(graph.node) for value in graph.output}


def _check_form(model: onnx.ModelProto) -> None:
    """Raises UserError for graphs inside nodes, and for an old file that could not be written anew."""
    strange = next((node for node in model.graph.node if not node.domain and not onnx.defs.has(node.op_type)), None)
    if strange is not None:
        raise UserError(f"{strange.op_type} ({strange.name}): not an operator of ONNX")
    inner = next((node for node in model.graph.node for a in node.attribute if a.HasField("g")), None)
    if inner is not None:
        raise UserError(f"{inner.op_type} ({inner.name}): exits cannot be added to a graph with branches or loops")
    version = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    if version < LEAST_OPSET:
        raise UserError(f"is of opset {version} and cannot be written in a later one; export it in opset "
                        f"{LEAST_OPSET} or later")
