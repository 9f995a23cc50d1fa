"""Selects by additive scores and an exact knapsack, refitted on what was judged: the default selector.

Additive scores under hard latency limits are LANA's formulation (Molchanov et al., ECCV 2022, arXiv 2107.10624); the
rounds of fit, decode and judge are ours. Gates propose, the fit on judged losses decides.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from nas.arch import Arch
from nas.errors import UserError, setting
from nas.files import nearest
from nas.select import score_models
from nas.select.growth import Fit, choose_grown
from nas.select.knapsack import Cut, Knapsack, Pick, admit_all
from nas.select.problem import Cost, Judge, Ledger, Limits, Problem, Scores, ScoresFor, random_within
from nas.select.scores import ridge
from nas.units import BUDGETED, rounded_up

MOST = 8  # diverse answers of one ILP; the overlap that is left pushes later ones far from the optimum
COUNTED = {"parameters": "max_params", "MACs": "max_macs"}  # the setting of a limit, by unit
LIMITS = {**dict.fromkeys(BUDGETED, "budget_ms"), "KB": "flash_kb", **COUNTED}
FIRST = 0.6  # share of the evaluations in the first round, as in the second gates trial (90 + 30 + 30)


def solve(scores: Scores, costs: Sequence[Cost], limits: Limits, *, k: int = 1, overlap: float = 0.7,
          at_least: Limits | None = None, avoid: Iterable[Sequence[int]] = (),
          admits: Callable[[Sequence[int]], bool] = admit_all) -> list[list[int]]:
    """Returns the ``k`` networks of highest score within the limits, best first; fewer if there are no more.

    Each shares at most ``overlap`` of its choices with every earlier one, counted over the slots that have several, and
    none is in ``avoid``. ``at_least`` (name -> value) is dropped from the first answer on that it makes impossible.
    Costs are ``Cost.of``, limits exact. Raises UserError if nothing is within the limits, with the smallest reachable
    value.
    """
    named = {cost.name: cost for cost in costs}
    _refuse(named, limits)
    knapsack = Knapsack(scores, costs, limits, frozenset(map(tuple, avoid)), admits)
    lower = [(named[name], low) for name, low in (at_least or {}).items()]
    free = sum(len(row) > 1 for row in scores)  # what pruning left alone is the same in all and says nothing
    most = len(scores) - free + min(free - 1, math.floor(overlap * free + 1e-9))
    picks: list[Pick] = []
    while len(picks) < k:
        cuts: list[Cut] = [(pick, most) for pick in picks]
        pick = knapsack.best(cuts, lower)
        if pick is None and not lower:
            break
        if pick is None:
            lower = []
        else:
            picks.append(pick)
    if not picks and k and Knapsack(scores, costs, limits).best([], []) is None:
        raise UserError(_jointly(named, limits))
    return [list(pick) for pick in picks]


def select_ilp(problem: Problem, limits_list: Sequence[Limits], scores_for: ScoresFor, judge: Judge, evaluations: int,
               rng: random.Random) -> list[list[Arch]]:
    """Returns per budget the judged networks within it, lowest loss first; judges ``evaluations`` networks in all.

    The first round takes the ILP's answers to ``scores_for`` and random networks near each budget; the later ones the
    ILP's answers to a ridge fit on all that was judged, with ``scores_for`` as its prior. Ends early where no network
    is left. Where the problem ``grows``, one later round is spent on networks that do (``nas.select.growth``). Raises
    UserError for a budget that cannot be met, before anything is judged.
    """
    ledger = Ledger(problem, judge, evaluations)
    gates = [scores_for(limits) for limits in limits_list]
    ledger.judge(first_round(problem, limits_list, gates, math.ceil(FIRST * evaluations), rng))
    return _later_rounds(problem, limits_list, ledger,
                         lambda place: ridge(problem, *ledger.finite(), prior=gates[place]))


def select_auto(problem: Problem, limits_list: Sequence[Limits], scores_for: ScoresFor, judge: Judge, evaluations: int,
                rng: random.Random) -> list[list[Arch]]:
    """Selects as ``select_ilp`` does, each round by the scores that rank unseen networks best (``score_models.best``).

    One-swap losses around the network that scores best at the largest budget join in where they cost no more than a
    third of the evaluations; they count as such.
    """
    ledger = Ledger(problem, judge, evaluations)
    gates = [scores_for(limits) for limits in limits_list]
    first = first_round(problem, limits_list, gates, math.ceil(FIRST * evaluations), rng)
    swaps: dict[str, Scores] = {}
    for base in solve(gates[-1], problem.costs, limits_list[-1], admits=problem.admitted):  # one, or none is admitted
        around = score_models.swaps(problem, base)
        if 3 * (1 + len(around)) <= evaluations and ledger.judge([base, *around]) and base in ledger \
                and math.isfinite(ledger.losses[tuple(base)]):
            swaps[score_models.SWAPS] = score_models.swap_scores(problem, base, ledger.losses)
    ledger.judge(first[:max(1, ledger.left - math.floor((1 - FIRST) * evaluations))])

    def fit(place: int) -> Scores:
        archs, losses = ledger.finite()
        fits = score_models.candidates(problem, {score_models.GATES: gates[place], **swaps})
        return fits[score_models.best(problem, fits, archs, losses, score_models.FIT)](archs, losses)

    return _later_rounds(problem, limits_list, ledger, fit)


def _later_rounds(problem: Problem, limits_list: Sequence[Limits], ledger: Ledger, fit: Fit) -> list[list[Arch]]:
    """Judges the ILP's answers to scores that are fitted anew in each round; returns what was judged, by budget."""
    if problem.grows:
        return choose_grown(problem, limits_list, ledger, fit, solve)
    width = max(1, min(MOST, math.ceil(ledger.left / 2 / len(limits_list))))
    judged = 1
    while ledger.left and judged:
        judged = ledger.judge(in_turn([
            solve(fit(place), problem.costs, limits, k=width, avoid=ledger.losses, admits=problem.admitted)
            for place, limits in enumerate(limits_list)]))
    return [ledger.ranked(limits) for limits in limits_list]


