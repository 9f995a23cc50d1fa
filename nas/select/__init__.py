"""Selectors by name: from additive costs, scores and a judge to the networks worth having at each budget."""

from __future__ import annotations

from nas.errors import UserError
from nas.files import nearest
from nas.select.control import select_random
from nas.select.evolution import select_evolution
from nas.select.ilp import select_auto, select_ilp
from nas.select.problem import Selector

SELECTORS: dict[str, Selector] = {"ilp": select_ilp, "auto": select_auto, "evolution": select_evolution,
                                  "random": select_random}


def get(name: str) -> Selector:
    """Raises UserError for an unknown name."""
    if name not in SELECTORS:
        raise UserError(f"--selector {name}: no such selector; {nearest(name, SELECTORS)}")
    return SELECTORS[name]
