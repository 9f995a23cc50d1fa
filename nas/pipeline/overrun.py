"""Finds networks that are measured above their budgets, and writes the lines that say so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nas.run.records import TOLERANCE, Budget, Excess, Front


def smallest_budgets(budgets: Iterable[Budget], arch_id: str) -> dict[str, float]:
    """Returns, by target, the smallest of the budgets that a network was chosen for."""
    smallest: dict[str, float] = {}
    for budget in budgets:
        if budget.id == arch_id:
            for target, ms in budget.budget_ms.items():
                smallest[target] = min(ms, smallest.get(target, ms))
    return smallest


def excesses(measured: Mapping[str, float | None], bounds: Mapping[str, float]) -> dict[str, Excess]:
    """Returns, by target, how far a network is measured above its budget, where that is more than ``TOLERANCE``.

    Targets on which it is not measured are left out.
    """
    return {target: Excess(budget_ms=bound, measured_ms=ms, above=round(ms / bound - 1, 4))
            for target, bound in bounds.items()
            if (ms := measured.get(target)) is not None and ms > bound * (1 + TOLERANCE)}


def overrun_lines(front: Front) -> list[str]:
    """Returns a line for every pick of a front that is measured above its budget."""
    return [overrun_line(card.id, target, excess, card.ms.get(target))
            for card in (*front.cards, *front.too_large) for target, excess in card.over_budget.items()]


def overrun_line(name: str, target: str, excess: Excess, predicted_ms: float | None) -> str:
    """Returns the line that says of one network how far it is above its budget."""
    predicted = "" if predicted_ms is None else f"; predicted {predicted_ms:.4g}"
    return (f"measured above its budget: {name} takes {excess.measured_ms:.4g} ms on {target} for "
            f"{excess.budget_ms:.4g} ({100 * excess.above:.0f} % above{predicted})")
