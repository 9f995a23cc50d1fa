"""Prunes blocks and layers of a supernet that lose at every budget of a grid and for every target.

After PruNet's second and third tier (arXiv 2209.11785); the thresholds and the guards are ours. A slot is never
emptied and its cheapest choice never dropped, or the tightest budget would become unreachable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nas.arch import SKIP, Op
from nas.plan import Slot
from nas.supernet.drop import Drop, Kind
from nas.supernet.gates import Gates

GRID = (-1.0, -0.6, -0.2, 0.2, 0.6, 1.0)  # budget positions s at which a choice may still win


@dataclass
class Pruner:
    """Decides what is pruned: branches of low probability, and layers that are skipped ``patience`` checks in a row.

    The final threshold for branches is ``share`` of a uniform probability. ``streaks`` counts, by slot, the checks in a
    row that skip has won so far: all that a continued training has to know.
    """

    share: float = 0.6
    patience: int = 2
    grid: tuple[float, ...] = GRID
    blocks: bool = True
    layers: bool = True
    streaks: dict[int, int] = field(default_factory=dict)

    def check(self, gates: Gates, progress: float) -> list[Drop]:
        """Drops from the gates what has lost at ``progress`` of the search, and returns it."""
        p = probabilities(gates, self.grid)
        return [drop for slot in gates.layout.slots
                for drop in (self._layer(gates, p, slot) if self.layers else []) +
                (self._blocks(gates, p, slot, progress) if self.blocks else [])]

    def _blocks(self, gates: Gates, p: Tensor, slot: Slot, progress: float) -> list[Drop]:
        alive = _alive(gates, slot)
        threshold = self.share * progress / max(1, len(alive))
        guarded = {b for b, _ in _cheapest(gates, slot)}
        losers = [b for b in alive if b not in guarded and float(p[:, :, slot.index, b].max()) < threshold]
        return [_drop(gates, p, slot, b, "block", threshold) for b in losers]

    def _layer(self, gates: Gates, p: Tensor, slot: Slot) -> list[Drop]:
        skip = next((b for b in _alive(gates, slot) if slot.branches[b].op == SKIP), None)
        wins = skip is not None and float(p[:, :, slot.index, skip].min()) > 0.5
        self.streaks[slot.index] = self.streaks.get(slot.index, 0) + 1 if wins else 0
        if self.streaks[slot.index] < self.patience:
            return []
        others = [b for b in _alive(gates, slot) if b != skip]
        return [_drop(gates, p, slot, b, "layer", 0.5) for b in others]


def probabilities(gates: Gates, grid: Sequence[float]) -> Tensor:
    """Returns the branch probabilities over a grid of budgets: [targets, budgets, slots, branches]."""
    with torch.no_grad():
        return torch.stack([torch.stack([gates.at(s, t).p for s in grid]) for t in range(len(gates.ranges))])


def survivors(gates: Gates, grid: Sequence[float]) -> list[list[Op]]:
    """Lists the operators of each slot that are not pruned: branches at the widths they have at any budget and target.

    A slot's cheapest operator stays, so that the smallest latency of the space stays reachable.
    """
    with torch.no_grad():
        softs = [gates.at(s, t) for t in range(len(gates.ranges)) for s in grid]
    kept: list[list[Op]] = []
    for slot in gates.layout.slots:
        ops: list[Op] = []
        for b in _alive(gates, slot):
            positions = {int(end[slot.index, b]) for soft in softs for end in (soft.pair.low, soft.pair.high)}
            positions |= {width for cheapest, width in _cheapest(gates, slot) if cheapest == b}
            ops += [slot.branches[b].ops[w] for w in sorted(positions)]
        kept.append(ops)
    return kept


def _alive(gates: Gates, slot: Slot) -> list[int]:
    return [b for b in range(len(slot.branches)) if gates.live[slot.index, b]]


def _cheapest(gates: Gates, slot: Slot) -> set[tuple[int, int]]:
    """Returns (branch, width position) of the least ms for each target; this is not always the smallest width."""
    cheapest = set()
    for ms in gates.ms[:, slot.index]:
        branch = min(_alive(gates, slot), key=lambda b: float(ms[b].min()))
        cheapest.add((branch, int(ms[branch, : int(gates.count[slot.index, branch])].argmin())))
    return cheapest


def _drop(gates: Gates, p: Tensor, slot: Slot, b: int, kind: Kind, threshold: float) -> Drop:
    gates.drop(slot.index, b)
    evidence = tuple(tuple(round(float(x), 5) for x in row) for row in p[:, :, slot.index, b])
    branch = slot.branches[b]
    op = branch.ops[0] if len(branch.ops) == 1 else branch.op  # a branch of one width is named with it
    return Drop(kind, slot.index, str(op), round(threshold, 5), evidence)
