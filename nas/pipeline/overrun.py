"""A network that takes longer than its budget when it is measured: how much longer counts, and how that is said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

TOLERANCE = 0.03  # of a budget: a network that is loaded anew is measured up to 2 % faster or slower than before


def bounds_of(budgets: Iterable[Mapping[str, Any]], arch_id: str) -> dict[str, float]:
    """Returns, by target, the smallest of the budgets that a network was chosen for."""
    smallest: dict[str, float] = {}
    for budget in budgets:
        if budget["id"] == arch_id:
            for target, ms in budget["budget_ms"].items():
                smallest[target] = min(ms, smallest.get(target, ms))
    return smallest


def over(measured: Mapping[str, float | None], bounds: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Returns, by target, what is measured above its budget by more than ``TOLERANCE``, and by which share of it.

    What is not measured is not in it.
    """
    return {target: {"budget_ms": bound, "measured_ms": ms, "above": round(ms / bound - 1, 4)}
            for target, bound in bounds.items()
            if (ms := measured.get(target)) is not None and ms > bound * (1 + TOLERANCE)}


def lines(front: Mapping[str, Any]) -> list[str]:
    """Returns a line for every pick of a front that is measured above its budget."""
    cards = [*front["front"], *front.get("dominated", []), *front.get("too_large", [])]
    return [sentence(card["id"], target, excess, card["ms"].get(target))
            for card in cards for target, excess in (card.get("over_budget") or {}).items()]


def sentence(name: str, target: str, excess: Mapping[str, float], predicted_ms: float | None) -> str:
    """Returns the line that says it of one network."""
    predicted = "" if predicted_ms is None else f"; predicted {predicted_ms:.4g}"
    return (f"measured above its budget: {name} takes {excess['measured_ms']:.4g} ms on {target} for "
            f"{excess['budget_ms']:.4g} ({100 * excess['above']:.0f} % above{predicted})")
