"""Defines the supernet, whose networks share weights; any of them can be taken out with its weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from nas.arch import SKIP, Arch, Op
from nas.decision import Decision
from nas.ops import Block, build, give_width, take_width
from nas.plan import Layout, OpKey, resized, restrict
from nas.subnet import Subnet
from nas.subnet import build as build_subnet
from nas.supernet.slot import SharedSlot


class Supernet(nn.Module):
    """Runs what a decision says: [N, in_ch, S, S] -> [N, classes]; branches that it does not list are not computed.

    Batch norm runs on batch statistics while training and keeps no running ones (momentum 0): they would mix those
    of all networks. They are recomputed for every network that is taken out and judged.
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self.stem, self.head = _fixed(layout.stem), _fixed(layout.head)
        self.slots = nn.ModuleList(SharedSlot(slot) for slot in layout.slots)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.0

    def forward(self, x: Tensor, decision: Decision) -> Tensor:
        x = self.stem(x)
        for slot, choices in zip(self.slots, decision.slots, strict=True):
            x = slot(x, choices)
        return self.head(x)

    def maps(self, x: Tensor, decision: Decision) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Runs like ``forward`` and returns, beside the logits, the input and output maps of each slot."""
        x, passed = self.stem(x), []
        for slot, choices in zip(self.slots, decision.slots, strict=True):
            before, x = x, slot(x, choices)
            passed.append((before, x))
        return self.head(x), passed

    def keep(self, ops: Sequence[Sequence[Op]]) -> None:
        """Prunes to ``ops`` per slot: the layout shrinks, and branches without a width left are freed."""
        self.layout = restrict(self.layout, ops)
        for shared, slot in zip(self._shared(), self.layout.slots, strict=True):
            alive = {branch.op for branch in slot.branches}
            for op in [op for op in shared.forms if op not in alive]:
                shared.drop(op)

    def inherit(self, arch: Arch) -> Subnet:
        """Builds a plain network with this supernet's weights; it equals ``self(x, one_hot(arch))`` in eval mode.

        Its input size may be another one: no weight depends on it.
        """
        subnet = build_subnet(resized(self.layout, arch.size), arch)
        subnet.stem.load_state_dict(self.stem.state_dict())
        subnet.head.load_state_dict(self.head.state_dict())
        for shared, block in self._pairs(arch, subnet):
            take_width(shared, block)
        for module in subnet.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.1
        return subnet

    def take_back(self, arch: Arch, subnet: Subnet) -> None:
        """Takes over the weights of a network that was trained alone, so that others inherit what it has learned."""
        self.stem.load_state_dict(subnet.stem.state_dict())
        self.head.load_state_dict(subnet.head.state_dict())
        for shared, block in self._pairs(arch, subnet):
            give_width(shared, block)

    def _pairs(self, arch: Arch, subnet: Subnet) -> Iterator[tuple[Block, Block]]:
        """Yields the shared block of each slot that is not skipped, with the network's own."""
        live = [(shared, op) for shared, op in zip(self._shared(), arch.ops, strict=True) if op != SKIP]
        for (shared, op), block in zip(live, subnet.blocks, strict=True):
            assert isinstance(block, Block)
            yield shared.module_of(op.without("hidden")), block

    def _shared(self) -> list[SharedSlot]:
        return [slot for slot in self.slots if isinstance(slot, SharedSlot)]


def _fixed(key: OpKey) -> Block:
    return build(key.op, key.in_ch, key.out_ch, key.stride)
