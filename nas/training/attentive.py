"""Chooses the random networks that the supernet trains on: those towards its Pareto front, or those farthest from it.

AttentiveNAS (arXiv 2011.09011, section 3.2): draw a cost, draw k networks of about that cost, and train on the best of
them (``best-up``: pushes the front) or on the worst (``worst-up``: lifts what lags behind), as a performance estimator
says; the estimator here is the loss on the batch of the step, one of the paper's two. The prior over costs is that of
random networks.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from nas import sampling
from nas.arch import Arch
from nas.decision import Prices
from nas.plan import Layout

POOL = 32  # random networks among which those of about the same cost are looked for


def choose_by_loss(layout: Layout, prices: Prices, rng: random.Random, k: int, loss_of: Callable[[Arch], float],
                   worst: bool = False) -> Arch:
    """Draws ``k`` random networks of about the same cost, and returns that of the lowest (``worst``: highest) loss."""
    pool = list(dict.fromkeys(sampling.sample(layout, rng) for _ in range(POOL)))
    ms = {arch: sum(prices.ms[slot.index][op] for slot, op in zip(layout.slots, arch.ops, strict=True))
          for arch in pool}
    near = sorted(pool, key=lambda arch: abs(ms[arch] - ms[pool[0]]))[:k]
    return (max if worst else min)(near, key=loss_of)
