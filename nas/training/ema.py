"""Averages a network's weights over steps, so that noise of the last steps stays out of what is judged."""

from __future__ import annotations

import copy
from typing import Any, Generic, TypeVar

import torch
from torch import nn

N = TypeVar("N", bound=nn.Module)


class Average(Generic[N]):
    """Keeps a second network that follows the first: mean <- d mean + (1 - d) weights after every step of the weights.

    d = min(decay, (1 + n) / (10 + n)) at step n, as in TensorFlow's ExponentialMovingAverage(num_updates): the initial
    weights do not linger in a short schedule. Buffers are the latest; BN is recomputed before anything is judged.
    """

    def __init__(self, net: N, decay: float) -> None:
        self.net: N = copy.deepcopy(net).requires_grad_(False)
        self.decay, self.steps = decay, 0

    def follow(self, net: N) -> None:
        """Moves the average one step towards ``net``, which has the same parameters."""
        self.steps += 1
        d = min(self.decay, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            for mean, weight in zip(self.net.parameters(), net.parameters(), strict=True):
                mean.lerp_(weight, 1 - d)
            for kept, latest in zip(self.net.buffers(), net.buffers(), strict=True):
                kept.copy_(latest)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "net": self.net.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a ``state_dict``, on a net that was pruned to the same operators."""
        self.net.load_state_dict(state["net"])
        self.steps = state["steps"]
