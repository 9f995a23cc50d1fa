"""Selects by NSGA-II (Deb et al., IEEE TEC 2002) on held-out loss and milliseconds, seeded by the ILP's answers.

Tournament, constrained domination and survival are those of Optuna's ``NSGAIISampler``. A slot is one parameter, so
that crossover hands over whole operators with their widths; mutation is on the values of operators.

As an option the space shrinks on the way, slot by slot, to the branches that the best networks have: progressive,
layer-wise operation pruning after PAD-NAS (Xia et al., arXiv 2005.07564, whose abstract is all we have read).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna
from optuna.samplers import NSGAIISampler

from nas.arch import Arch
from nas.select.ilp import first_round, in_turn
from nas.select.objective import LOSS, Weights, finite_loss, ranked, reward, share_of_budget
from nas.select.problem import Judge, Ledger, Limits, Problem, ScoresFor, random_within
from nas.select.studies import VIOLATIONS, quiet, unwarned, violations

_REFUSED = 1.0  # of a network that is not admitted, as if it were twice a budget
_FRUITLESS = 8  # generations without a new network, after which there are hardly any
_ELITE, _FEWEST = 0.25, 4  # share of a budget's networks that the space shrinks to, and how many at least


def select_evolution(problem: Problem, limits_list: Sequence[Limits], scores_for: ScoresFor, judge: Judge,
                     evaluations: int, rng: random.Random, weights: Weights = LOSS,
                     shrink: int = 0) -> list[list[Arch]]:
    """Returns per budget the judged networks within it, best first; judges ``evaluations`` networks in all.

    The first generation is half the ILP's answers to ``scores_for``, half random near the budgets. What lies outside
    every budget, or is not admitted, is never judged, only marked as violating. With ``weights`` of MnasNet's reward
    (``objective.OBJECTIVES``) there is one population a budget, on the reward alone. ``shrink`` times, after equal
    parts of the evaluations, the space becomes ``narrowed``, with a new population of the best that it still has; if it
    has no more networks before the evaluations end, the rest go to the whole space. Raises UserError for a budget that
    cannot be met.
    """
    ledger = Ledger(problem, judge, evaluations)
    size = max(8, min(50, evaluations // 8))
    seeds = first_round(problem, limits_list, [scores_for(limits) for limits in limits_list], size, rng)
    with quiet():
        space = problem
        for later in reversed(range(shrink + 1)):
            before = ledger.left
            _evolve(space, _populations(space, ledger, limits_list, size, rng, weights), ledger, limits_list, seeds,
                    size, rng, evaluations * later // (shrink + 1))
            if later and ledger.left < before:
                lists = [[problem.indices(arch) for arch in ranked(ledger, limits, weights)] for limits in limits_list]
                space = narrowed(space, lists)
                seeds = in_turn([[pick for pick in picks if drawable(space, pick)] for picks in lists])[:size]
        if space is not problem:
            _evolve(problem, _populations(problem, ledger, limits_list, size, rng, weights), ledger, limits_list,
                    seeds, size, rng, 0)
    return [ranked(ledger, limits, weights) for limits in limits_list]


def narrowed(problem: Problem, lists: Sequence[Sequence[Sequence[int]]]) -> Problem:
    """Narrows the problem to the branches that are frequent among the best networks of some list.

    The best are the first quarter of a list (best first), at least four, of the networks that are made of what is drawn
    so far; frequent is what is as frequent as if all branches of its slot were equally likely, so that each slot keeps
    one at least. A list with none of these networks keeps all.
    """
    known = [[pick for pick in picks if drawable(problem, pick)] for picks in lists]
    best = [picks[:max(_FEWEST, math.ceil(_ELITE * len(picks)))] for picks in known]
    drawn = []
    for slot, groups in enumerate(problem.branches):
        kept = [group for group in groups
                if any(len(groups) * sum(pick[slot] in group for pick in picks) >= len(picks) for picks in best)]
        drawn.append(frozenset(index for group in kept for index in group))
    return replace(problem, drawn=tuple(drawn))


def drawable(problem: Problem, pick: Sequence[int]) -> bool:
    """Says whether all choices of a network are among the branches that the (narrowed) problem draws."""
    return all(any(index in group for group in groups) for index, groups in zip(pick, problem.branches, strict=True))


@dataclass(frozen=True)
class _Population:
    """Pairs Optuna's study with ``values``, which turns a network and its loss into what the study minimises."""

    study: optuna.Study
    values: Callable[[Sequence[int], float], list[float]]


def _populations(problem: Problem, ledger: Ledger, limits_list: Sequence[Limits], size: int, rng: random.Random,
                 weights: Weights) -> list[_Population]:
    """Makes one population for all budgets, on loss and ms; with a reward, which needs a budget, one for each."""
    def population(objectives: int, values: Callable[[Sequence[int], float], list[float]]) -> _Population:
        with unwarned():
            study = optuna.create_study(directions=["minimize"] * objectives, sampler=_Sampler(problem, size, rng))
        return _Population(study, values)

    def rewarded(limits: Limits) -> Callable[[Sequence[int], float], list[float]]:
        return lambda pick, loss: [reward(loss, share_of_budget(problem, pick, limits), weights)]

    if weights == LOSS:
        return [population(2, lambda pick, loss: [loss, problem.costs[0].of(pick)])]
    return [population(1, rewarded(limits)) for limits in limits_list]


