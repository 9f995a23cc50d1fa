"""Builds parallel linear branches, searched in training and deployed as one k x k convolution.

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
    """Sums the branches (and a batch norm where shapes allow), and applies one activation to the sum."""

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
        self.pool = nn.Sequential(ConvBN(in_ch, out_ch, act="none"), nn.Sequential(
            nn.AvgPool2d(kernel, stride), nn.BatchNorm2d(out_ch))) if pool else None
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        y = self.full(x)
        for branch in _there(self.identity, self.point, self.row, self.column):
            y = y + branch(x)
        for branch in _there(self.deep, self.pool):  # zeros go around the map before the 1x1: else its offset would
            y = y + branch(F.pad(x, [self.kernel // 2] * 4))  # be missing there, and no one convolution be the same
        return self.act(y)

    def deploy(self) -> nn.Module:
        with torch.no_grad():
            branches = _there(self.full, self.identity, self.point, self.row, self.column, self.deep, self.pool)
            kernels = [centred(_kernel(branch), self.kernel) for branch in branches]
            weights, offsets = zip(*kernels, strict=True)
            fused = (torch.stack(weights).sum(0), torch.stack(offsets).sum(0))
            return nn.Sequential(convolution(fused, self.stride), self.act)


def _there(*branches: nn.Module | None) -> list[nn.Module]:
    return [branch for branch in branches if branch is not None]


def _kernel(branch: nn.Module) -> Kernel:
    """Writes a linear branch as one convolution."""
    if isinstance(branch, ConvBN):
        return folded(branch)
    if isinstance(branch, nn.BatchNorm2d):
        factor, offset = scale_of(branch)
        return torch.diag(factor)[:, :, None, None], offset
    assert isinstance(branch, nn.Sequential)
    first, second = branch
    if isinstance(first, nn.AvgPool2d):
        weight, offset = _kernel(second)
        side = int(first.kernel_size)  # type: ignore[arg-type]  # we made it square
        return weight.expand(-1, -1, side, side) / side**2, offset
    return then(_kernel(first), _kernel(second))


def _line(in_ch: int, out_ch: int, window: tuple[int, int], stride: int) -> ConvBN:
    """Makes a convolution with a window of one row or one column."""
    part = ConvBN(in_ch, out_ch, act="none")
    padding = (window[0] // 2, window[1] // 2)
    part.add_module("conv", nn.Conv2d(in_ch, out_ch, window, stride, padding, bias=False))
    return part
