"""Defines what evolution and Bayes look for: the lowest loss within a budget, or MnasNet's reward of loss and ms.

MnasNet (Tan et al., CVPR 2019, arXiv 1807.11626, section 3, equations 2 and 3) maximises accuracy * (ms / budget)^w
with w = alpha within the budget and beta above it. What is judged here is a held-out loss, the lower the better, in the
place of 1 / accuracy: minimised is loss * (ms / budget)^-w, the formula of ``gates.latency=mnas``. Losses must be
positive for that, as cross-entropy is. Budgets are hard all the same: what is picked is within them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from nas.arch import Arch
from nas.select.problem import Ledger, Limits, Problem
from nas.units import BUDGETED

Weights = tuple[float, float]  # alpha, beta
LOSS: Weights = (0.0, 0.0)
OBJECTIVES: dict[str, Weights] = {
    "loss": LOSS,
    "mnas-soft": (-0.07, -0.07),  # the paper's: twice the milliseconds for 5 % of accuracy
    "mnas-hard": (0.0, -1.0),  # its hard variant: no reward for being faster than the budget, a steep price above it
}


def reward(loss: float, used: float, weights: Weights) -> float:
    """Returns loss * used^-w, lower is better; ``used`` is ms / budget."""
    return float(loss * used ** -weights[used > 1])


def share_of_budget(problem: Problem, pick: Sequence[int], limits: Limits) -> float:
    """Returns the share of the budget that a network takes; of several budgets, the one it takes most of."""
    shares = (problem.named(name).of(pick) / max(bound, 1e-12) for name, bound in limits.items()
              if problem.named(name).unit in BUDGETED)
    return max(shares, default=1.0)


def ranked(ledger: Ledger, limits: Limits, weights: Weights) -> list[Arch]:
    """Returns all judged networks within the limits, best first by the objective."""
    problem = ledger.problem

    def value(arch: Arch) -> float:
        pick = problem.indices(arch)
        return reward(ledger.losses[tuple(pick)], share_of_budget(problem, pick, limits), weights)

    archs = ledger.ranked(limits)
    return archs if weights == LOSS else sorted(archs, key=value)


def finite_loss(ledger: Ledger, pick: Sequence[int]) -> float:
    """Returns the loss as samplers can use it: finite, and above all others for a network without one."""
    loss = ledger.losses.get(tuple(pick), math.inf)
    finite = (known for known in ledger.losses.values() if math.isfinite(known))
    return loss if math.isfinite(loss) else max(finite, default=0.0) + 1.0
