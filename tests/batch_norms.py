"""Batch norms that are no identity, for tests of what is folded and exported."""

from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def scrambled(module: M) -> M:
    """Batch norms as after training: a fold that forgets one of the four vectors shows."""
    generator = torch.Generator().manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                tensor.data = torch.rand(tensor.shape, generator=generator) + 0.5
    return module.eval()
