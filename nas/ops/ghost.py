"""Builds the Ghost bottleneck of GhostNet (Han et al., CVPR 2020, arXiv 1911.11907, section 3).

A Ghost module makes one of ``ratio`` channels (2: half of them) by a 1x1 convolution ("intrinsic") and the others by a
cheap depthwise convolution of those. Knobs: ``hidden`` (expanded width, a multiple of ``ratio``), ``cheap`` (kernel of
the cheap depthwise), ``se``, ``ratio``, and ``kernel`` of the stride-2 and shortcut depthwise, which exists only where
the shape changes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nas.ops.layers import ConvBN, SqueezeExcite, conv_slices, se_slices, start_at_zero
from nas.ops.registry import Block, Ranges, Slices, register


class GhostModule(nn.Module):
    """Computes intrinsic maps and cheap maps of them, cut to ``out_ch``: [N, in_ch, S, S] -> [N, out_ch, S, S]."""

    def __init__(self, in_ch: int, out_ch: int, cheap: int, act: str, ratio: int = 2) -> None:
        super().__init__()
        intrinsic = -(-out_ch // ratio)
        self.spare = ratio * intrinsic - out_ch
        self.primary = ConvBN(in_ch, intrinsic, act=act)
        self.cheap = ConvBN(intrinsic, (ratio - 1) * intrinsic, cheap, depthwise=True, act=act)

    def forward(self, x: Tensor) -> Tensor:
        intrinsic = self.primary(x)
        both = torch.cat((intrinsic, self.cheap(intrinsic)), 1)
        return both[:, :-self.spare] if self.spare else both


@register("ghost")
class Ghost(Block):
    """Computes Ghost (expand), depthwise where stride 2, squeeze-excite, Ghost (project, linear), plus the shortcut."""

    elastic = ("cheap", "kernel", "se")

    def __init__(self, in_ch: int, out_ch: int, stride: int, hidden: int, cheap: int = 3, kernel: int = 3,
                 se: int = 0, ratio: int = 2) -> None:
        super().__init__()
        if ratio < 2:
            raise ValueError(f"ratio {ratio}: a Ghost module makes one of 2 or more channels by convolution")
        if hidden % ratio:
            raise ValueError(f"hidden {hidden} is no multiple of {ratio}: a Ghost module makes its channels in groups "
                             "of its ratio")
        self.max_hidden, self.ratio = hidden, ratio
        self.expand = GhostModule(in_ch, hidden, cheap, "relu", ratio)
        self.down = ConvBN(hidden, hidden, kernel, stride, depthwise=True, act="none") if stride > 1 else None
        self.se = SqueezeExcite(hidden) if se else None
        self.project = GhostModule(hidden, out_ch, cheap, "none", ratio)
        self.shortcut: nn.Module | None = None
        if stride == 1 and in_ch == out_ch:
            start_at_zero(self.project.primary)
            start_at_zero(self.project.cheap)
        else:
            self.shortcut = nn.Sequential(ConvBN(in_ch, in_ch, kernel, stride, depthwise=True, act="none"),
                                          ConvBN(in_ch, out_ch, act="none"))

    @classmethod
    def applicable(cls, knob: str, in_ch: int, out_ch: int, stride: int) -> bool:
        return knob != "kernel" or stride > 1 or in_ch != out_ch

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(x)
        if self.down is not None:
            y = self.down(y)
        if self.se is not None:
            y = self.se(y)
        return self.project(y) + (x if self.shortcut is None else self.shortcut(x))

    def slices(self, hidden: int) -> Slices:
        used, full = hidden // self.ratio, self.max_hidden // self.ratio
        intrinsic: Ranges = ((0, used),)
        cheap: Ranges = ((0, hidden - used),)
        both: Ranges = ((0, used), (full, full + hidden - used))  # the first intrinsic maps and the cheap maps of them
        table = {**conv_slices("expand.primary", intrinsic, None), **conv_slices("expand.cheap", cheap, None),
                 **conv_slices("project.primary", None, both)}
        if self.down is not None:
            table |= conv_slices("down", both, None)
        if self.se is not None:
            table |= se_slices("se", self.se, both)
        return table
