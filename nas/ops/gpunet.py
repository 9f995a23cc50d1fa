"""Builds GPUNet's layers (Wang et al., CVPR 2022, arXiv 2205.00841, table 1): convolution and inverted residuals.

Knobs: ``act`` (relu, silu: Swish, or hswish), ``kernel``, and of the inverted residuals ``hidden`` (expanded width),
``se`` and ``se_from`` (as in ``mbconv``). A fused one expands by a dense convolution in place of a 1x1 and a depthwise:
more MACs in fewer launches.
"""

from __future__ import annotations

from torch import Tensor

from nas.ops.layers import ConvBN, conv_slices, se_slices, squeeze_excite, start_at_zero
from nas.ops.mbconv import MBConv
from nas.ops.registry import Block, Ranges, Slices, register


@register("conv")
class Conv(Block):
    """Computes convolution, batch norm, activation; there is no residual."""

    elastic = ("kernel",)

    def __init__(self, in_ch: int, out_ch: int, stride: int, kernel: int = 3, act: str = "relu") -> None:
        super().__init__()
        self.conv = ConvBN(in_ch, out_ch, kernel, stride, act=act)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@register("fused_irb")
class FusedIRB(Block):
    """Computes dense convolution (expand), squeeze-excite, 1x1 project (linear), residual where shapes allow."""

    elastic = ("kernel", "se")

    def __init__(self, in_ch: int, out_ch: int, stride: int, hidden: int, kernel: int = 3, se: int = 0,
                 act: str = "relu", se_from: str = "hidden") -> None:
        super().__init__()
        self.max_hidden = hidden
        self.expand = ConvBN(in_ch, hidden, kernel, stride, act=act)
        self.se = squeeze_excite(in_ch, hidden, se, se_from)
        self.project = ConvBN(hidden, out_ch, act="none")
        self.residual = stride == 1 and in_ch == out_ch
        if self.residual:
            start_at_zero(self.project)

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(x)
        if self.se is not None:
            y = self.se(y)
        y = self.project(y)
        return y + x if self.residual else y

    def slices(self, hidden: int) -> Slices:
        first: Ranges = ((0, hidden),)
        table = {**conv_slices("expand", first, None), **conv_slices("project", None, first)}
        return table | se_slices("se", self.se, first) if self.se is not None else table


@register("irb")
class IRB(MBConv):
    """Computes the inverted residual of ``mbconv``; the operator under the name that GPUNet has for it."""

    def __init__(self, in_ch: int, out_ch: int, stride: int, hidden: int, kernel: int = 3, se: int = 0,
                 act: str = "relu") -> None:
        super().__init__(in_ch, out_ch, stride, hidden, kernel, se, act=act)
