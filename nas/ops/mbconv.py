"""Inverted residual (Sandler et al., MobileNetV2, CVPR 2018, arXiv 1801.04381; squeeze-excite as in MobileNetV3).

Knobs: ``hidden`` (expanded width), ``kernel`` of the depthwise, ``se``; for published networks ``act``, ``se_step`` (of
what the inner width of the squeeze-excite is a multiple), ``se_from=input`` (that width is a quarter of the input
channels, as in EfficientNet and GPUNet) and ``expand=0``, without the 1x1 that expands, where there is nothing to
expand. ``skip`` is the empty operator of a slot.
"""

from __future__ import annotations

from torch import Tensor

from nas.ops.layers import ConvBN, SqueezeExcite, conv_slices, se_slices, start_at_zero
from nas.ops.registry import Block, Ranges, Slices, register


@register("mbconv")
class MBConv(Block):
    """1x1 expand, depthwise, squeeze-excite, 1x1 project (linear), residual where shapes allow."""

    elastic = ("kernel", "se")

    def __init__(self, in_ch: int, out_ch: int, stride: int, hidden: int, kernel: int = 3, se: int = 0,
                 act: str = "relu", se_step: int = 4, se_from: str = "hidden", expand: int = 1) -> None:
        super().__init__()
        if not expand and hidden != in_ch:
            raise ValueError(f"hidden {hidden} without an expansion: it must be the {in_ch} input channels")
        if se_from not in ("hidden", "input"):
            raise ValueError(f"se_from {se_from}: it is hidden or input")
        self.max_hidden = hidden
        self.expand = ConvBN(in_ch, hidden, act=act) if expand else None
        self.depthwise = ConvBN(hidden, hidden, kernel, stride, depthwise=True, act=act)
        squeezed = max(1, round(in_ch / 4)) if se_from == "input" else 0
        self.se = SqueezeExcite(hidden, se_step, squeezed, hard=not squeezed) if se else None
        self.project = ConvBN(hidden, out_ch, act="none")
        self.residual = stride == 1 and in_ch == out_ch
        if self.residual:
            start_at_zero(self.project)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x if self.expand is None else self.expand(x))
        if self.se is not None:
            y = self.se(y)
        y = self.project(y)
        return y + x if self.residual else y

    def slices(self, hidden: int) -> Slices:
        first: Ranges = ((0, hidden),)
        table = {**conv_slices("expand", first, None), **conv_slices("depthwise", first, None),
                 **conv_slices("project", None, first)}
        return table | se_slices("se", self.se, first) if self.se is not None else table


@register("skip")
class Skip(Block):
    """Identity: the slot does not exist. It has no key and no cost."""

    def __init__(self, in_ch: int, out_ch: int, stride: int) -> None:
        super().__init__()
        if stride != 1 or in_ch != out_ch:
            raise ValueError("skip needs stride 1 and equal channels")

    def forward(self, x: Tensor) -> Tensor:
        return x
