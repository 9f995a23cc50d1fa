"""Finds known networks that are better than what was searched, and writes the lines that say so."""

from __future__ import annotations

from collections.abc import Sequence

from nas.run.records import Front
from nas.units import amount


def winner_lines(front: Front) -> list[str]:
    """Returns a line for each known network that beats the picks of some budgets: it is what is delivered there."""
    beaten: dict[str, list[tuple[str, float]]] = {}
    for budget in front.budgets:
        for target, ms in budget.budget_ms.items() if len(budget.budget_ms) == 1 else ():
            pick, within = front.card(budget.id), [card for card in front.front if card.takes(target) <= ms]
            best = max(within, key=lambda card: (card.select_accuracy, -card.ms[target]), default=pick)
            if best.known and best.select_accuracy > pick.select_accuracy:
                beaten.setdefault(best.id, []).append((amount(ms, target), pick.select_accuracy))
    return [_winner_line(front.card(id).known or id, front.card(id).select_accuracy, picks)
            for id, picks in beaten.items()]


def _winner_line(name: str, accuracy: float, picks: Sequence[tuple[str, float]]) -> str:
    """Writes that a known network beats the picks of budgets, each with its accuracy."""
    against = ", ".join(f"{100 * share:.1f}" for _, share in picks)
    return (f"note: {name}, a known network, beats the pick within {', '.join(bound for bound, _ in picks)} "
            f"({100 * accuracy:.1f} against {against} % on the selection split)")
