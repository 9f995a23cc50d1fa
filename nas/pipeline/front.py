"""Makes the front of a search of its picks, and finds a pick by its id or by a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from nas.errors import UserError, setting
from nas.pipeline.inputs import Inputs
from nas.run.directory import Run
from nas.run.records import Budget, Card, Front, Pick, Picks
from nas.select.pareto import Point
from nas.select.pareto import front as pareto_front

LEAST_OF_ID = 4  # characters that stand for an id, where only one begins so
Accuracy = Literal["select_accuracy", "accuracy"]


def make_front(inputs: Inputs, cards: Sequence[Card], picks: Picks) -> Front:
    """Makes the front of a search: of its picks those that no other dominates on some target, by selection accuracy.

    The others are in ``dominated``; one whose trained weights are over the limit of memory is in ``too_large`` alone.
    All are sorted by ms.
    """
    targets, fitting = list(inputs.costs), [card for card in cards if card.fits]
    fronts = {target: _undominated(fitting, "select_accuracy", target) for target in targets}
    kept = {id for ids in fronts.values() for id in ids}
    leading = [card for card in fitting if card.id in kept]
    on_test = {id for target in targets for id in _undominated(leading, "accuracy", target)}
    briefs = [card.brief().model_copy(update={"dominated_on_test": card.id in kept - on_test})
              for card in sorted(cards, key=lambda card: card.ms[targets[0]])]
    by_id = {card.id: card for card in fitting}
    several, picked = len(targets) > 1, {pick.id for pick in picks.budgets}
    return Front(space=inputs.layout.space, target=targets,
                 sizes=[at.size for at in inputs.every] if inputs.others else [],
                 front=_with_ties([card for card in briefs if card.id in kept], targets[0]),
                 dominated=[card for card in briefs if card.fits and card.id not in kept],
                 too_large=[card for card in briefs if not card.fits],
                 budgets=[_budget_as_delivered(pick, by_id[pick.id]) for pick in picks.budgets if pick.id in by_id],
                 fronts=fronts if several else {}, on_several=_ids_on_several(fronts) if several else [],
                 share_of_slots=_operator_shares([card for card in fitting if card.id in picked or not card.known]),
                 rank_agreement=picks.rank_agreement, held_out=picks.held_out)


def _undominated(cards: Sequence[Card], by: Accuracy, target: str) -> list[str]:
    """Returns the ids of the cards that no other dominates on a target, fastest first; ``by`` is the accuracy."""
    return [point.id for point in pareto_front(Point(card.id, card.ms[target], getattr(card, by)) for card in cards)]


def _budget_as_delivered(pick: Pick, card: Card) -> Budget:
    """Returns the budget of a pick with the milliseconds measured on its delivered file, if any were."""
    measured = {target: card.measured_ms[target] for target in pick.budget_ms}
    known = any(ms is not None for ms in measured.values())
    return pick.budget().model_copy(update={"measured_ms": measured} if known else {})


def _with_ties(front: Sequence[Card], target: str) -> list[Card]:
    """Sets ``within_error_of`` of each card: the id of the fastest card that is as accurate within the standard error.

    That is one whose selection accuracy is below by less than the standard error of the difference.
    """
    def tie(card: Card) -> str | None:
        return next((other.id for other in front  # by ascending ms
                     if other.ms[target] < card.ms[target] and card.select_accuracy - other.select_accuracy
                     < math.hypot(card.select_accuracy_se, other.select_accuracy_se)), None)

    return [card.model_copy(update={"within_error_of": tie(card)}) for card in front]


def _ids_on_several(fronts: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns the ids of the networks that are on the fronts of several targets."""
    ids = dict.fromkeys(id for front in fronts.values() for id in front)
    return [id for id in ids if sum(id in front for front in fronts.values()) > 1]


def find_picks(fronts: Mapping[str, Front], arch_id: str | None, budget_ms: float | None) -> tuple[str, list[str]]:
    """Finds picks by an id or by a budget; returns the folder of their front in the run, and their ids.

    An id is looked for in the search's own picks (folder ""), then in each selection's; without id and budget all picks
    of the search are returned. Raises UserError for an unknown id, and where no pick is within the budget.
    """
    if arch_id is not None:
        wanted = full_id(fronts, arch_id)
        return next(place for place, front in fronts.items() if wanted in _ids(front)), [wanted]
    return "", _ids(fronts[""]) if budget_ms is None else [fronts[""].best(budget_ms).id]


def read_fronts(run: Run) -> dict[str, Front]:
    """Reads the front of the search itself, under "", and those of its finished selections, by their folders.

    Raises UserError for a run that is not that far, and for a file that does not hold what it should.
    """
    return {place: run.read(f"{place}front.json", Front) for place in run.places()}


def full_id(fronts: Mapping[str, Front], text: str) -> str:
    """Returns the id of the pick that a text names: the whole id, or its first ``LEAST_OF_ID`` characters or more.

    Raises UserError where no id, or several, begin so.
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


def _ids(front: Front) -> list[str]:
    return [card.id for card in front.cards]


def _operator_shares(cards: Sequence[Card]) -> dict[str, float]:
    """Returns the share of slots that each operator family holds, over these networks."""
    names = [op.name for card in cards if card.arch for op in card.arch.ops]
    return {name: round(names.count(name) / len(names), 4) for name in sorted(set(names))}
