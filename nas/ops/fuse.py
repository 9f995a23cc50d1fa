"""Merges linear branches into one convolution, for blocks that are trained in one form and deployed in another.

Batch norms count with their running statistics, so all of it is exact in eval mode. Convolutions are (weight, bias).
After Ding et al., RepVGG (CVPR 2021, arXiv 2101.03697, section 3.3) and DBB (CVPR 2021, arXiv 2103.13425, section 3.2).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.ops.layers import ConvBN

Kernel = tuple[Tensor, Tensor]  # [out, in, k, k] and [out]


def scale_of(norm: nn.BatchNorm2d) -> Kernel:
    """Returns a batch norm as (factor, offset), [channels] each."""
    assert norm.running_mean is not None and norm.running_var is not None
    factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return factor, norm.bias - norm.running_mean * factor


def folded(part: ConvBN) -> Kernel:
    """Folds the batch norm of a ConvBN into its convolution; the activation is left to the caller."""
    conv, norm = part.get_submodule("conv"), part.get_submodule("bn")
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    factor, offset = scale_of(norm)
    return conv.weight * factor.reshape(-1, 1, 1, 1), offset


def then(first: Kernel, second: Kernel) -> Kernel:
    """Merges a 1x1 convolution and an unpadded one behind it: zeros around the map have to go through the first."""
    weight = torch.einsum("omhw,mi->oihw", second[0], first[0][:, :, 0, 0])
    return weight, second[1] + second[0].sum((2, 3)) @ first[1]


def centred(kernel: Kernel, side: int) -> Kernel:
    """Pads a kernel with zeros to ``side`` x ``side``; the convolution computes the same."""
    height, width = kernel[0].shape[2:]
    rows, columns = (side - height) // 2, (side - width) // 2
    return F.pad(kernel[0], [columns, columns, rows, rows]), kernel[1]


def convolution(kernel: Kernel, stride: int) -> nn.Conv2d:
    """Makes a module of a kernel, with a bias and padding k // 2."""
    weight, bias = kernel
    out_ch, in_ch, side, _ = weight.shape
    conv = nn.Conv2d(in_ch, out_ch, side, stride, side // 2, device=weight.device, dtype=weight.dtype)
    conv.weight, conv.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
    return conv
