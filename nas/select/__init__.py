"""Names the selectors: each turns costs, scores and a judge into the networks worth having at each budget."""

from __future__ import annotations

from functools import partial
from typing import Any

from nas.errors import UserError, setting
from nas.files import nearest
from nas.select.bayes import select_bayes
from nas.select.evolution import select_evolution
from nas.select.ilp import select_auto, select_ilp
from nas.select.objective import OBJECTIVES
from nas.select.problem import Selector
from nas.select.random_search import select_random

SELECTORS: dict[str, Selector] = {"ilp": select_ilp, "auto": select_auto, "evolution": select_evolution,
                                  "bayes": select_bayes, "random": select_random}
WEIGHED = ("evolution", "bayes")  # those with a choice of objective


def get(name: str, objective: str = "loss", shrink: int = 0) -> Selector:
    """Returns the selector called ``name``, with its options set.

    Raises UserError for an unknown name, and for an objective or a shrinking that the selector does not have.
    """
    if name not in SELECTORS:
        raise UserError(f"{setting('selector', name)}: no such selector; {nearest(name, SELECTORS)}")
    options: dict[str, Any] = {}
    if objective != "loss":
        if name not in WEIGHED or objective not in OBJECTIVES:
            raise UserError(f"objective={objective}: not of {setting('selector', name)}; evolution and bayes have "
                            f"{', '.join(OBJECTIVES)}")
        options["weights"] = OBJECTIVES[objective]
    if shrink:
        if name != "evolution":
            raise UserError(f"shrink={shrink}: not of {setting('selector', name)}, but of evolution")
        options["shrink"] = shrink
    return partial(SELECTORS[name], **options) if options else SELECTORS[name]
