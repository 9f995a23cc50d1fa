"""Lists where exits could be added to a network, without images and without training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nas.exits import choice
from nas.exits.choice import Pieces
from nas.exits.export import check
from nas.latency.devices.onnxruntime import clock
from nas.latency.onnx_counts import multiply_adds
from nas.latency.onnx_graph import Graph
from nas.pipeline.exits.existing import Foreign, foreign_costs, load_foreign
from nas.pipeline.exits.models import Pick, head_macs, measure_pieces, predict_pieces
from nas.plan import macs
from nas.training.data import without_images


@dataclass(frozen=True)
class Place:
    """Describes a feature map that an exit could read: what makes it, its shape for one image, and its cost.

    ``macs`` are those of all that runs up to it, ``head_macs`` those of the exit's own head; ``ms`` is what leaving
    there takes with no exit before it, None without a target. Shares are of the network without exits.
    """

    behind: str
    shape: tuple[int, int, int]
    macs: int
    macs_share: float
    head_macs: int
    ms: float | None = None
    ms_share: float | None = None


@dataclass(frozen=True)
class Places:
    """Lists where exits could be added to a network, with what the whole of it costs without them.

    ``ms`` are on ``target``, where one was asked for. ``weights`` is ``random`` where a torchvision model was given
    none. Multiply-adds of operators that are ``uncounted`` are not known, and missing from every sum.
    """

    model: str
    size: int
    classes: int
    macs: int
    places: tuple[Place, ...]
    target: str | None = None
    ms: float | None = None
    weights: str | None = None
    uncounted: tuple[str, ...] = ()

    def timed(self, target: str, pieces: Pieces) -> Places:
        """Returns the places with the milliseconds that leaving at each takes on a target."""
        leaving_ms = [float(pieces.prefix_ms([index])[0]) for index in range(len(self.places))]
        places = [replace(place, ms=ms, ms_share=ms / pieces.plain_ms)
                  for place, ms in zip(self.places, leaving_ms, strict=True)]
        return replace(self, target=target, ms=pieces.plain_ms, places=tuple(places))


def places_of_file(model: str, weights: Path | None, size: int | None, target: str | None, seed: int = 0) -> Places:
    """Lists where exits could be added to an ONNX file or a torchvision model; with ``target`` also milliseconds.

    A torchvision model may have random weights. Raises UserError for what exits cannot be added to.
    """
    costs = foreign_costs(model, target)
    foreign = load_foreign(model, weights, size, seed, untrained=True)
    net, side = foreign.net, foreign.graph.shape[2]
    check(net, in_ch=3, size=side)
    blank = without_images(model, list(map(str, range(net.classes))), side, (0.0,) * 3, (1.0,) * 3)
    work, places = _places_of_graph(foreign, head_macs(net, blank))
    listed = Places(model, side, net.classes, work, places, uncounted=_uncounted(foreign.graph),
                    weights="random" if foreign.torchvision and weights is None else None)
    if target is None:
        return listed
    return listed.timed(target, predict_pieces(net, blank, costs) if costs else
                        measure_pieces(net, blank, foreign.graph.model, clock(1)[1]))


def places_of_pick(model: Pick) -> Places:
    """Lists where exits could be added to a pick of a run."""
    at = model.layout
    work = choice.pieces(model.keys, lambda plan: [float(macs(key)) for key in plan])
    shapes = [(exit_.key.in_ch, exit_.key.size, exit_.key.size) for exit_ in at.exits]
    named = [f"slot {exit_.slot}" for exit_ in at.exits]
    places = _places(named, shapes, np.cumsum(work.trunk).tolist(), work.heads.tolist(), work.plain_ms)
    listed = Places(model.name, model.data.size, at.task.classes, int(work.plain_ms), places)
    return listed.timed(model.target, model.pieces())


def _places_of_graph(foreign: Foreign, heads: Sequence[int]) -> tuple[int, tuple[Place, ...]]:
    """Returns the multiply-adds of a whole graph, and where exits could be added to it."""
    graph = foreign.graph
    nodes, at = foreign.net.model.graph.node, foreign.net.places
    sums = np.cumsum([multiply_adds(node, graph.shapes) or 0 for node in nodes])
    named = [f"{nodes[cut.node].op_type} {nodes[cut.node].name or cut.name}" for cut in at]
    return int(sums[-1]), _places(named, [(cut.channels, cut.side, cut.side) for cut in at],
                                  [sums[cut.node] for cut in at], heads, sums[-1])


def _uncounted(graph: Graph) -> tuple[str, ...]:
    """Returns the operators whose multiply-adds are not known, and missing from every sum."""
    return tuple(sorted({node.op_type for node in graph.model.graph.node
                         if multiply_adds(node, graph.shapes) is None}))


def _places(named: Sequence[str], shapes: Sequence[tuple[int, int, int]], upto: Sequence[float], heads: Sequence[float],
            whole: float) -> tuple[Place, ...]:
    return tuple(Place(name, shape, int(work), float(work / whole), int(head))
                 for name, shape, work, head in zip(named, shapes, upto, heads, strict=False))
