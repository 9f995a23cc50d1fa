"""The front: which picks no other dominates, and finding one of them again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nas.errors import UserError, setting
from nas.pipeline.inputs import Inputs
from nas.pipeline.overrun import TOLERANCE
from nas.select.pareto import Point
from nas.select.pareto import front as pareto_front
from nas.units import least

LEAST_OF_ID = 4  # characters that stand for an id, where only one begins so


def front_of(inputs: Inputs, cards: list[dict[str, Any]], picks: dict[str, Any]) -> dict[str, Any]:
    """Picks sorted by ms; in the front are those that no other dominates on any target, by selection accuracy.

    One whose trained weights are over the limit of memory is in ``too_large`` and nowhere else.
    """
    targets = list(inputs.costs)

    def of_target(cards: Sequence[dict[str, Any]], by: str, t: str) -> list[str]:
        return [p.id for p in pareto_front(Point(c["id"], ms_of(c, t), c[by]) for c in cards)]

    def best(cards: Sequence[dict[str, Any]], by: str) -> set[str]:
        return {id for t in targets for id in of_target(cards, by, t)}

    delivered, cards = cards, [card for card in cards if card.get("fits", True)]
    kept = best(cards, "select_accuracy")
    fronts = {target: of_target(cards, "select_accuracy", target) for target in targets}
    on_test = best([card for card in cards if card["id"] in kept], "accuracy")
    brief = [{key: value for key, value in card.items() if key not in ("arch", "provenance")} for card in delivered]
    shown = sorted(brief, key=lambda card: ms_of(card, targets[0]))
    fitting = {card["id"] for card in cards}
    for card in shown:
        card["dominated_on_test"] = card["id"] in kept - on_test
    _mark_ties([card for card in shown if card["id"] in kept], targets[0])
    known = {card["id"]: card for card in delivered}
    budgets = [{**{key: value for key, value in b.items() if key != "arch"}, **_measured(b, known[b["id"]])}
               for b in picks["budgets"] if b["id"] in fitting]
    shown, large = ([card for card in shown if (card["id"] in fitting) is wanted] for wanted in (True, False))
    return {"space": inputs.layout.space, "target": targets,
            **({"sizes": [at.size for at in inputs.every]} if inputs.others else {}),
            "front": [card for card in shown if card["id"] in kept],
            "dominated": [card for card in shown if card["id"] not in kept], "budgets": budgets,
            **({"too_large": large} if large else {}), **(_per_device(fronts) if len(targets) > 1 else {}),
            "share_of_slots": _shares(cards), "rank_agreement": picks["rank_agreement"],
            "held_out": picks.get("held_out", {})}


def _measured(budget: dict[str, Any], card: dict[str, Any]) -> dict[str, Any]:
    """``measured_ms`` of a budget's pick as it is delivered, on the targets of the budget; nothing where none is."""
    asked = {target: card["measured_ms"][target] for target in budget["budget_ms"]}
    return {} if all(value is None for value in asked.values()) else {"measured_ms": asked}


def _mark_ties(front: list[dict[str, Any]], target: str) -> None:
    """``within_error_of``: the fastest of the faster ones whose selection accuracy is not above it by more than chance.

    That is, whose accuracy is less than a standard error of the difference below; runs before this have no errors.
    """
    for card in front:
        for other in front:  # by ascending ms
            error = math.hypot(card.get("select_accuracy_se", 0.0), other.get("select_accuracy_se", 0.0))
            if ms_of(other, target) < ms_of(card, target) and \
                    card["select_accuracy"] - other["select_accuracy"] < error:
                card["within_error_of"] = other["id"]
                break


def _per_device(fronts: dict[str, list[str]]) -> dict[str, Any]:
    """Ids of each target's own front by ms, and of the networks that are on several."""
    ids = dict.fromkeys(id for front in fronts.values() for id in front)
    return {"fronts": fronts, "on_several": [id for id in ids if sum(id in f for f in fronts.values()) > 1]}


def find(fronts: dict[str, dict[str, Any]], arch_id: str | None, budget_ms: float | None) -> tuple[str, list[str]]:
    """(place, ids): an id is looked for in the search's own picks, then in each selection's."""
    if arch_id is not None:
        wanted = meant(fronts, arch_id)
        return next(place for place, front in fronts.items() if wanted in _ids(front)), [wanted]
    cards, targets = cards_of(fronts[""]), fronts[""]["target"]
    if budget_ms is None:
        return "", [card["id"] for card in cards]
    if not targets:
        raise UserError(f"{setting('budget_ms')}: this run has no target, so no latency is known; give "
                        f"{setting('arch')}")
    target = targets[0]
    if not cards:
        raise UserError(f"{setting('budget_ms')}: this run has no pick that fits")
    def takes(card: dict[str, Any]) -> float:
        """As predicted, and, where it is measured above that, as measured."""
        return max(ms_of(card, target), (card["measured_ms"][target] or 0.0) / (1 + TOLERANCE))

    within = [card for card in fronts[""]["front"] if takes(card) <= budget_ms]
    if not within:
        cheapest = min(map(takes, fronts[""]["front"]))
        raise UserError(f"{setting('budget_ms', f'{budget_ms:g}')}: the cheapest pick of this run takes "
                        f"{least(cheapest, target)}; nas select finds others")
    return "", [max(within, key=lambda card: (card["select_accuracy"], -ms_of(card, target)))["id"]]


def meant(fronts: Mapping[str, dict[str, Any]], text: str) -> str:
    """The id that a text is, or is the beginning of, of ``LEAST_OF_ID`` characters at least.

    Raises UserError where it is of none, or of several.
    """
    known = list(dict.fromkeys(id for front in fronts.values() for id in _ids(front)))
    begin = [text] if text in known else [id for id in known if text and id.startswith(text)]
    if begin and text not in known and len(text) < LEAST_OF_ID:
        raise UserError(f"{setting('arch', text)}: give at least {LEAST_OF_ID} characters of an id; there are "
                        f"{', '.join(known)}")
    if len(begin) > 1:
        raise UserError(f"{setting('arch', text)}: is the beginning of {' and '.join(begin)}; give more of it")
    if not begin:
        raise UserError(f"{setting('arch', text)}: no such pick; there are {', '.join(known)}")
    return begin[0]


def _ids(front: dict[str, Any]) -> list[str]:
    return [card["id"] for card in cards_of(front)]


def ms_of(card: dict[str, Any], target: str) -> float:
    return float(card["ms"][target])


def _shares(cards: list[dict[str, Any]]) -> dict[str, float]:
    """Share of slots that each operator family holds, over all picks."""
    names = [op.partition("(")[0] for card in cards for op in card["arch"]["ops"]]
    return {name: round(names.count(name) / len(names), 4) for name in sorted(set(names))}


def cards_of(front: dict[str, Any]) -> list[dict[str, Any]]:
    return [*front["front"], *front["dominated"]]
