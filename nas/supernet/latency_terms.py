"""Makes the expected latency a part of what the gates minimise: one term a name, chosen by ``gates.latency``.

``projection`` (ours, the default) needs no term in the loss: the gates meet the budget by construction. Under the
others the gates are what they have learned, unprojected, and the term makes their expected latency E = ``soft.ms`` of
the whole network a part of what they minimise; E is the expectation under the gates' probabilities, not that of the
paths drawn. T is the budget in ms. The hard budgets of the selection are the ILP's under every term.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nas.config import gates as settings
from nas.supernet.gates import Soft

BINS = 5  # multipliers of a target over its budgets: a single one learned the reversed order in a trial
LIMIT = 5.0  # of a multiplier: a budget out of reach must not wind it up


class Term(nn.Module):
    """Computes what the gates minimise, ``term(loss, soft)``, a scalar; what a term learns is in its buffers."""

    projected = False  # whether the gates meet the budget by projection

    def forward(self, loss: Tensor, soft: Soft) -> Tensor:
        raise NotImplementedError

    def learn(self, soft: Soft) -> None:
        """Updates what the term learns, after a step of the gates, from the ``soft`` of that step."""


class Projection(Term):
    """Returns the loss alone: by projection, its gradient moves along the constraint E = T already."""

    projected = True

    def forward(self, loss: Tensor, soft: Soft) -> Tensor:
        return loss


class Dual(Term):
    """Computes loss + l g + rho/2 g^2 with g = E/T - 1, and after the step l <- l + lr g: dual ascent on E = T.

    E is the expected latency, T the budget. It is the augmented Lagrangian of an equality (Boyd et al., "Distributed
    Optimization and Statistical Learning via ADMM", 2011, sections 2.1 and 2.3), with one gradient step of the gates
    for each step of l. l may be negative: a budget that is not used up pushes, too. A target has ``BINS`` of them over
    s in [-1, 1], linear in between, each within +-LIMIT.
    """

    multiplier: Tensor  # [targets, BINS]

    def __init__(self, chosen: settings.Dual, targets: int) -> None:
        super().__init__()
        self.lr, self.rho = chosen.lr, chosen.rho
        self.register_buffer("multiplier", torch.zeros(targets, BINS, dtype=torch.float64))

    def forward(self, loss: Tensor, soft: Soft) -> Tensor:
        excess = soft.ms / soft.budget_ms - 1
        return loss + (_hat(soft.s) @ self.multiplier[soft.target]) * excess + self.rho / 2 * excess**2

    def learn(self, soft: Soft) -> None:
        row = self.multiplier[soft.target]
        row += self.lr * (soft.expected_ms / soft.budget_ms - 1) * _hat(soft.s)
        row.clamp_(-LIMIT, LIMIT)


class FBNet(Term):
    """Computes FBNet's loss * alpha log(E)^beta, E the expected latency in us (arXiv 1812.03443, equation 2).

    It knows no budget: gates learn the same trade-off at all budgets, and only the ILP's bound differs.
    """

    def __init__(self, chosen: settings.FBNet) -> None:
        super().__init__()
        self.alpha, self.beta = chosen.alpha, chosen.beta

    def forward(self, loss: Tensor, soft: Soft) -> Tensor:
        return loss * self.alpha * _log_us(soft.ms) ** self.beta


class Proxyless(Term):
    """Computes ProxylessNAS's loss (arXiv 1812.00332): loss + weight (E/T - 1), or loss * alpha (log E / log T)^beta.

    ``form`` is ``add`` or ``mul``. Section 3.3.1 adds a multiple of E; dividing by T, and the second form, are from its
    released code (``add#linear``, ``mul#log``). Logarithms are of microseconds: those of less than 1 ms are negative.
    """

    def __init__(self, chosen: settings.Proxyless) -> None:
        super().__init__()
        self.form, self.weight, self.alpha, self.beta = chosen.form, chosen.weight, chosen.alpha, chosen.beta

    def forward(self, loss: Tensor, soft: Soft) -> Tensor:
        if self.form == "add":
            return loss + self.weight * (soft.ms / soft.budget_ms - 1)
        ratio = _log_us(soft.ms) / _log_us(soft.ms.new_tensor(soft.budget_ms))
        return loss * self.alpha * ratio**self.beta


class Mnas(Term):
    """Computes MnasNet's soft reward as a loss (arXiv 1807.11626, equations 2 and 3).

    It is loss * (E/T)^-w with w = alpha where E <= T, else beta.

    There accuracy * (ms/T)^w rewards a controller that samples networks (PPO). Here the loss stands for 1/accuracy, and
    E, not the ms of one sample, is differentiated: the trade-off is the paper's, its estimator is not.
    """

    def __init__(self, chosen: settings.Mnas) -> None:
        super().__init__()
        self.alpha, self.beta = chosen.alpha, chosen.beta

    def forward(self, loss: Tensor, soft: Soft) -> Tensor:
        w = self.alpha if soft.expected_ms <= soft.budget_ms else self.beta
        return loss * (soft.ms / soft.budget_ms) ** -w


def term_of(chosen: settings.LatencyTerm, targets: int) -> Term:
    """Makes the term of the chosen settings, for gates of so many targets."""
    match chosen:
        case settings.Dual():
            return Dual(chosen, targets)
        case settings.FBNet():
            return FBNet(chosen)
        case settings.Proxyless():
            return Proxyless(chosen)
        case settings.Mnas():
            return Mnas(chosen)
        case _:
            return Projection()


def _hat(s: float) -> Tensor:
    """Returns the weights [BINS] with which multipliers count at a budget position: linear between the nearest two."""
    at = (min(max(s, -1.0), 1.0) + 1) / 2 * (BINS - 1)
    return (1 - (torch.arange(BINS, dtype=torch.float64) - at).abs()).clamp(min=0)


def _log_us(ms: Tensor) -> Tensor:
    """Returns the logarithm of microseconds, of at least 2, because its power has no gradient at log 1 = 0."""
    return torch.log((1000 * ms).clamp(min=2.0))
