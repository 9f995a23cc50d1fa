"""Blocks as after training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nas.arch import Op
from nas.ops import build
from nas.ops.registry import Block

WIDE = 32


def settled(op: Op, in_ch: int, out_ch: int, stride: int, seed: int = 0) -> Block:
    """The block in eval mode, with batch norms as after training rather than at their start."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        block = build(op, in_ch, out_ch, stride)
        for module in block.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias)
                assert module.running_mean is not None and module.running_var is not None
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2)
    return block.eval()


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))
