"""Builds G-Ghost stages for GPUs (Han et al., IJCV 2022, arXiv 2201.03297): a whole stage is one operator.

The first block makes all channels; the blocks after it carry on a part of them ("complicated"), while the others come
from the first block's by one 1x1 convolution ("cheap") plus, with ``mix``, a vector made of the means of all blocks.
One more block at full width follows the concatenation, as in the released code (the paper's figure ends before it).
The inner layers are narrower, and there is no depthwise, which a GPU, bound by memory there, gains little from.

Knobs: ``depth`` (blocks), ``ratio`` (per cent of the channels that are cheap), ``mix``; and of the body ``group``
(width of a group of the inner convolution; 0: dense) and ``squeeze`` (the inner width is out / squeeze): RegNetX is
``group=48, squeeze=1``, ResNet ``squeeze=4``. Up to two blocks, and with ratio 0, the stage is the plain one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.ops.bottleneck import Bottleneck
from nas.ops.layers import ConvBN
from nas.ops.registry import Block, register


@register("g_ghost")
class GGhost(Block):
    """Runs ``depth`` blocks, the first with the stride: [N, in_ch, S, S] -> [N, out_ch, S / stride, S / stride]."""

    elastic = ("depth", "mix")

    def __init__(self, in_ch: int, out_ch: int, stride: int, depth: int, ratio: int = 50, mix: int = 1,
                 group: int = 0, squeeze: int = 1) -> None:
        super().__init__()
        if depth < 1 or not 0 <= ratio < 100 or group < 0 or squeeze < 1:
            raise ValueError("depth and squeeze are at least 1, ratio is per cent below 100, group a width or 0")
        self.kept = complicated(out_ch, ratio, group) if depth > 2 and ratio else out_ch
        self.first = _block(in_ch, out_ch, stride, group, squeeze)
        self.inner = nn.ModuleList(_block(self.kept, self.kept, 1, group * 3 // 4 if self.kept < out_ch else group,
                                          squeeze) for _ in range(depth - 2))
        self.last = _block(out_ch, out_ch, 1, group, squeeze) if depth > 1 else None
        cheap, ghosts = out_ch - self.kept, max(0, depth - 2)
        self.cheap = ConvBN(cheap, cheap, act="none") if cheap else None
        self.mix = nn.Sequential(ConvBN(out_ch + ghosts * self.kept, cheap), ConvBN(cheap, cheap, act="none")
                                 ) if cheap and mix else None

    def forward(self, x: Tensor) -> Tensor:
        whole = self.first(x)
        maps = [whole[:, :self.kept]]
        for block in self.inner:
            maps.append(block(maps[-1]))
        y = maps[-1] if self.cheap is None else torch.cat((maps[-1], self._ghosts(whole, maps[1:])), 1)
        return y if self.last is None else self.last(y)

    def _ghosts(self, whole: Tensor, later: list[Tensor]) -> Tensor:
        assert self.cheap is not None
        y = self.cheap(whole[:, self.kept:])
        if self.mix is not None:  # the mean of a concatenation, without the concatenation of maps
            y = y + self.mix(torch.cat([z.mean((2, 3), keepdim=True) for z in [whole, *later]], 1))
        return F.relu(y)


def complicated(channels: int, ratio: int, group: int) -> int:
    """Returns the number of channels of the inner blocks: whole groups of 3/4 of the group width, at least one."""
    kept = channels * (100 - ratio) // 100
    width = max(1, min(group * 3 // 4, kept))
    return max(1, kept // width * width)


def _block(in_ch: int, out_ch: int, stride: int, group: int, squeeze: int) -> Bottleneck:
    """Builds a bottleneck with as many groups of at least ``group`` channels as divide its inner width."""
    hidden = max(1, out_ch // squeeze)
    groups = next(n for n in range(max(1, hidden // group), 0, -1) if hidden % n == 0) if group else 1
    return Bottleneck(in_ch, out_ch, stride, hidden, groups=groups)
