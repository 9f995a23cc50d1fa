"""Places networks where they are trained: on which device, and how their weights lie in memory there."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from nas.errors import UserError, setting

M = TypeVar("M", bound=nn.Module)


def placed(module: M, device: torch.device) -> M:
    """Moves a module to the device and to channels_last, which doubles the speed of depthwise convolutions on a CPU."""
    return module.to(device).to(memory_format=torch.channels_last)


def device_of(train_on: str) -> torch.device:
    """Returns the device of ``auto``, ``cpu`` or ``cuda``. Raises UserError for ``cuda`` where there is none."""
    if train_on == "cuda" and not torch.cuda.is_available():
        raise UserError(f"{setting('train_on', 'cuda')}: PyTorch sees no GPU here; use {setting('train_on', 'cpu')}")
    return torch.device("cuda" if train_on != "cpu" and torch.cuda.is_available() else "cpu")