def first_round(problem: Problem, limits_list: Sequence[Limits], gates: Sequence[Scores], n: int,
                rng: random.Random) -> list[list[int]]:
    """Returns ``n`` networks to judge first, budgets in turn: up to half the ILP's answers, others random near each.

    Scores that are all equal say nothing: then one answer, which shows that the budget can be met. Where what they
    prefer is not admitted, one answer is the fastest that is.
    """
    each = math.ceil(n / len(limits_list))
    name, fastest = problem.costs[0].name, tuple(-row for row in problem.costs[0].per_op)
    lists = []
    for limits, scores in zip(limits_list, gates, strict=True):
        lower = {name: 0.9 * limits[name]} if name in limits else {}
        k = min(MOST, math.ceil(each / 2)) if any(np.ptp(row) > 0 for row in scores) else 1
        picks = solve(scores, problem.costs, limits, k=k, at_least=lower, admits=problem.admitted) or solve(
            fastest, problem.costs, limits, admits=problem.admitted)
        drawn = (random_within(problem, limits, rng) for _ in range(each - len(picks)))
        lists.append([*picks, *(pick for pick in drawn if pick is not None)])
    return in_turn(lists)[:n]


def in_turn(lists: Sequence[Sequence[list[int]]]) -> list[list[int]]:
    """Merges lists in turn, the first of each, then the second, ...: cutting the end off takes from all alike."""
    return [pick for round_ in itertools.zip_longest(*lists) for pick in round_ if pick is not None]


def _refuse(named: Mapping[str, Cost], limits: Limits) -> None:
    """Raises UserError for a limit on an unknown cost and for one that no network meets."""
    for name, limit in limits.items():
        if name not in named:
            raise UserError(f"limit {name!r}: no such cost; {nearest(name, named)}")
        if not limit >= named[name].smallest:
            raise UserError(below(named[name], limit, named[name].smallest, "raise it, or search a smaller space"))


def _jointly(named: Mapping[str, Cost], limits: Limits) -> str:
    """Returns the message for limits that can be met singly but not together, with the first one that is excluded."""
    names = list(limits)
    for i in reversed(range(len(names))):
        cost, others = named[names[i]], {name: limits[name] for name in names[i + 1:]}
        cheapest = Knapsack(tuple(-row for row in cost.per_op), list(named.values()), others).best([], [])
        assert cheapest is not None
        if cost.of(cheapest) > limits[names[i]]:
            within = " and ".join(f"{_limited(named[name])} <= {limit:g}" for name, limit in others.items())
            return below(cost, limits[names[i]], cost.of(cheapest), f"with {within}; raise one of them")
    within = " and ".join(f"{_limited(named[name])} <= {limit:g}" for name, limit in limits.items())
    return f"no network is within {within}"


def _limited(cost: Cost) -> str:
    """Returns what a limit of a cost is called: the setting of a count, the name of any other."""
    return setting(LIMITS[cost.unit]) if cost.unit in COUNTED else cost.name


def below(cost: Cost, limit: float, smallest: float, advice: str) -> str:
    """Returns the message for a limit that nothing reaches, with the smallest value that can be asked for."""
    where = {"ms": f" on {cost.name}", "KB": f" of {cost.name}"}.get(cost.unit, "")
    asked = setting(LIMITS[cost.unit], f"{limit:.10g}") if cost.unit in LIMITS else f"{cost.name} {limit:.10g}"
    return f"{asked} is below the smallest reachable {rounded_up(smallest)} {cost.unit}{where}: {advice}"
