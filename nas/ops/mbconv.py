"""Builds the inverted residual of MobileNetV2 (Sandler et al., CVPR 2018, arXiv 1801.04381), and ``skip``.

Knobs: ``hidden`` (expanded width), ``kernel`` of the depthwise, ``se`` (as in MobileNetV3), and ``groups`` of the 1x1
convolutions, with a channel shuffle between (Wu et al., FBNet, CVPR 2019, arXiv 1812.03443, section 3.1); for published
networks ``act``, ``se_step`` (of what the inner width of the squeeze-excite is a multiple), ``se_from=input`` (that
width is a quarter of the input channels, as in EfficientNet and GPUNet) and ``expand=0``, without the 1x1 that expands.
"""

from __future__ import annotations

from torch import Tensor

from nas.ops.layers import ConvBN, conv_slices, parts_of, se_slices, shuffled, squeeze_excite, start_at_zero
from nas.ops.registry import Block, Slices, register


@register("mbconv")
class MBConv(Block):
    """Computes 1x1 expand, depthwise, squeeze-excite, 1x1 project (linear), residual where shapes allow."""

    elastic = ("kernel", "se")

    def __init__(self, in_ch: int, out_ch: int, stride: int, hidden: int, kernel: int = 3, se: int = 0,
                 groups: int = 1, act: str = "relu", se_step: int = 4, se_from: str = "hidden",
                 expand: int = 1) -> None:
        super().__init__()
        if groups < 1 or hidden % groups**2:
            raise ValueError(f"hidden {hidden} is no multiple of {groups}x{groups}: {groups} groups exchange parts")
        if not expand and (hidden != in_ch or groups > 1):
            raise ValueError(f"hidden {hidden} without an expansion: it must be the {in_ch} input channels, one group")
        self.max_hidden, self.groups = hidden, groups
        self.expand = ConvBN(in_ch, hidden, act=act, groups=groups) if expand else None
        self.depthwise = ConvBN(hidden, hidden, kernel, stride, depthwise=True, act=act)
        self.se = squeeze_excite(in_ch, hidden, se, se_from, se_step)
        self.project = ConvBN(hidden, out_ch, act="none", groups=groups)
        self.residual = stride == 1 and in_ch == out_ch
        if self.residual:
            start_at_zero(self.project)

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else self.expand(x)
        if self.groups > 1:
            y = shuffled(y, self.groups)
        y = self.depthwise(y)
        if self.se is not None:
            y = self.se(y)
        y = self.project(y)
        return y + x if self.residual else y

    def slices(self, hidden: int) -> Slices:
        full, groups = self.max_hidden, self.groups
        first = parts_of(full, hidden, groups**2)  # the first channels of each part that the shuffle moves
        within = parts_of(full // groups, hidden // groups, groups)  # as one group of the last convolution counts them
        table = {**conv_slices("expand", first, None), **conv_slices("depthwise", first, None),
                 **conv_slices("project", None, within)}
        return table | se_slices("se", self.se, first) if self.se is not None else table


@register("skip")
class Skip(Block):
    """Returns its input: the slot is left out, and costs nothing."""

    def __init__(self, in_ch: int, out_ch: int, stride: int) -> None:
        super().__init__()
        if stride != 1 or in_ch != out_ch:
            raise ValueError("skip needs stride 1 and equal channels")

    def forward(self, x: Tensor) -> Tensor:
        return x
