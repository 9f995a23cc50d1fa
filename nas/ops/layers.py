"""Defines the layers that operators are made of; they take shapes from their weights, so that slices of them run."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.ops.registry import Ranges
from nas.space import divisible

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "relu6": lambda: nn.ReLU6(inplace=True),
    "hswish": lambda: nn.Hardswish(inplace=True),
    "silu": lambda: nn.SiLU(inplace=True),
    "none": nn.Identity,
}


def activation(name: str) -> nn.Module:
    """Makes the activation of that name. Raises ValueError for an unknown name."""
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


class Depthwise(nn.Conv2d):
    """Convolves each channel alone, padding k // 2, into ``multiplier`` maps that follow each other.

    It has as many groups as its input has channels, because a slice has fewer.
    """

    depthwise = True

    def __init__(self, channels: int, kernel: int, stride: int = 1, multiplier: int = 1) -> None:
        super().__init__(channels, channels * multiplier, kernel, stride, kernel // 2, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, None, self.stride, self.padding, 1, x.shape[1])


class Grouped(nn.Conv2d):
    """Convolves in groups of ``group_width`` channels, padding k // 2; a slice has fewer groups of that width."""

    depthwise = True  # its input channels are those of its group: a slice takes rows alone

    def __init__(self, channels: int, kernel: int, stride: int, group_width: int) -> None:
        if channels % group_width:
            raise ValueError(f"{channels} channels are not a multiple of group_width {group_width}")
        super().__init__(channels, channels, kernel, stride, kernel // 2, groups=channels // group_width, bias=False)
        self.group_width = group_width

    def forward(self, x: Tensor) -> Tensor:
        groups = self.weight.shape[0] // self.group_width
        return F.conv2d(x, self.weight, None, self.stride, self.padding, 1, groups)


class ConvBN(nn.Sequential):
    """Computes convolution, batch norm, activation, in submodules ``conv``, ``bn``, ``act``.

    The convolution is depthwise with ``depthwise``, in groups of ``group_width`` channels where that is given.
    """

    def __init__(self, in_ch: int, out_ch: int, kernel: int = 1, stride: int = 1, *, depthwise: bool = False,
                 act: str = "relu", groups: int = 1, group_width: int = 0, padding: int | None = None) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel {kernel}: it must be odd, or maps change their size")
        if out_ch < 1:
            raise ValueError(f"{out_ch} channels")
        conv = (Depthwise(in_ch, kernel, stride, out_ch // in_ch) if depthwise
                else Grouped(in_ch, kernel, stride, group_width) if group_width
                else nn.Conv2d(in_ch, out_ch, kernel, stride, kernel // 2, groups=groups, bias=False))
        if padding is not None:  # k // 2 unless it is given
            conv.padding = (padding, padding)
        self.add_module("conv", conv)
        self.add_module("bn", nn.BatchNorm2d(out_ch))
        if act != "none":
            self.add_module("act", activation(act))


def start_at_zero(last: ConvBN) -> None:
    """Sets the last batch norm of a residual branch to zero: the block begins as the identity (arXiv 1706.02677).

    In a supernet the branches of a slot then begin alike, whichever of them runs (BigNAS, arXiv 2003.11142).
    """
    norm = last.get_submodule("bn")
    assert isinstance(norm, nn.BatchNorm2d)
    nn.init.zeros_(norm.weight)


class Dropout(nn.Dropout):
    """Drops elements as ``nn.Dropout`` does, with random numbers from ``generator`` where it is given one.

    So networks that train side by side draw the numbers that each would draw alone.
    """

    generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.generator is None or not self.training or self.p == 0:
            return super().forward(x)
        kept = torch.empty_like(x).bernoulli_(1 - self.p, generator=self.generator)
        return x * kept.div_(1 - self.p)


class SqueezeExcite(nn.Module):
    """Weights channels by their means, as in MobileNetV3 and GhostNet: mean, 1x1, ReLU, 1x1, hard sigmoid, multiply.

    The inner width is a quarter of the channels, to multiples of ``step`` (GhostNet 4, MobileNetV3 8), or ``squeezed``
    at any width; ``hard=False`` takes the sigmoid itself (both as in EfficientNet and RegNetY).
    """

    def __init__(self, channels: int, step: int = 4, squeezed: int = 0, hard: bool = True) -> None:
        super().__init__()
        if step < 1:
            raise ValueError(f"multiples of {step}")
        self.step, self.squeezed, self.hard = step, squeezed, hard
        inner = self.width(channels)
        self.reduce = nn.Conv2d(channels, inner, 1)
        self.expand = nn.Conv2d(inner, channels, 1)

    def width(self, channels: int) -> int:
        return self.squeezed or divisible(channels / 4, self.step)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * (F.hardsigmoid(scale) if self.hard else torch.sigmoid(scale))


def squeeze_excite(in_ch: int, hidden: int, se: int, se_from: str, step: int = 4) -> SqueezeExcite | None:
    """Makes a squeeze-excite, None without ``se``: a quarter of ``hidden`` wide, or of the block's input channels.

    The latter, ``se_from="input"``, is that of EfficientNet, GPUNet and RegNetY, with a sigmoid in place of a hard one.

    Raises ValueError for a ``se_from`` that is neither, with or without ``se``.
    """
    if se_from not in ("hidden", "input"):
        raise ValueError(f"se_from {se_from}: it is hidden or input")
    squeezed = max(1, round(in_ch / 4)) if se_from == "input" else 0
    return SqueezeExcite(hidden, step, squeezed, hard=not squeezed) if se else None


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Reorders channels so that a grouped convolution sees an equal part of every group before it (ShuffleNet).

    Whole parts move, in slices and one concatenation, which every runtime has: inside a group order means nothing.
    """
    width = x.shape[1] // groups**2
    starts = [(group * groups + part) * width for part in range(groups) for group in range(groups)]
    return torch.cat([x[:, start:start + width] for start in starts], 1)


def parts_of(full: int, used: int, parts: int) -> Ranges:
    """Returns the channels that a narrower grouped convolution uses: of ``full``, the first of each of equal ``parts``.

    They are ``used`` channels together.
    """
    return tuple((part * full // parts, part * full // parts + used // parts) for part in range(parts))


def conv_slices(path: str, out: Ranges | None, inp: Ranges | None) -> dict[str, tuple[Ranges | None, Ranges | None]]:
    """Says which channels a narrower block uses of the ConvBN at ``path``, in the form of ``Block.slices``."""
    return {f"{path}.conv": (out, inp), f"{path}.bn": (out, None)}


def se_slices(path: str, se: SqueezeExcite, channels: Ranges) -> dict[str, tuple[Ranges | None, Ranges | None]]:
    """Says which channels a narrower block uses of the SqueezeExcite at ``path``, in the form of ``Block.slices``.

    Its inner width follows the number of ``channels``.
    """
    inner = ((0, se.width(sum(stop - start for start, stop in channels))),)
    return {f"{path}.reduce": (inner, channels), f"{path}.expand": (channels, inner)}
