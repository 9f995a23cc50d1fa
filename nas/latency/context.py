"""Derives an operator's milliseconds inside a network from graphs that can be timed; every row is measured like this.

Timed by itself, an operator looks too slow: the ends of a graph force layout conversions that vanish inside a network.
So it is measured between two 1x1 convolutions, and what surrounds it is taken off again:

    row(op) = t(conv, op, conv) - t(conv, conv on op's input map) / 2 - t(conv, conv on op's output map) / 2

Half of a pair is one convolution, one end of a graph and half of the cost of a call. The stem begins at the image and
the head ends in logits, so each keeps its end and half a call: over a whole network that is one call and both ends.

What is left is the warmth of the caches (the operator runs over and over here, once in a network), which makes rows too
small, by about the same factor for all of a layout: the correction in ``nas.latency.profile`` takes it up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from nas.ops import build
from nas.ops.layers import ConvBN
from nas.plan import OpKey


@dataclass(frozen=True, order=True)
class Map:
    """Names a feature map by channels and side."""

    channels: int
    size: int


@dataclass(frozen=True)
class Context:
    """Puts an operator between two convolutions; there is none before a stem (``first``), none after a head (``last``).
    """

    key: OpKey
    first: bool = False
    last: bool = False

    @property
    def maps(self) -> tuple[Map, ...]:
        """Returns the operator's input and output map, where a convolution is put: both contribute time to take off."""
        before = Map(self.key.in_ch, self.key.size)
        after = Map(self.key.out_ch, -(-self.key.size // self.key.stride))
        return (() if self.first else (before,)) + (() if self.last else (after,))

    def module(self) -> nn.Module:
        """Builds the module to time, for input [N, key.in_ch, key.size, key.size]."""
        op = build(self.key.op, self.key.in_ch, self.key.out_ch, self.key.stride)
        before = [] if self.first else [ConvBN(self.key.in_ch, self.key.in_ch)]
        after = [] if self.last else [ConvBN(self.key.out_ch, self.key.out_ch)]
        return nn.Sequential(*before, op, *after)

    def difference(self, with_ms: float, pair_ms: Mapping[Map, float]) -> float:
        """Returns the operator's ms: time with it minus half of each pair; noise may bring it to zero or below."""
        return with_ms - sum(pair_ms[map_] for map_ in self.maps) / 2


def pair(map_: Map) -> nn.Module:
    """Builds two 1x1 convolutions on a map: what is around an operator while it is timed, to be timed without it.

    Half of their time is taken off for each convolution before or behind the operator.
    """
    return nn.Sequential(ConvBN(map_.channels, map_.channels), ConvBN(map_.channels, map_.channels))


def maps(contexts: Iterable[Context]) -> list[Map]:
    """Lists the maps for which a ``pair`` has to be timed to compute the rows of these operators, each once, sorted."""
    return sorted({map_ for context in contexts for map_ in context.maps})
