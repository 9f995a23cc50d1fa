"""Builds the plain network of an arch, without search code inside: this is fine-tuned, exported and deployed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from nas.arch import Arch
from nas.ops import build as build_op
from nas.plan import Layout, OpKey, plan


@dataclass(frozen=True)
class FeatureMap:
    """Describes one map of ``features``: its channels, and the step between its pixels in pixels of the input."""

    channels: int
    stride: int


class Backbone(nn.Module):
    """Runs a network without its head, for detectors and segmenters: [N, in_ch, S, S] -> the last map of each stride.

    ``maps`` says what they are, finest first. Modules are shared with the network. Inputs may have any size.
    """

    def __init__(self, network: Subnet) -> None:
        super().__init__()
        self.stem, self.blocks, self.strides, self.maps = network.stem, network.blocks, network.strides, network.maps

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(_features(self.stem(x), zip(self.blocks, self.strides, strict=True)))


class Subnet(nn.Module):
    """Runs ``stem``, ``blocks`` and ``head``: [N, in_ch, S, S] -> [N, classes] logits; ``exits`` are heads on the way.

    ``forward`` leaves the exits out; ``logits`` runs them, too.
    """

    def __init__(self, keys: list[OpKey]) -> None:
        super().__init__()
        modules = [build_op(key.op, key.in_ch, key.out_ch, key.stride) for key in keys]
        inner = list(zip(keys, modules, strict=True))[1:-1]
        self.keys = keys
        self.strides = [key.stride for key, _ in inner if not key.is_exit]  # one a block
        self.stem, self.head = modules[0], modules[-1]
        self.blocks = nn.ModuleList(module for key, module in inner if not key.is_exit)
        self.exits = nn.ModuleList(module for key, module in inner if key.is_exit)
        blocks_before = itertools.accumulate(int(not key.is_exit) for key, _ in inner)
        self.cuts = [n for n, (key, _) in zip(blocks_before, inner, strict=True) if key.is_exit]

    @property
    def classes(self) -> int:
        return self.keys[-1].out_ch

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)[-1])

    def stages(self) -> list[tuple[nn.Sequential, nn.Module]]:
        """Cuts the network at its exits: the blocks up to each exit and its head, last the rest and the final head.

        The modules are shared with the network.
        """
        trunk: list[nn.Module] = [self.stem, *self.blocks]
        bounds = [0, *(1 + cut for cut in self.cuts), len(trunk)]
        heads = [*self.exits, self.head]
        return [(nn.Sequential(*trunk[start:stop]), head)
                for (start, stop), head in zip(itertools.pairwise(bounds), heads, strict=True)]

    def logits(self, x: Tensor) -> list[Tensor]:
        """Returns the logits [N, classes] of every exit in order, and of the head."""
        logits = []
        for trunk, head in self.stages():
            x = trunk(x)
            logits.append(head(x))
        return logits

    def features(self, x: Tensor) -> list[Tensor]:
        """Returns the last map before each change of stride and that before the head, finest first, as ``maps`` says.
        """
        return _features(self.stem(x), zip(self.blocks, self.strides, strict=True))

    @property
    def maps(self) -> list[FeatureMap]:
        """Lists channels and stride of each map of ``features``, in its order."""
        maps: list[FeatureMap] = []
        for key in self.keys[:-1]:
            if key.is_exit:
                continue
            above = maps[-1].stride if maps else 1
            maps = [*(maps[:-1] if key.stride == 1 else maps), FeatureMap(key.out_ch, above * key.stride)]
        return maps


def _features(x: Tensor, blocks: Iterable[tuple[nn.Module, int]]) -> list[Tensor]:
    maps = [x]
    for block, stride in blocks:
        y = block(maps[-1])
        maps = [*(maps[:-1] if stride == 1 else maps), y]
    return maps


def build(layout: Layout, arch: Arch) -> Subnet:
    """Builds a network with fresh weights. Raises UserError if the arch does not fit the layout."""
    return Subnet(plan(layout, arch))
