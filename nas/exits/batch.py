"""Rewrites how a graph computes shapes of its maps, so that each piece of the graph can compute them by itself.

Exporters that leave the batch open compute it once, from the input, for every reshape behind it. A piece of the graph
has no input but a map, which has the same batch; all other sides are known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from nas.lower.onnx import attributes

Shape = tuple[int, ...]
BATCH = "batch_of_the_input"


def shapes_from_batch(model: onnx.ModelProto, entry: str,
                   shapes: Mapping[str, Shape]) -> tuple[onnx.ModelProto, frozenset[str]]:
    """Returns the graph with its Shape nodes replaced: the batch is read from ``entry`` once, other sides are known.

    Also returns the names of the shapes made so. Shapes whose first side is not the batch stay as they are. ``shapes``
    are those at batch 1.
    """
    rewritten = onnx.ModelProto()
    rewritten.CopyFrom(model)
    del rewritten.graph.node[:]
    of_images, of_shapes = {entry}, set[str]()
    rewritten.graph.node.append(helper.make_node("Shape", [entry], [BATCH], name=BATCH, start=0, end=1))
    for node in model.graph.node:
        read = set(filter(None, node.input))
        sides = shapes.get(node.input[0], ()) if node.op_type == "Shape" and read & of_images else ()
        if sides[:1] == (1,):
            of_shapes.update(node.output)
            rewritten.graph.node.append(_shape(rewritten.graph, node, sides))
            continue
        if read & of_images:
            of_images.update(node.output)
        elif read & of_shapes:
            of_shapes.update(node.output)
        rewritten.graph.node.append(node)
    if not of_shapes:
        return model, frozenset()
    return rewritten, frozenset({*of_shapes, BATCH} - {""})


def read_from(node: NodeProto, start: str) -> NodeProto:
    """Returns a node for a piece of the graph that begins at the map ``start``: the batch is read from that map."""
    if node.output[0] != BATCH:
        return node
    return helper.make_node("Shape", [start], [BATCH], name=BATCH, start=0, end=1)


def _shape(graph: onnx.GraphProto, node: NodeProto, sides: Sequence[int]) -> NodeProto:
    """Makes the node that replaces a Shape node: its known sides, behind the batch where that is among them."""
    how = attributes(node)
    which = list(range(len(sides)))[how.get("start", 0):how.get("end")]
    known = np.array([sides[at] for at in which if at > 0], np.int64)
    name = f"{node.output[0]}_known"
    graph.initializer.append(numpy_helper.from_array(known, name))
    read = [BATCH, name] if 0 in which else [name]
    return helper.make_node("Concat", read, list(node.output), name=node.name, axis=0)
