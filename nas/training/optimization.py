"""Provides the learning rate over a schedule, the optimizer, and its state by parameter name."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

RAMP = 0.1  # share of a schedule in which the learning rate rises
HELD_RAMP, HELD = 0.05, 0.5  # the same where it is held, and the share until which it is


def one_cycle(progress: float, peak: float) -> float:
    """Returns the learning rate at ``progress`` in [0, 1]: a linear ramp, then a cosine to zero."""
    if progress < RAMP:
        return peak * (0.05 + 0.95 * progress / RAMP)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - RAMP) / (1 - RAMP))))


def held(progress: float, peak: float) -> float:
    """Returns the learning rate at ``progress`` in [0, 1]: a short ramp, held at ``peak`` to the half, a line to zero.

    It is held so that training may go on until nothing is gained, and only then fall (warm-up, stable, decay; Hägele et
    al., arXiv 2405.18392).
    """
    if progress < HELD_RAMP:
        return peak * (0.05 + 0.95 * progress / HELD_RAMP)
    return peak * min(1.0, max(0.0, (1 - progress) / (1 - HELD)))


def optimizer(module: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """Makes AdamW without decay on biases and batch norms."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    groups = [{"params": [p for _, p in named if p.dim() > 1], "weight_decay": weight_decay},
              {"params": [p for _, p in named if p.dim() <= 1], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), fused=all(p.is_floating_point() for _, p in named))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Returns the optimizer's state by parameter name, so that it survives pruning and a new order of parameters."""
    return {name: dict(optimizer.state[p]) for name, p in module.named_parameters() if p in optimizer.state}


def load_optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads a state for the parameters that are left. Raises ValueError for moments of another shape."""
    for name, p in module.named_parameters():
        if name in state:
            if any(isinstance(v, Tensor) and v.dim() and v.shape != p.shape for v in state[name].values()):
                raise ValueError(f"optimizer state of {name} is of another shape")
            optimizer.state[p] = {k: v.to(p.device) if isinstance(v, Tensor) else v for k, v in state[name].items()}
