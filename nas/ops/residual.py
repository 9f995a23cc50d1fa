"""Builds residual blocks: ResNet's basic block (He et al., CVPR 2016, arXiv 1512.03385) and RegNet's block.

RegNet's (Radosavovic et al., CVPR 2020, arXiv 2003.13678, section 4) with one group is ResNet's bottleneck, with the
stride on the 3x3. A shortcut whose shape changes is a 1x1 convolution; the ReLU follows the sum. Knobs: ``hidden``
(width between the two convolutions, or of the convolution in the middle), ``kernel`` of the spatial convolutions; of
``regnet`` also ``group_width`` (0: one group) and ``se`` (RegNetY: its inner width is a quarter of the block's *input*
channels).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nas.ops.layers import ConvBN, conv_slices, se_slices, squeeze_excite, start_at_zero
from nas.ops.registry import Block, Ranges, Slices, register


def _shortcut(in_ch: int, out_ch: int, stride: int) -> nn.Module:
    same = stride == 1 and in_ch == out_ch
    return nn.Identity() if same else ConvBN(in_ch, out_ch, stride=stride, act="none")


@register("basic")
class Basic(Block):
    """Computes two spatial convolutions with ``hidden`` channels between them, plus the shortcut, ReLU."""

    elastic = ("kernel",)

    def __init__(self, in_ch: int, out_ch: int, stride: int, hidden: int, kernel: int = 3) -> None:
        super().__init__()
        self.max_hidden = hidden
        self.first = ConvBN(in_ch, hidden, kernel, stride)
        self.project = ConvBN(hidden, out_ch, kernel, act="none")
        self.shortcut = _shortcut(in_ch, out_ch, stride)
        start_at_zero(self.project)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.project(self.first(x)) + self.shortcut(x))

    def slices(self, hidden: int) -> Slices:
        first: Ranges = ((0, hidden),)
        return {**conv_slices("first", first, None), **conv_slices("project", None, first)}


@register("regnet")
class RegNet(Block):
    """Computes 1x1, spatial convolution in groups, squeeze-excite, 1x1 (linear), plus the shortcut, ReLU."""

    elastic = ("kernel", "se")

    def __init__(self, in_ch: int, out_ch: int, stride: int, hidden: int, kernel: int = 3, group_width: int = 0,
                 se: int = 0) -> None:
        super().__init__()
        self.max_hidden = hidden
        self.reduce = ConvBN(in_ch, hidden)
        self.spatial = ConvBN(hidden, hidden, kernel, stride, group_width=group_width)
        self.se = squeeze_excite(in_ch, hidden, se, "input")
        self.project = ConvBN(hidden, out_ch, act="none")
        self.shortcut = _shortcut(in_ch, out_ch, stride)
        start_at_zero(self.project)

    def forward(self, x: Tensor) -> Tensor:
        y = self.spatial(self.reduce(x))
        if self.se is not None:
            y = self.se(y)
        return F.relu(self.project(y) + self.shortcut(x))

    def slices(self, hidden: int) -> Slices:
        first: Ranges = ((0, hidden),)
        table = {**conv_slices("reduce", first, None), **conv_slices("spatial", first, first),
                 **conv_slices("project", None, first)}
        return table | se_slices("se", self.se, first) if self.se is not None else table
