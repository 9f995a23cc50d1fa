"""What picks must keep to beside a budget of one target: all budgets together, parameters, MACs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from nas.arch import Op
from nas.errors import UserError
from nas.files import nearest
from nas.plan import Layout, OpKey, Slot, macs, params
from nas.scene import Scene, limits_of, memory_bounds, problem, up_to_max
from nas.select.ilp import below, solve
from nas.select.problem import Cost, Problem, budgets

PARAMS, MACS = "--max-params", "--max-macs"  # costs are named as a user limits them
_COUNTS: dict[str, tuple[str, Callable[[OpKey], int]]] = {PARAMS: ("parameters", params), MACS: ("MACs", macs)}


@dataclass(frozen=True)
class Bounds:
    """Hard limits: on every pick (``counts``, by flag) and of one network on several targets (``together``, in ms)."""

    counts: dict[str, float] = field(default_factory=dict)
    together: dict[str, float] = field(default_factory=dict)

    @staticmethod
    def of(max_params: float | None = None, max_macs: float | None = None,
           together: dict[str, float] | None = None) -> Bounds:
        counts = {name: value for name, value in ((PARAMS, max_params), (MACS, max_macs)) if value is not None}
        return Bounds(counts, together or {})

    @property
    def given(self) -> dict[str, Any]:
        return {**self.counts, **({"together": self.together} if self.together else {})}

    def check(self, targets: Sequence[str]) -> None:
        """Raises UserError for a budget of a target that is not asked for."""
        for target in self.together:
            if target not in targets:
                raise UserError(f"--budget-ms {target}=...: no --target {target} is given; {nearest(target, targets)}")


NOTHING = Bounds()


def bounded(scene: Scene, layout: Layout, targets: Sequence[str], bounds: Bounds) -> Problem:
    """The selection problem of ``targets``, with a cost for each count that is limited."""
    one = problem(scene, layout, targets)
    return replace(one, costs=(*one.costs, *(_count(layout, name) for name in bounds.counts)))


def all_bounds(scene: Scene, targets: Sequence[str], bounds: Bounds) -> dict[str, float]:
    """Limits beside milliseconds, by the name of the cost."""
    memory = {name: value for target in targets for name, value in memory_bounds(scene, target).items()}
    return {**memory, **bounds.counts}


def reachable(scene: Scene, layout: Layout, target: str, budget_ms: Sequence[float], count: int,
              bounds: Bounds) -> list[float]:
    """The budgets of one target, as ``limits_of`` has them, over what the counts leave reachable.

    Raises UserError for a budget or a count that is out of reach, with the smallest value that is not.
    """
    if not bounds.counts:
        return limits_of(scene, layout, target, budget_ms, count)
    one, limits = bounded(scene, layout, [target], bounds), all_bounds(scene, [target], bounds)
    ms = one.costs[0]
    least, most = (ms.of(solve(scores, one.costs, limits)[0])
                   for scores in (tuple(-row for row in ms.per_op), ms.per_op))
    ends = up_to_max(scene.config, target, (least, most), budget_ms)
    for budget in budget_ms:
        if budget < ends[0]:
            within = " and ".join(f"{name} {value:g}" for name, value in bounds.counts.items())
            raise UserError(below(ms, budget, ends[0], f"with {within}; raise one of them"))
    return sorted(budget_ms) or budgets(one, count, ends)


def _count(layout: Layout, name: str) -> Cost:
    unit, of = _COUNTS[name]

    def cost(slot: Slot, op: Op) -> float:
        key = slot.key(op)
        return float(of(key)) if key else 0.0

    rows = tuple(np.array([cost(slot, op) for op in slot.ops]) for slot in layout.slots)
    return Cost(name, unit, float(sum(of(key) for key in layout.fixed)), rows)
