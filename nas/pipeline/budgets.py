"""Finds the budgets that networks are selected for, and the hard limits beside them: parameters, MACs, other targets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from nas.arch import Op
from nas.config.search import Config
from nas.errors import UserError, setting
from nas.files import nearest
from nas.pipeline.inputs import Inputs, flash_limits, selection_problem
from nas.plan import Layout, OpKey, Slot, macs, params, resized
from nas.select.ilp import below, solve
from nas.select.problem import Cost, Limits, Problem, budgets
from nas.units import amount, amount_rounded_up

PARAMS, MACS = "max_params", "max_macs"  # costs are named as a user limits them
_COUNTS: dict[str, tuple[str, Callable[[OpKey], int]]] = {PARAMS: ("parameters", params), MACS: ("MACs", macs)}


@dataclass(frozen=True)
class SizeRequest:
    """Holds what the selection at one input size is to solve: ``limits``, and the indices of the budgets of each."""

    problem: Problem
    limits: list[Limits]
    budgets: list[list[int]]


@dataclass(frozen=True)
class Bounds:
    """Holds hard limits: ``counts`` of parameters and MACs, by setting, that bind every pick.

    ``together`` are budgets in ms, by target, that one network has to keep all at once.
    """

    counts: dict[str, float] = field(default_factory=dict)
    together: dict[str, float] = field(default_factory=dict)

    @staticmethod
    def of(max_params: float | None = None, max_macs: float | None = None,
           together: dict[str, float] | None = None) -> Bounds:
        """Makes the bounds of the limits that are given."""
        counts = {name: value for name, value in ((PARAMS, max_params), (MACS, max_macs)) if value is not None}
        return Bounds(counts, together or {})

    def check(self, targets: Sequence[str]) -> None:
        """Raises UserError for a budget of a target that is not asked for."""
        for target in self.together:
            if target not in targets:
                raise UserError(f"{setting('budget_ms', target)}=...: no {setting('target', target)} is given; "
                                f"{nearest(target, targets)}")


NOTHING = Bounds()


def divide_budgets(targets: Sequence[str], budget_ms: Sequence[float],
                   bounds: Bounds) -> tuple[dict[str, list[float]], Bounds]:
    """Returns the budgets of each target, and the bounds without one that names a single target: it is that target's.

    ``budget_ms`` are the first target's. So the same budgets have one spelling, and one name of a selection, however a
    command or a call writes them.
    """
    given = {target: set(budget_ms if target == targets[0] else []) for target in targets}
    if len(bounds.together) == 1:
        ((target, ms),) = bounds.together.items()
        given[target].add(ms)
        bounds = replace(bounds, together={})
    return {target: sorted(values) for target, values in given.items()}, bounds


def bounded_problem(inputs: Inputs, layout: Layout, targets: Sequence[str], bounds: Bounds) -> Problem:
    """Makes the selection problem of ``targets`` with further costs for all that is limited beside them."""
    whole = selection_problem(inputs, layout, [*targets, *_max_ms_limit(inputs, targets)])
    return replace(whole, costs=(*whole.costs, *(_count_cost(layout, name) for name in bounds.counts)),
                   grows=inputs.grows)


def other_limits(inputs: Inputs, targets: Sequence[str], bounds: Bounds) -> dict[str, float]:
    """Returns the limits on all costs beside the budgets of ``targets``, by the name of the cost."""
    memory = {name: value for target in targets for name, value in flash_limits(inputs, target).items()}
    return {**memory, **_max_ms_limit(inputs, targets), **bounds.counts}


def _max_ms_limit(inputs: Inputs, targets: Sequence[str]) -> dict[str, float]:
    """Returns ``max_ms`` by the run's first target where picks are for other targets: those have to keep it as well.

    For the first target itself it is no further limit, as none of its budgets is above it.
    """
    first, most = inputs.config.target[0] if inputs.config.target else "", inputs.config.max_ms
    return {first: most} if most is not None and first in inputs.costs and first not in targets else {}


def budgets_of_target(inputs: Inputs, layout: Layout, target: str, budget_ms: Sequence[float],
                      count: int) -> list[float]:
    """Returns the budgets of one target: those given, or ``count`` in geometric steps from its fastest network on.

    Networks of all input sizes count. Raises UserError for a budget that no network keeps, and where no network fits
    into the target's memory.
    """
    every = [selection_problem(at, resized(layout, at.size), [target]) for at in inputs.every]
    cheapest = min(every, key=lambda at: at.costs[0].smallest)
    fits = inputs.footprints.get(target)
    ends = fits.ms_range(cheapest) if fits else (cheapest.costs[0].smallest, max(at.costs[0].largest for at in every))
    ends = cut_at_max_ms(inputs.config, target, ends, budget_ms)
    for budget in budget_ms:
        if budget < ends[0]:
            advice = f"raise it{f' or {fits.limits}' if fits else ''}, or search a smaller space ({setting('width')})"
            raise UserError(below(cheapest.costs[0], budget, ends[0], advice))
    return sorted(budget_ms) or budgets(cheapest, count, ends)


def cut_at_max_ms(config: Config, target: str, ends: tuple[float, float],
                  budget_ms: Sequence[float]) -> tuple[float, float]:
    """Cuts the range of a target's budgets off at ``max_ms``, if that is of this target.

    Raises UserError for a ``max_ms`` that no network keeps, and for a budget above it.
    """
    if config.max_ms is None or target != config.target[0]:
        return ends
    if config.max_ms < ends[0]:
        raise UserError(f"{setting('max_ms', f'{config.max_ms:g}')} is below the smallest reachable "
                        f"{amount_rounded_up(ends[0], target)}; raise it, or search a smaller space "
                        f"({setting('width')})")
    if over := [budget for budget in budget_ms if budget > config.max_ms]:
        raise UserError(f"{setting('budget_ms', f'{over[0]:g}')} is above {setting('max_ms', f'{config.max_ms:g}')}")
    return ends[0], min(ends[1], config.max_ms)


def reachable_budgets(inputs: Inputs, layout: Layout, target: str, budget_ms: Sequence[float], count: int,
                      bounds: Bounds) -> list[float]:
    """Returns the budgets of one target as ``budgets_of_target`` does, over networks that keep all other ``bounds``.

    Raises UserError for a budget or a bound that no network keeps, with the smallest value that one keeps.
    """
    worst = _max_ms_limit(inputs, [target])
    if not bounds.counts and not worst:
        return budgets_of_target(inputs, layout, target, budget_ms, count)
    limits = other_limits(inputs, [target], bounds)
    every = solvable([bounded_problem(at, resized(layout, at.size), [target], bounds) for at in inputs.every], limits)
    ms = every[0].costs[0]
    least = min(of_size.costs[0].of(cheapest_choices(of_size, limits)) for of_size in every)
    most = max(of_size.costs[0].of(solve(of_size.costs[0].per_op, of_size.costs, limits)[0]) for of_size in every)
    ends = cut_at_max_ms(inputs.config, target, (least, most), budget_ms)
    for budget in budget_ms:
        if budget < ends[0]:
            kept = [*(setting(key, f"{value:g}") for key, value in bounds.counts.items()),
                    *(f"{setting('max_ms', f'{value:g}')} on {name}" for name, value in worst.items())]
            within = " and ".join(kept)
            raise UserError(below(ms, budget, ends[0], f"with {within}; raise one of them"))
    return sorted(budget_ms) or budgets(every[0], count, ends)


def tell_idle_budgets(inputs: Inputs, layout: Layout, target: str, budget_ms: Sequence[float],
                      tell: Callable[[str], None]) -> None:
    """Tells the user which of the budgets are above the largest network, so that they limit nothing."""
    most = max(selection_problem(at, resized(layout, at.size), [target]).costs[0].largest for at in inputs.every)
    if beyond := [f"{budget:g}" for budget in budget_ms if budget > most]:
        tell(f"{setting('budget_ms', ', '.join(beyond))}: above the largest network, {amount(most, target)}: all "
             "networks are within it")


def requests_by_size(problems: Sequence[Problem], limits_list: Sequence[Limits]) -> list[SizeRequest]:
    """Divides limits among the problems, one an input size: each gets the limits that it has networks for, each once.

    A limit above the largest network of a size is that network's cost there, so that several limits may become one.
    Raises UserError for limits that no size can keep.
    """
    if len(problems) == 1:
        return [SizeRequest(problems[0], list(limits_list), [[index] for index in range(len(limits_list))])]
    asked: list[dict[tuple[tuple[str, float], ...], list[int]]] = [{} for _ in problems]
    for index, limits in enumerate(limits_list):
        for of_size in solvable(problems, limits):
            capped = tuple((name, min(value, of_size.largest(name))) for name, value in limits.items())
            asked[problems.index(of_size)].setdefault(capped, []).append(index)
    return [SizeRequest(of_size, [dict(limits) for limits in capped], list(capped.values()))
            for of_size, capped in zip(problems, asked, strict=True) if capped]


def solvable(problems: Sequence[Problem], limits: Limits) -> list[Problem]:
    """Returns the problems that have a network within the limits. Raises UserError where none has."""
    reached = []
    for of_size in problems:
        try:
            cheapest_choices(of_size, limits)
            reached.append(of_size)
        except UserError:
            if not reached and of_size is problems[-1]:
                raise
    return reached


def cheapest_choices(problem: Problem, limits: Limits) -> list[int]:
    """Returns the choice for each slot of the network of least first cost within limits.

    Raises UserError where no network is within them.
    """
    return solve(tuple(-row for row in problem.costs[0].per_op), problem.costs, limits)[0]


def _count_cost(layout: Layout, name: str) -> Cost:
    """Makes the cost that counts parameters or MACs of a layout's networks."""
    unit, of = _COUNTS[name]

    def cost(slot: Slot, op: Op) -> float:
        key = slot.key(op)
        return float(of(key)) if key else 0.0

    rows = tuple(np.array([cost(slot, op) for op in slot.ops]) for slot in layout.slots)
    return Cost(name, unit, float(sum(of(key) for key in layout.fixed)), rows)
