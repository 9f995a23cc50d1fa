"""Parallel linear branches, searched in training and deployed as one k x k convolution.

RepVGG's layer (Ding et al., CVPR 2021, arXiv 2101.03697: k x k, 1x1 and a batch norm) with the further branches that
RepNAS searches (Zhang et al., arXiv 2109.03508): ``deep`` 1x1 then k x k, ``cross`` 1 x k and k x 1, ``pool`` 1x1 then
an average. The k x k is always there: it is what all branches cost in the end. Which of them help is a matter of
training alone, so choices of one kernel have one price.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.ops.fuse import Kernel, centred, convolution, folded, scale_of, then
from nas.ops.layers import ConvBN, activation
from nas.ops.registry import Block, register


@register("rep")
class Rep(Block):
    """The sum of the branches (and of a batch norm where shapes allow), one activation behind it."""

    elastic = ("point", "deep", "cross", "pool")

    def __init__(self, in_ch: int, out_ch: int, stride: int, kernel: int = 3, point: int = 1, deep: int = 0,
                 cross: int = 0, pool: int = 0, act: str = "relu") -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.full = ConvBN(in_ch, out_ch, kernel, stride, act="none")
        self.identity = nn.BatchNorm2d(in_ch) if stride == 1 and in_ch == out_ch else None
        self.point = ConvBN(in_ch, out_ch, 1, stride, act="none") if point else None
        self.deep = nn.Sequential(ConvBN(in_ch, out_ch, act="none"),
                                  ConvBN(out_ch, out_ch, kernel, stride, act="none", padding=0)) if deep else None
        self.row, self.column = (_line(in_ch, out_ch, shape, stride) if cross else None
                                 for shape in ((1, kernel), (kernel, 1)))
        self.pool = nn.Sequential(ConvBN(in_ch, out_ch, act="none"), nn.AvgPool2d(kernel, stride),
                                  nn.BatchNorm2d(out_ch)) if pool else None
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.identity, self.point, self.row, self.column]
        y = self.full(x)
        for branch in (branch for branch in branches if branch is not None):
            y = y + branch(x)
        if self.deep is not None or self.pool is not None:  # zeros go around the map before the 1x1: else its offset
            around = F.pad(x, [self.kernel // 2] * 4)  # would be missing there, and no single convolution be the same
            for branch in (branch for branch in (self.deep, self.pool) if branch is not None):
                y = y + branch(around)
        return self.act(y)

    def deploy(self) -> nn.Module:
        with torch.no_grad():
            weights, offsets = zip(*(centred(kernel, self.kernel) for kernel in self._kernels()), strict=True)
            fused = (torch.stack(weights).sum(0), torch.stack(offsets).sum(0))
            return nn.Sequential(convolution(fused, self.stride), self.act)

    def _kernels(self) -> list[Kernel]:
        kernels = [folded(part) for part in (self.full, self.point, self.row, self.column) if part is not None]
        if self.identity is not None:
            factor, offset = scale_of(self.identity)
            kernels.append((torch.diag(factor)[:, :, None, None], offset))
        if self.deep is not None:
            kernels.append(then(folded(self.deep[0]), folded(self.deep[1])))
        if self.pool is not None:
            factor, offset = scale_of(self.pool[2])
            mean = torch.diag(factor)[:, :, None, None].expand(-1, -1, self.kernel, self.kernel) / self.kernel**2
            kernels.append(then(folded(self.pool[0]), (mean, offset)))
        return kernels


def _line(in_ch: int, out_ch: int, window: tuple[int, int], stride: int) -> ConvBN:
    """A convolution with a window of one row or one column."""
    part = ConvBN(in_ch, out_ch, act="none")
    padding = (window[0] // 2, window[1] // 2)
    part.add_module("conv", nn.Conv2d(in_ch, out_ch, window, stride, padding, bias=False))
    return part