def _evolve(problem: Problem, populations: Sequence[_Population], ledger: Ledger, limits_list: Sequence[Limits],
            seeds: Sequence[Sequence[int]], size: int, rng: random.Random, left: int) -> None:
    """Breeds and judges generations until at most ``left`` evaluations remain, or hardly a new network is found."""
    idle, first = 0, True
    while ledger.left > left and idle < _FRUITLESS:
        for population in populations:
            for seed in seeds:
                population.study.enqueue_trial({_name(slot): index for slot, index in enumerate(seed)})
        judged = _generation(populations, ledger, limits_list, size)
        # a generation of nothing but known networks, but for the first, has converged: fresh blood for the next
        idle = 0 if judged or first else idle + 1
        drawn = (random_within(problem, rng.choice(limits_list), rng) for _ in range(size // 2 if idle else 0))
        seeds, first = [pick for pick in drawn if pick is not None], False


def _generation(populations: Sequence[_Population], ledger: Ledger, limits_list: Sequence[Limits], size: int) -> int:
    """Asks each population for a generation, judges all in one call, reports the losses; returns how many were new."""
    problem = ledger.problem
    asked = [[population.study.ask() for _ in range(size)] for population in populations]
    # as integers, which uniform crossover only ever swaps: Optuna compares hundreds of categories one by one
    picks = [[[trial.suggest_int(_name(slot), 0, len(ops) - 1) for slot, ops in enumerate(problem.allowed)]
              for trial in trials] for trials in asked]
    misses = [[_violation(problem, pick, limits_list) for pick in candidates] for candidates in picks]
    judged = ledger.judge(in_turn([[pick for pick, miss in zip(candidates, missed, strict=True) if miss <= 0]
                                   for candidates, missed in zip(picks, misses, strict=True)]))
    for population, trials, candidates, missed in zip(populations, asked, picks, misses, strict=True):
        for trial, pick, miss in zip(trials, candidates, missed, strict=True):
            trial.set_user_attr(VIOLATIONS, [miss])
            population.study.tell(trial, population.values(pick, finite_loss(ledger, pick)))
    return judged


def _violation(problem: Problem, pick: Sequence[int], limits_list: Sequence[Limits]) -> float:
    """Returns how far a network is outside the budget that it misses least, relative to it; 0 or less: within one."""
    least = min(max((_excess(problem.named(name).of(pick), bound) for name, bound in limits.items()), default=0.0)
                for limits in limits_list)
    return _REFUSED if least <= 0 and not problem.admitted(pick) else least


def _excess(value: float, bound: float) -> float:
    return 0.0 if value <= bound else max((value - bound) / max(bound, 1e-12), 1e-12)


def _name(slot: int) -> str:
    return f"s{slot}.op"


class _Sampler(NSGAIISampler):
    """Makes children by Optuna's crossover and mutates them.

    A child that is judged already stays: its loss is free, and a good network has more children if it is there twice.
    """

    def __init__(self, problem: Problem, size: int, rng: random.Random) -> None:
        super().__init__(population_size=size, mutation_prob=0.0, seed=rng.getrandbits(31),
                         constraints_func=violations)
        self._problem, self._random = problem, random.Random(rng.getrandbits(31))

    def sample_relative(self, study: Any, trial: Any, search_space: dict[str, Any]) -> dict[str, Any]:
        child = super().sample_relative(study, trial, search_space)
        if not child:
            return child
        # a slot without a choice is no parameter of Optuna's
        pick = [child.get(_name(slot), 0) for slot in range(len(self._problem.allowed))]
        changed = mutated(self._problem, pick, self._random)
        return {name: index for slot, index in enumerate(changed) if (name := _name(slot)) in child}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> int:
        """Draws an operator of the first generation where the seeds are too few: branch uniform, then width."""
        slot = next(i for i in range(len(self._problem.allowed)) if _name(i) == param_name)
        return self._random.choice(self._random.choice(self._problem.branches[slot]))


def mutated(problem: Problem, pick: Sequence[int], rng: random.Random) -> list[int]:
    """Returns a copy of a network in which each slot is changed with a chance of 1 / slots."""
    return [_changed(problem, slot, index, rng) if rng.random() * len(pick) < 1 else index
            for slot, index in enumerate(pick)]


def _changed(problem: Problem, slot: int, index: int, rng: random.Random) -> int:
    """Returns another width of the slot's branch, or another branch at the nearest hidden width; each half the time."""
    ops, groups = problem.allowed[slot], problem.branches[slot]
    branch = next(group for group in groups if index in group)
    widths, others = [i for i in branch if i != index], [group for group in groups if group is not branch]
    if widths and (not others or rng.random() < 0.5):
        return rng.choice(widths)
    if not others:
        return index
    group, hidden = rng.choice(others), ops[index].get("hidden")
    if not isinstance(hidden, int) or ops[group[0]].get("hidden") is None:
        return rng.choice(group)
    return min(group, key=lambda i: abs(int(ops[i].get("hidden") or 0) - hidden))
