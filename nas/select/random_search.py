"""Selects the best of N random networks, which every selector has to beat (Li and Talwalkar, arXiv 1902.07638)."""

from __future__ import annotations

import random
from collections.abc import Sequence

from nas.arch import Arch
from nas.select.ilp import solve
from nas.select.problem import Judge, Ledger, Limits, Problem, ScoresFor, random_within

FRUITLESS = 20  # rounds over all budgets without a new network, after which there are hardly any


def select_random(problem: Problem, limits_list: Sequence[Limits], scores_for: ScoresFor, judge: Judge,
                  evaluations: int, rng: random.Random) -> list[list[Arch]]:
    """Returns per budget the judged networks within it, lowest loss first; judges ``evaluations`` networks in all.

    As many are drawn for every budget, at 90 to 100 % of it; where none is found, the fastest stands for it. Scores are
    not asked for. Raises UserError for a budget that cannot be met, before anything is judged.
    """
    fastest = tuple(-row for row in problem.costs[0].per_op)
    least = [solve(fastest, problem.costs, limits, admits=problem.admitted) for limits in limits_list]
    ledger, fruitless = Ledger(problem, judge, evaluations), 0
    while ledger.left and fruitless < FRUITLESS:
        drawn = [random_within(problem, limits, rng) for limits in limits_list]
        candidates = [pick for near, fast in zip(drawn, least, strict=True) for pick in ([near] if near else fast)]
        fruitless = 0 if ledger.judge(candidates) else fruitless + 1
    return [ledger.ranked(limits) for limits in limits_list]
