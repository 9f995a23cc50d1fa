"""Defines the gates: probabilities of every choice of every slot, as a function of the budget.

Their expected latency equals the budget at every step, by projection (unless it is turned off). For a slot's branch b
and budget position s in [-1, 1] the prior is  l_b(s) - (w - u_b(s))^2 / (2 sigma_b^2)  over its widths w, with
l = theta + s phi  and  u = c0 + c1 s  (and offsets per target). Tilting it by ``-beta * ms`` shifts the
logits by -beta ms and the width position by -beta sigma^2 d ms/d w; beta is found by bisection so that the expected
latency is T(s) exactly, and carries its gradient implicitly, so the loss moves only along the constraint and there is
no multiplier to tune. The method is ours; compared with dual variables in a trial, its mean budget error was 0 against
15-130 %. Unprojected, beta is 0, and a term of ``latency_terms`` puts milliseconds into the loss.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from nas.arch import SKIP, Op
from nas.decision import Choice, Decision, Prices
from nas.plan import Layout
from nas.supernet.width import Pair, bracket, interpolate, pick, share

SIGMA = 0.25  # standard deviation of the prior over widths, as a share of the branch's range of widths
HALVINGS = 48


@dataclass(frozen=True)
class Soft:
    """Holds the gates at one budget of one target: probabilities [slots, branches], and two widths of each branch.

    ``ms`` is the expected latency; projection keeps it constant, so projected gates get no gradient from it.
    """

    s: float
    target: int
    p: Tensor
    pair: Pair
    beta: float
    budget_ms: float
    ms: Tensor

    @property
    def expected_ms(self) -> float:
        return float(self.ms.detach())


class Gates(nn.Module):
    """Holds the architecture parameters of a layout; ``at`` turns them into probabilities at a budget.

    ``prices`` and ``ranges`` (smallest and largest budget in ms) have one entry a target. Without ``projected``, the
    probabilities are the plain softmax, whatever their expected latency.
    """

    ms: Tensor
    live: Tensor
    start: Tensor
    count: Tensor
    slope: Tensor

    def __init__(self, layout: Layout, prices: Sequence[Prices], ranges: Sequence[tuple[float, float]],
                 projected: bool = True) -> None:
        super().__init__()
        self.layout, self.ranges, self.projected = layout, list(ranges), projected
        self.fixed = [p.fixed for p in prices]
        slots, branches = len(layout.slots), max(len(s.branches) for s in layout.slots)
        widths = max(len(b.ops) for s in layout.slots for b in s.branches)
        ms, count = np.zeros((len(prices), slots, branches, widths)), np.zeros((slots, branches), dtype=np.int64)
        for slot in layout.slots:
            for b, branch in enumerate(slot.branches):
                count[slot.index, b] = len(branch.ops)
                for t, price in enumerate(prices):
                    row = [price.ms[slot.index][op] for op in branch.ops]
                    ms[t, slot.index, b] = np.pad(row, (0, widths - len(row)), mode="edge")
        self.register_buffer("ms", torch.from_numpy(ms))
        self.register_buffer("live", torch.from_numpy(count > 0))
        self.register_buffer("start", _start(layout, branches), persistent=False)
        self.register_buffer("count", torch.from_numpy(np.maximum(count, 1)))
        widest = pick(self.ms, (self.count - 1).expand(self.ms.shape[:3]))
        self.register_buffer("slope", (widest - self.ms[..., 0]) / (self.count - 1).clamp(min=1))
        zeros = torch.zeros(len(prices) + 1, slots, branches, dtype=torch.float64)  # row 0 shared, then one a target
        self.theta, self.phi = nn.Parameter(zeros.clone()), nn.Parameter(zeros.clone())
        centre = zeros.clone()
        centre[0] = 0.5
        self.c0, self.c1 = nn.Parameter(centre), nn.Parameter(zeros.clone())

    def budget(self, s: float, target: int = 0) -> float:
        """Returns the budget in ms at position ``s`` from -1 to 1, geometric between a target's smallest and largest.
        """
        low, high = self.ranges[target]
        return float(low * (high / low) ** ((s + 1) / 2))

    def prior(self, s: float, target: int = 0) -> tuple[Tensor, Tensor]:
        """Returns logits [S, B] (pruned branches -inf) and width positions [S, B] before they are projected."""
        logits = self.start + (self.theta[0] + self.theta[1 + target]) + s * (self.phi[0] + self.phi[1 + target])
        centre = (self.c0[0] + self.c0[1 + target]) + s * (self.c1[0] + self.c1[1 + target])
        return logits.masked_fill(~self.live, float("-inf")), centre * (self.count - 1)

    def at(self, s: float, target: int = 0, gap_share: float = 0.0) -> Soft:
        """Returns the gates at budget position ``s``, projected onto that budget; differentiable in the parameters."""
        logits, centre = self.prior(s, target)
        tilt, ms = _Tilt(self, target), self.ms[target]
        budget, beta = self.budget(s, target), torch.zeros((), dtype=torch.float64)
        with torch.no_grad():
            if self.projected:
                beta = tilt.solve(lambda b: tilt.expected(logits, interpolate(ms, tilt.moved(centre, b)), b), budget)
            low, high = bracket(tilt.moved(centre, beta), self.count, gap_share)
        at_low, at_high = pick(ms, low), pick(ms, high)

        def soft(beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            high_share = share(tilt.moved(centre, beta), low, high)
            cost = at_low + high_share * (at_high - at_low)
            return torch.softmax(logits - beta * cost, -1), high_share, cost

        if self.projected:
            with torch.no_grad():
                beta = tilt.solve(lambda b: tilt.total(*soft(b)), budget)
            beta = _implicit(lambda b: tilt.total(*soft(b)), beta, budget)
        p, high_share, cost = soft(beta)
        expected = tilt.total(p, high_share, cost)
        return Soft(s, target, p, Pair(low, high, high_share), float(beta.detach()), budget, expected)

    def log_scores(self, s: float, target: int = 0) -> list[dict[Op, float]]:
        """Returns each slot's scores, a log prior for every operator that is not pruned; the ILP maximises their sum.

        Where every width is a branch, scores are relative to those that the gates began with, so that operators of many
        widths have no handicap against ``skip``.
        """
        with torch.no_grad():
            logits, centre = self.prior(s, target)
            log_p = torch.log_softmax(logits, -1) - self.start
        scores: list[dict[Op, float]] = []
        for slot in self.layout.slots:
            scores.append({})
            for b, branch in enumerate(slot.branches):
                if not self.live[slot.index, b]:
                    continue
                sigma = max(SIGMA * (len(branch.ops) - 1), 1e-9)
                for w, op in enumerate(branch.ops):
                    away = (w - float(centre[slot.index, b])) / sigma if len(branch.ops) > 1 else 0.0
                    scores[-1][op] = float(log_p[slot.index, b]) - away * away / 2
        return scores

    def drop(self, slot: int, branch: int) -> None:
        self.live[slot, branch] = False


def position(budget_ms: float, low: float, high: float) -> float:
    """Returns the position from -1 to 1 of a budget in ms between the smallest and the largest one.

    It is the inverse of ``Gates.budget``; budgets outside get the nearer end.
    """
    return float(np.clip(2 * np.log(budget_ms / low) / np.log(high / low) - 1, -1, 1)) if high > low else 0.0


class _Tilt:
    """Computes what beta does to the gates at one target, and finds the beta that meets a budget."""

    def __init__(self, gates: Gates, target: int) -> None:
        self.fixed, self.last = gates.fixed[target], (gates.count - 1).to(torch.float64)
        self.shift = gates.slope[target] * (SIGMA * self.last) ** 2
        per_slot = (gates.ranges[target][1] - self.fixed) / max(1, len(gates.layout.slots))
        self.unit = 1.0 / max(per_slot, 1e-9)

    def moved(self, centre: Tensor, beta: Tensor | float) -> Tensor:
        position = centre - beta * self.shift
        return position + (torch.minimum(position.clamp(min=0), self.last) - position).detach()

    def expected(self, logits: Tensor, cost: Tensor, beta: Tensor) -> Tensor:
        return self.total(torch.softmax(logits - beta * cost, -1), cost, cost)

    def total(self, p: Tensor, _: Tensor, cost: Tensor) -> Tensor:
        return self.fixed + (p * cost).sum()

    def solve(self, expected: Callable[[Tensor], Tensor], budget_ms: float) -> Tensor:
        """Finds, by bisection, the beta at which the expected latency is the budget, or the nearest to that."""
        low, high = -18.0, 18.0  # beta = unit * sinh(z): +-3e7 of a slot's nats, so that saturated gates are undone too
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            value = float(expected(self._beta(middle)))
            low, high = (middle, high) if value > budget_ms else (low, middle)
        return self._beta((low + high) / 2)

    def _beta(self, z: float) -> Tensor:
        return torch.tensor(self.unit * np.sinh(z), dtype=torch.float64)


def _implicit(expected: Callable[[Tensor], Tensor], beta: Tensor, budget_ms: float) -> Tensor:
    """Gives beta its gradient by the implicit function theorem: one Newton step, which leaves its value as it is."""
    free = beta.clone().requires_grad_(True)
    with torch.enable_grad():
        value = expected(free)
        slope = torch.autograd.grad(value, free, retain_graph=True)[0].detach()
    if abs(float(slope)) < 1e-12:
        return beta
    gap = expected(beta) - budget_ms
    return beta - (gap - gap.detach()) / slope


def _start(layout: Layout, branches: int) -> Tensor:
    """Returns the logits [S, B] that gates begin with: minus the log of how many branches share an operator.

    They are 0 unless every width is a branch; there, operators of many widths would crowd out ``skip``.
    """
    start = torch.zeros(len(layout.slots), branches, dtype=torch.float64)
    for slot in layout.slots:
        ops = [branch.op for branch in slot.branches]
        shared = Counter(ops)
        start[slot.index, :len(ops)] = -torch.tensor([shared[op] for op in ops], dtype=torch.float64).log()
    return start


def all_branches(gates: Gates, soft: Soft) -> Decision:
    """Returns the decision with every branch that is not pruned, at both its widths, weighted by its probability.

    Its ``expected_ms`` is the expected latency of the gates.
    """
    slots = []
    for slot in gates.layout.slots:
        choices: list[Choice] = []
        for b, branch in enumerate(slot.branches):
            if gates.live[slot.index, b]:
                choices += _both(gates, soft, slot.index, b, branch.op, soft.p[slot.index, b])
        slots.append(tuple(choices))
    return Decision(tuple(slots))


def two_path(gates: Gates, soft: Soft, tau: float, generator: torch.Generator) -> Decision:
    """Draws two paths a slot: either two branches (Gumbel top-2, renormalised, ProxylessNAS) or two widths of one.

    Of two branches, each has a width that is drawn from its pair; a branch with two widths is drawn from p.
    """
    noisy = _noisy(gates, soft, generator)
    coins = torch.rand(soft.p.shape, generator=generator, dtype=torch.float64)
    slots = []
    for i, slot in enumerate(gates.layout.slots):
        first, *rest = torch.topk(noisy[i].detach(), min(2, int(gates.live[i].sum()))).indices.tolist()
        has_pair = bool(soft.pair.high[i, first] > soft.pair.low[i, first])
        if not rest or (has_pair and float(coins[i, -1]) < 0.5):
            slots.append(tuple(_both(gates, soft, i, first, slot.branches[first].op, torch.tensor(1.0))))
            continue
        duel = torch.softmax(noisy[i, [first, *rest]] / tau, -1).float()
        slots.append(tuple(Choice(slot.branches[b].op, _drawn_width(gates, soft, i, b, float(coins[i, b])), duel[j])
                           for j, b in enumerate([first, *rest])))
    return Decision(tuple(slots))


def gumbel(gates: Gates, soft: Soft, tau: float, generator: torch.Generator) -> Decision:
    """Returns the decision of ``all_branches``, weighted by a Gumbel softmax (FBNet) in place of probabilities."""
    weights = torch.softmax(_noisy(gates, soft, generator) / tau, -1)
    return all_branches(gates, replace(soft, p=weights))


def draw(gates: Gates, soft: Soft, generator: torch.Generator) -> Decision:
    """Draws one network from the gates; weights are trained on such networks during the search."""
    with torch.no_grad():
        drawn = torch.multinomial(soft.p.float(), 1, generator=generator).squeeze(-1).tolist()
        coins = torch.rand(len(drawn), generator=generator).tolist()
        return Decision(tuple((Choice(slot.branches[b].op, _drawn_width(gates, soft, i, b, coins[i])),)
                              for i, (slot, b) in enumerate(zip(gates.layout.slots, drawn, strict=True))))


RELAXATIONS = {"two-path": two_path, "gumbel": gumbel}


def _noisy(gates: Gates, soft: Soft, generator: torch.Generator) -> Tensor:
    """Adds Gumbel noise to the log-probabilities [S, B]; pruned branches stay at -inf."""
    uniform = torch.rand(soft.p.shape, generator=generator, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    noisy = torch.log(soft.p.clamp(min=1e-30)) - torch.log(-torch.log(uniform))
    return noisy.masked_fill(~gates.live, float("-inf"))


def _width(gates: Gates, i: int, b: int, position: Tensor) -> int | None:
    branch = gates.layout.slots[i].branches[b]
    return branch.widths[int(position[i, b])] if branch.widths else None


def _drawn_width(gates: Gates, soft: Soft, i: int, b: int, coin: float) -> int | None:
    wide = coin < float(soft.pair.share_high[i, b].detach())
    return _width(gates, i, b, soft.pair.high if wide else soft.pair.low)


def _both(gates: Gates, soft: Soft, i: int, b: int, op: Op, weight: Tensor) -> list[Choice]:
    if op == SKIP or soft.pair.high[i, b] == soft.pair.low[i, b]:
        return [Choice(op, _width(gates, i, b, soft.pair.low), weight.float())]
    wide = soft.pair.share_high[i, b]
    return [Choice(op, _width(gates, i, b, soft.pair.low), (weight * (1 - wide)).float()),
            Choice(op, _width(gates, i, b, soft.pair.high), (weight * wide).float())]
