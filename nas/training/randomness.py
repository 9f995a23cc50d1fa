"""Draws random numbers from names, so that a continued run draws the same as one that was never interrupted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from nas.ops.layers import Dropout


def seed_of(*names: object) -> int:
    """Returns a 63-bit seed from names: randomness without a state to store."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*names: object, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed_of(*names))


@contextmanager
def seeded(*names: object) -> Iterator[None]:
    """Seeds PyTorch's own randomness (initial weights, dropout) from names, and restores it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(*names))
        yield


@contextmanager
def drawing_from(model: nn.Module, generator: torch.Generator) -> Iterator[None]:
    """Lets dropout of ``model`` draw from its own generator: what trains beside it does not change what it draws."""
    layers = [module for module in model.modules() if isinstance(module, Dropout)]
    for layer in layers:
        layer.generator = generator
    try:
        yield
    finally:
        for layer in layers:
            layer.generator = None
