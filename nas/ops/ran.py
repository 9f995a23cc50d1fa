"""Builds a bottleneck without inner activations, deployed as one dense convolution (Arm's RAN-e, arXiv 2208.08562).

Micro-NPUs compute a dense convolution faster than the three layers that it is trained as. The paper puts batch norm
and activation before the block; here the activation is behind it, where compilers fuse it into the convolution, and
the residual is added after. The bottleneck that keeps its activations is ``irb`` in the same slot. Knobs: ``kernel``,
``expand`` (width of training as a multiple of the input channels; it costs nothing once deployed), ``act``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.ops.fuse import convolution, folded, then
from nas.ops.layers import ConvBN, activation, start_at_zero
from nas.ops.registry import Block, register


@register("ran")
class Ran(Block):
    """Computes 1x1 expand, depthwise, 1x1 project, all linear; activation; residual where shapes allow."""

    elastic = ("kernel",)

    def __init__(self, in_ch: int, out_ch: int, stride: int, kernel: int = 3, expand: int = 4,
                 act: str = "hswish") -> None:
        super().__init__()
        hidden = expand * in_ch
        self.kernel, self.stride = kernel, stride
        self.expand = ConvBN(in_ch, hidden, act="none")
        self.depthwise = ConvBN(hidden, hidden, kernel, stride, depthwise=True, act="none", padding=0)
        self.project = ConvBN(hidden, out_ch, act="none")
        self.act = activation(act)
        self.residual = stride == 1 and in_ch == out_ch
        if self.residual:
            start_at_zero(self.project)

    def forward(self, x: Tensor) -> Tensor:
        around = F.pad(x, [self.kernel // 2] * 4)  # before the 1x1, whose offset would be missing at the border
        y = self.act(self.project(self.depthwise(self.expand(around))))
        return y + x if self.residual else y

    def deploy(self) -> nn.Module:
        with torch.no_grad():
            weight, offset = folded(self.depthwise)
            spread = torch.diag_embed(weight[:, 0].permute(1, 2, 0)).permute(2, 3, 0, 1)  # as a dense convolution
            project, bias = folded(self.project)
            inner = (torch.einsum("om,mihw->oihw", project[:, :, 0, 0], spread), bias + project[:, :, 0, 0] @ offset)
            return _Collapsed(convolution(then(folded(self.expand), inner), self.stride), self.act, self.residual)


class _Collapsed(nn.Module):
    def __init__(self, conv: nn.Conv2d, act: nn.Module, residual: bool) -> None:
        super().__init__()
        self.conv, self.act, self.residual = conv, act, residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.conv(x))
        return y + x if self.residual else y
