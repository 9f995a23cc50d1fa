"""Groups calls on feature maps into the kernels that an inference engine launches for them.

The rules follow TensorRT's builder (developer guide, "Types of Fusions"): batch norm and activations join the
convolution before them, a residual add joins the later of its convolutions if only batch norm stands between.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Kernel:
    """Describes one kernel that an inference engine launches, at batch 1.

    ``kind`` is conv, or one that is bound by the ``moved`` elements: pool, pointwise, softmax, cat, copy, resize.
    Sides of maps that are not square are geometric means. A linear layer is a 1x1 conv on a 1x1 map.
    """

    kind: str
    in_ch: int
    out_ch: int
    size_in: int
    size_out: int
    kernel: float = 1.0
    stride: int = 1
    groups: int = 1
    fused_add: bool = False
    moved: int = 0


@dataclass
class Node:
    """Records one call; ``inputs`` are the nodes that made its maps, ``sources`` the shapes of these maps."""

    op: str  # conv, norm, act, add, join, or a memory-bound kind of Kernel
    inputs: tuple[int, ...]
    sources: tuple[Shape, ...]
    shape: Shape
    kernel: float = 1.0
    stride: int = 1
    groups: int = 1
    name: str = ""  # of the call, and its kind, where its source has names
    kind: str = ""
    why: str = ""  # its cost is unknown


@dataclass
class Group:
    """Holds the nodes that become one kernel: the head, then what joined it."""

    nodes: list[Node]
    fused_add: bool = False
    activated: bool = False

    @property
    def head(self) -> Node:
        return self.nodes[0]

    @property
    def kernel(self) -> Kernel:
        return _kernel(self)


def fuse(nodes: Sequence[Node], outputs: Sequence[int]) -> list[Group]:
    """Groups the nodes whose results are used into kernels, in launch order; ``nodes[0]`` is the input."""
    uses = _uses(nodes, outputs)
    group_of: dict[int, Group] = {}
    groups: list[Group] = []
    for index, node in enumerate(nodes):
        if index == 0 or not uses[index]:
            continue
        group = _host(node, group_of, uses)
        if group is None:
            group = Group([])
            groups.append(group)
        group.nodes.append(node)
        group_of[index] = group
        group.fused_add |= node.op == "add" and group.head is not node
        group.activated |= node.op == "act"
    return groups


def _uses(nodes: Sequence[Node], outputs: Sequence[int]) -> list[int]:
    """Counts how often each node's result is returned or read by nodes that are used; 0: it is not used."""
    uses = [0] * len(nodes)
    for index in outputs:
        uses[index] += 1
    for index in reversed(range(len(nodes))):
        for source in nodes[index].inputs if uses[index] else ():
            uses[source] += 1
    return uses


def _host(node: Node, group_of: Mapping[int, Group], uses: Sequence[int]) -> Group | None:
    """Returns the group that the node joins; None where it starts a new one."""
    unshared = [i for i in node.inputs if i in group_of and uses[i] == 1]
    if (node.op in ("norm", "act") and unshared
            and group_of[unshared[0]].head.op in ("conv", "norm", "act", "add", "join")):
        return group_of[unshared[0]]
    if node.op != "add":
        return None
    free = [i for i in unshared if _takes_add(group_of[i]) and group_of[i].head.shape == node.shape]
    return group_of[max(free)] if free else None


def _takes_add(group: Group) -> bool:
    return group.head.op == "conv" and group.head.groups == 1 and not group.fused_add and not group.activated


def _kernel(group: Group) -> Kernel:
    head, source = group.head, group.head.sources[0]
    kind = "pointwise" if head.op in ("norm", "act", "add", "join") else head.op
    linear = kind == "conv" and len(head.shape) != 4
    in_ch, size_in = _extent(source, linear)
    out_ch, size_out = _extent(head.shape, linear)
    moved = 0 if kind == "conv" else sum(map(math.prod, head.sources)) + math.prod(head.shape)
    if kind == "copy":  # what is left behind is not read
        moved = 2 * math.prod(head.shape)
    return Kernel(kind, in_ch, out_ch, size_in, size_out, head.kernel, head.stride, head.groups, group.fused_add, moved)


def _extent(shape: Shape, channels_last: bool) -> tuple[int, int]:
    """Returns channels and side of a map; that of a linear layer has its channels last."""
    if channels_last:
        return shape[-1], max(1, round(math.sqrt(math.prod(shape[:-1]))))
    return shape[1] if len(shape) > 1 else 1, max(1, round(math.sqrt(math.prod(shape[2:]))))
