"""Searches hidden widths at the cost of two: each branch runs at a pair of widths, on shared weights (Prunode).

After Kierat et al., "Tiered Pruning for Efficient Differentiable Inference-Aware NAS" (PruNet, arXiv 2209.11785). Its
abstract gives the two paths and the O(1) cost; the position as a function of the budget, its tilt by the projection
and the closing of the gap are ours. All tensors are [slots, branches] and hold positions in a branch's list of widths.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pair:
    """Holds the two widths that run of each branch (positions, long) and the share of the wider one, in [0, 1]."""

    low: Tensor
    high: Tensor
    share_high: Tensor


def interpolate(ms: Tensor, position: Tensor) -> Tensor:
    """Interpolates milliseconds between neighbouring widths, linearly: [S, B, W] at positions [S, B] -> [S, B]."""
    low = position.detach().floor().long().clamp(0, ms.shape[-1] - 1)
    high = (low + 1).clamp(max=ms.shape[-1] - 1)
    at_low, at_high = pick(ms, low), pick(ms, high)
    return at_low + (position - low) * (at_high - at_low)


def pick(ms: Tensor, position: Tensor) -> Tensor:
    """Returns the milliseconds at whole positions: ``ms[s, b, position[s, b]]``."""
    return ms.gather(-1, position.unsqueeze(-1)).squeeze(-1)


def bracket(position: Tensor, count: Tensor, gap_share: float) -> tuple[Tensor, Tensor]:
    """Returns two whole positions around a fractional one in a list of ``count`` widths, all [slots, branches].

    They are ``gap_share`` of the list apart, and at least one step.
    """
    last = count - 1
    gap = torch.minimum((gap_share * last).round().long().clamp(min=1), last)
    low = torch.minimum((position.detach() - gap / 2).round().long().clamp(min=0), last - gap)
    return low, low + gap


def share(position: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Returns the weight of the wider of two widths with which their weighted mean is ``position``, cut to [0, 1]."""
    return ((position - low) / (high - low).clamp(min=1)).clamp(0, 1)


def closing_gap(progress: float, start: float = 0.5, closed_at: float = 0.7) -> float:
    """Returns how far apart the two widths that run of a branch are, as a share of its list of widths.

    It falls linearly with the ``progress`` of the search, from ``start`` at 0 to 0 at ``closed_at``.
    """
    return start * max(0.0, 1.0 - progress / closed_at)
