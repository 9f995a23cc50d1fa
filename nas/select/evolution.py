"""Selection by NSGA-II (Deb et al., IEEE TEC 2002) on held-out loss and milliseconds, seeded by the ILP's answers.

The algorithm is Optuna's ``NSGAIISampler``. A slot is two parameters, its branch and the position of its width among
those of the branch, so that crossover and mutation treat branches alike however many widths each admits.
"""

from __future__ import annotations

import logging
import math
import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import optuna
from optuna.trial import Trial

from nas.arch import Arch
from nas.select.ilp import first_round
from nas.select.problem import Judge, Ledger, Limits, Problem, ScoresFor, random_within

_VIOLATION = "violation"
_REFUSED = 1.0  # of a network that is not admitted, as if it were twice a budget


def select_evolution(problem: Problem, limits_list: Sequence[Limits], scores_for: ScoresFor, judge: Judge,
                     evaluations: int, rng: random.Random) -> list[list[Arch]]:
    """Per budget, the networks judged that lie within it, lowest loss first; ``evaluations`` are judged in all.

    The first generation is half the ILP's answers to ``scores_for``, half random near the budgets. What lies outside
    every budget, or is not admitted, is never judged, only marked as violating. Raises UserError for a budget that
    cannot be met.
    """
    ledger = Ledger(problem, judge, evaluations)
    size = max(8, min(50, evaluations // 8))
    seeds = first_round(problem, limits_list, [scores_for(limits) for limits in limits_list], size, rng)
    with _quiet():
        _evolve(_Coding.of(problem), ledger, limits_list, seeds, size, rng)
    return [ledger.ranked(limits) for limits in limits_list]


def _evolve(coding: _Coding, ledger: Ledger, limits_list: Sequence[Limits], seeds: Sequence[Sequence[int]], size: int,
            rng: random.Random) -> None:
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=_sampler(size, rng))
    idle = 0
    while ledger.left and idle < 8:
        for seed in seeds:
            study.enqueue_trial(coding.params(seed))
        judged = _generation(study, coding, ledger, limits_list, size)
        # a generation of nothing but known networks has converged: fresh blood for the next
        idle = 0 if judged else idle + 1
        drawn = (random_within(ledger.problem, rng.choice(limits_list), rng) for _ in range(0 if judged else size // 2))
        seeds = [pick for pick in drawn if pick is not None]


def _sampler(size: int, rng: random.Random) -> optuna.samplers.NSGAIISampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constraints_func: experimental in Optuna 4, its successor exists from 5 only
        return optuna.samplers.NSGAIISampler(population_size=size, seed=rng.getrandbits(31),
                                             constraints_func=lambda trial: (trial.user_attrs[_VIOLATION],))


def _generation(study: optuna.Study, coding: _Coding, ledger: Ledger, limits_list: Sequence[Limits], size: int) -> int:
    """One population asked, judged in one call and told; returns how many of it were new."""
    trials = [study.ask() for _ in range(size)]
    picks = [coding.indices(trial) for trial in trials]
    violations = [_violation(ledger.problem, pick, limits_list) for pick in picks]
    judged = ledger.judge([pick for pick, violation in zip(picks, violations, strict=True) if violation <= 0])
    worst = max((loss for loss in ledger.losses.values() if math.isfinite(loss)), default=0.0)
    for trial, pick, violation in zip(trials, picks, violations, strict=True):
        trial.set_user_attr(_VIOLATION, violation)
        loss = ledger.losses.get(tuple(pick), math.inf)
        study.tell(trial, [loss if math.isfinite(loss) else worst + 1.0, ledger.problem.costs[0].of(pick)])
    return judged


def _violation(problem: Problem, pick: Sequence[int], limits_list: Sequence[Limits]) -> float:
    """How far, relative to the bound, a network is outside the budget that it misses least; 0 or less: within one."""
    least = min(max((_excess(problem.named(name).of(pick), bound) for name, bound in limits.items()), default=0.0)
                for limits in limits_list)
    return _REFUSED if least <= 0 and not problem.admitted(pick) else least


def _excess(value: float, bound: float) -> float:
    return 0.0 if value <= bound else max((value - bound) / max(bound, 1e-12), 1e-12)


@dataclass(frozen=True)
class _Coding:
    """Between indices and Optuna's parameters ``s3.branch`` and ``s3.width``; ``steps`` positions for the widths."""

    branches: tuple[tuple[tuple[int, ...], ...], ...]
    steps: tuple[int, ...]

    @staticmethod
    def of(problem: Problem) -> _Coding:
        return _Coding(problem.branches, tuple(max(map(len, groups)) for groups in problem.branches))

    def indices(self, trial: Trial) -> list[int]:
        pick = []
        for slot, (groups, steps) in enumerate(zip(self.branches, self.steps, strict=True)):
            group = groups[trial.suggest_categorical(f"s{slot}.branch", range(len(groups)))]
            position = trial.suggest_int(f"s{slot}.width", 0, steps - 1)
            pick.append(group[_rescale(position, steps, len(group))])
        return pick

    def params(self, pick: Sequence[int]) -> dict[str, int]:
        params = {}
        for slot, (groups, steps, index) in enumerate(zip(self.branches, self.steps, pick, strict=True)):
            branch = next(i for i, group in enumerate(groups) if index in group)
            position = groups[branch].index(index)
            params[f"s{slot}.branch"] = branch
            params[f"s{slot}.width"] = _rescale(position, len(groups[branch]), steps)
        return params


def _rescale(position: int, steps: int, to: int) -> int:
    """The nearest of ``to`` positions; there and back is the same for ``to`` at least ``steps``."""
    return round(position * (to - 1) / (steps - 1)) if steps > 1 else 0


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna's log of every trial off, for as long as this lasts."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
