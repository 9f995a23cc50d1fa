"""Selects by Bayesian optimisation, for few evaluations: a Gaussian process models the loss, one study a budget.

The process, its fit and the acquisition, log expected improvement times the probability to meet the budget (Gardner et
al., ICML 2014), are those of Optuna's ``GPSampler``. Every network judged is added to every study: where it exceeds a
study's budget it still says what its operators are worth. A slot is two parameters, its branch and the position of its
width among those of the branch, so that neighbouring widths are neighbours to the kernel.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.trial import Trial, TrialState

from nas.arch import Arch
from nas.select.ilp import first_round, solve
from nas.select.objective import LOSS, Weights, finite_loss, ranked, reward, share_of_budget
from nas.select.problem import Judge, Ledger, Limits, Problem, ScoresFor
from nas.select.studies import VIOLATIONS, quiet, unwarned, violations

FIRST = 1 / 3  # share of the evaluations before the first fit


def select_bayes(problem: Problem, limits_list: Sequence[Limits], scores_for: ScoresFor, judge: Judge,
                 evaluations: int, rng: random.Random, weights: Weights = LOSS) -> list[list[Arch]]:
    """Returns per budget the judged networks within it, best first; judges ``evaluations`` networks in all.

    The first round takes the ILP's answers to ``scores_for`` and random networks near each budget; the later ones what
    each budget's process proposes. A proposal that is known, over its budget or not admitted is replaced by the network
    nearest to it that is not, so nothing outside the budgets is judged. ``weights`` are those of MnasNet's reward
    (``objective.OBJECTIVES``). Ends early where no network is left. Raises UserError for a budget that cannot be met,
    before anything is judged.
    """
    ledger = Ledger(problem, judge, evaluations)
    first = max(len(limits_list), math.ceil(FIRST * evaluations))
    ledger.judge(first_round(problem, limits_list, [scores_for(limits) for limits in limits_list], first, rng))
    with quiet():
        searches = [_Search(problem, limits, rng.getrandbits(31), weights) for limits in limits_list]
        while ledger.left and searches:
            picks: list[list[int]] = []
            for search in searches.copy():
                if len(picks) < ledger.left:
                    proposals = search.proposed(ledger, picks)
                    picks += proposals
                    if not proposals:
                        searches.remove(search)
            ledger.judge(picks)
    return [ranked(ledger, limits, weights) for limits in limits_list]


class _Search:
    """Runs Optuna's study of one budget, which proposes networks for it."""

    def __init__(self, problem: Problem, limits: Limits, seed: int, weights: Weights) -> None:
        self.problem, self.limits, self.weights = problem, limits, weights
        self.coding, self.known = Coding.of(problem), 0
        with unwarned():
            sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=1, constraints_func=violations)
            self.study = optuna.create_study(direction="minimize", sampler=sampler)

    def proposed(self, ledger: Ledger, besides: Iterable[Sequence[int]]) -> list[list[int]]:
        """Proposes one network within the budget that is neither judged nor in ``besides``; empty if there is none."""
        self._tell(ledger)
        with unwarned():
            trial = self.study.ask()
            pick = self.coding.indices(trial)
        self.study.tell(trial, state=TrialState.FAIL)  # what is judged in its place is told next time, if any is
        avoid = {*ledger.losses, *map(tuple, besides)}
        if tuple(pick) not in avoid and self.problem.fits(pick, self.limits) and self.problem.admitted(pick):
            return [pick]
        return solve(self.coding.nearness(pick), self.problem.costs, self.limits, avoid=avoid,
                     admits=self.problem.admitted)

    def _tell(self, ledger: Ledger) -> None:
        """Adds to the study what was judged since the last call, with each cost's relative distance from its limit."""
        for pick in list(ledger.losses)[self.known:]:
            self.study.enqueue_trial(self.coding.params(pick))
            trial = self.study.ask()
            assert self.coding.indices(trial) == list(pick)
            trial.set_user_attr(VIOLATIONS, [(self.problem.named(name).of(pick) - bound) / max(bound, 1e-12)
                                             for name, bound in self.limits.items()])
            with unwarned():
                share = share_of_budget(self.problem, pick, self.limits)
                self.study.tell(trial, reward(finite_loss(ledger, pick), share, self.weights))
        self.known = len(ledger.losses)


@dataclass(frozen=True)
class Coding:
    """Translates between networks (indices) and Optuna's parameters ``s3.branch`` and ``s3.width``.

    ``branches`` are those of the problem, ``steps`` per slot the number of positions of the width.
    """

    branches: tuple[tuple[tuple[int, ...], ...], ...]
    steps: tuple[int, ...]

    @staticmethod
    def of(problem: Problem) -> Coding:
        return Coding(problem.branches, tuple(max(map(len, groups)) for groups in problem.branches))

    def indices(self, trial: Trial) -> list[int]:
        pick = []
        for slot, (groups, steps) in enumerate(zip(self.branches, self.steps, strict=True)):
            group = groups[trial.suggest_categorical(f"s{slot}.branch", range(len(groups)))]
            position = trial.suggest_int(f"s{slot}.width", 0, steps - 1)
            pick.append(group[rescale(position, steps, len(group))])
        return pick

    def params(self, pick: Sequence[int]) -> dict[str, int]:
        params = {}
        for slot, (groups, steps, index) in enumerate(zip(self.branches, self.steps, pick, strict=True)):
            branch = next(i for i, group in enumerate(groups) if index in group)
            position = groups[branch].index(index)
            params[f"s{slot}.branch"] = branch
            params[f"s{slot}.width"] = rescale(position, len(groups[branch]), steps)
        return params

    def nearness(self, pick: Sequence[int]) -> tuple[np.ndarray, ...]:
        """Returns scores by which the ILP finds the network nearest to ``pick``: per slot 1 for its choice, falling to
        1/2 for other widths of its branch, 0 for other branches.
        """
        rows = []
        for groups, index in zip(self.branches, pick, strict=True):
            row, group = np.zeros(sum(map(len, groups))), next(group for group in groups if index in group)
            apart = np.abs(np.arange(len(group)) - group.index(index))
            row[list(group)] = 1 - apart / (2 * max(1, len(group) - 1))
            rows.append(row)
        return tuple(rows)


def rescale(position: int, steps: int, to: int) -> int:
    """Returns the nearest of ``to`` positions to one of ``steps``; it can be undone if ``to`` is at least ``steps``."""
    return round(position * (to - 1) / (steps - 1)) if steps > 1 else 0
