"""Builds the bottleneck of ResNet (He et al., CVPR 2016, arXiv 1512.03385), and with groups of ResNeXt (1611.05431).

Knobs: ``hidden`` (inner width), ``kernel`` and ``groups`` of the inner convolution, which also has the stride.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from nas.ops.layers import ConvBN, conv_slices, parts_of, start_at_zero
from nas.ops.registry import Block, Slices, register


@register("bottleneck")
class Bottleneck(Block):
    """Computes 1x1 (reduce), k x k, 1x1 (linear), plus the shortcut (1x1 where the shape changes), ReLU."""

    elastic = ("kernel",)

    def __init__(self, in_ch: int, out_ch: int, stride: int, hidden: int, kernel: int = 3, groups: int = 1) -> None:
        super().__init__()
        if groups < 1 or hidden % groups:
            raise ValueError(f"hidden {hidden} is no multiple of groups {groups}")
        self.max_hidden, self.groups = hidden, groups
        self.reduce = ConvBN(in_ch, hidden)
        self.conv = ConvBN(hidden, hidden, kernel, stride, groups=groups)
        self.expand = ConvBN(hidden, out_ch, act="none")
        self.shortcut = None if stride == 1 and in_ch == out_ch else ConvBN(in_ch, out_ch, 1, stride, act="none")
        if self.shortcut is None:
            start_at_zero(self.expand)

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(self.conv(self.reduce(x)))
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))

    def slices(self, hidden: int) -> Slices:
        first = parts_of(self.max_hidden, hidden, self.groups)  # the first channels of every group
        within = ((0, hidden // self.groups),)  # as one group counts its inputs
        return {**conv_slices("reduce", first, None), **conv_slices("conv", first, within),
                **conv_slices("expand", None, first)}
