"""Other people's searches on a space, behind one interface: an ``Oracle`` is asked until it is spent.

They get what they need to be themselves: loss and ms as two objectives (NSGA-II, TPE), or loss within a budget (OFA).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from stored import Array, Pick

from nas.select.problem import Problem, random_within
from nas.select.studies import quiet, unwarned

POPULATIONS = (10, 20, 50)  # of NSGA-II; the published 100 and 50 are more than the fewest evaluations
DRAWS = 100  # of OFA's evolution for a network within a budget
TRIALS = 20  # at most so many trials an evaluation: known networks cost nothing, and a search may have converged
TPE_TRIALS = 3  # of TPE, which takes longer for each the more there were


class SpentError(Exception):
    """No evaluation is left."""


class Oracle:
    """Losses of networks of a space; each different one costs an evaluation.

    With ``near`` all searches begin with random networks just within the budgets, as ours does, where uniform ones
    would hardly be within the smaller of them; else each draws its own.
    """

    def __init__(self, problem: Problem, losses: Mapping[Pick, float], evaluations: int, near: bool = False) -> None:
        self.problem, self.evaluations = problem, evaluations
        self.free = [slot for slot, ops in enumerate(problem.allowed) if len(ops) > 1]
        self.asked: dict[Pick, float] = {}
        self._losses, self.near = losses, near

    def loss(self, free: Sequence[int]) -> float:
        """Of a network given by its choices in the free slots. Raises SpentError where it would cost too much."""
        pick = self.whole(free)
        if pick not in self.asked:
            if len(self.asked) >= self.evaluations:
                raise SpentError
            self.asked[pick] = self._losses[pick]
        return self.asked[pick]

    def ms(self, free: Sequence[int]) -> float:
        return self.problem.costs[0].of(self.whole(free))

    def whole(self, free: Sequence[int]) -> Pick:
        pick = [0] * len(self.problem.allowed)
        for slot, choice in zip(self.free, free, strict=True):
            pick[slot] = int(choice)
        return tuple(pick)

    def start(self, count: int, budgets: Sequence[float], seed: int) -> list[list[int]]:
        """Choices in the free slots of ``count`` networks, the budgets in turn; none without ``near``."""
        rng, name = random.Random(seed), self.problem.costs[0].name
        drawn = [random_within(self.problem, {name: budgets[i % len(budgets)]}, rng)
                 for i in range(count if self.near else 0)]
        return [[pick[slot] for slot in self.free] for pick in drawn if pick is not None]

    def sizes(self) -> list[int]:
        return [len(self.problem.allowed[slot]) for slot in self.free]


def pymoo_nsga2(population: int) -> Callable[[Oracle, Sequence[float], int], None]:
    """pymoo's NSGA-II (Blank and Deb, IEEE Access 2020) as its documentation sets it up for integers.

    Choices are ordered by ms. Raises ImportError where pymoo is not installed.
    """
    def search(oracle: Oracle, budgets: Sequence[float], seed: int) -> None:
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.core.evaluator import Evaluator
        from pymoo.core.problem import Problem as Plane
        from pymoo.core.termination import NoTermination
        from pymoo.operators.crossover.sbx import SBX
        from pymoo.operators.mutation.pm import PM
        from pymoo.operators.repair.rounding import RoundingRepair
        from pymoo.operators.sampling.rnd import IntegerRandomSampling
        from pymoo.problems.static import StaticProblem

        # places in the order of ms -> choices, and back
        order = [np.argsort(oracle.problem.costs[0].per_op[slot], kind="stable") for slot in oracle.free]
        begin = np.array([[int(np.flatnonzero(row == choice)[0]) for row, choice in zip(order, free, strict=True)]
                          for free in oracle.start(population, budgets, seed)])
        plane = Plane(n_var=len(oracle.free), n_obj=2, xl=0, xu=np.array(oracle.sizes()) - 1, vtype=int)
        algorithm = NSGA2(population, sampling=begin if len(begin) else IntegerRandomSampling(),
                          eliminate_duplicates=True,
                          crossover=SBX(prob=1.0, eta=3.0, vtype=float, repair=RoundingRepair()),
                          mutation=PM(prob=1.0, eta=3.0, vtype=float, repair=RoundingRepair()))
        algorithm.setup(plane, termination=NoTermination(), seed=seed, verbose=False)
        for _ in range(TRIALS * oracle.evaluations // population):
            asked = algorithm.ask()
            if asked is None or not len(asked):
                return
            many = [[int(row[place]) for row, place in zip(order, x.astype(int), strict=True)] for x in asked.get("X")]
            found = np.array([[oracle.loss(free), oracle.ms(free)] for free in many])
            Evaluator().eval(StaticProblem(plane, F=found), asked)
            algorithm.tell(infills=asked)

    return search


def optuna_nsga2(population: int) -> Callable[[Oracle, Sequence[float], int], None]:
    return _study(population, lambda seed: optuna.samplers.NSGAIISampler(population_size=population, seed=seed))


def optuna_tpe() -> Callable[[Oracle, Sequence[float], int], None]:
    """With its own 10 random trials; a known network is a trial, too, and ``TPE_TRIALS`` an evaluation are the most."""
    return _study(10, lambda seed: optuna.samplers.TPESampler(n_startup_trials=10, seed=seed), TPE_TRIALS)


def _study(first: int, sampler: Callable[[int], Any],
           trials: int = TRIALS) -> Callable[[Oracle, Sequence[float], int], None]:
    """``first`` trials are those of the start, ``trials`` an evaluation the most."""
    def search(oracle: Oracle, budgets: Sequence[float], seed: int) -> None:
        with quiet(), unwarned():
            study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler(seed))
            for begin in oracle.start(first, budgets, seed):
                study.enqueue_trial({f"s{slot}": choice for slot, choice in enumerate(begin)})
            for _ in range(trials * oracle.evaluations):
                trial = study.ask()
                free = [trial.suggest_categorical(f"s{slot}", range(size)) for slot, size in enumerate(oracle.sizes())]
                study.tell(trial, [oracle.loss(free), oracle.ms(free)])

    return search


def ofa_evolution(settings: dict[str, Any]) -> Callable[[Oracle, Sequence[float], int], None]:
    """Evolution of Once-for-All (Cai et al., ICLR 2020) from the authors' package: a search for each budget in turn.

    Each has an equal share of the evaluations. Raises ImportError where the package is not installed.
    """
    def search(oracle: Oracle, budgets: Sequence[float], seed: int) -> None:
        from ofa.nas.search_algorithm import EvolutionFinder

        random.seed(seed)  # the package draws from the global ones
        np.random.seed(seed)
        total = oracle.evaluations
        for number, budget in enumerate(budgets, 1):
            oracle.evaluations = number * total // len(budgets)
            try:
                accuracy = _Accuracy(oracle, budget)
                EvolutionFinder(_Efficiency(oracle), accuracy, **settings).run_evolution_search(budget)
            except SpentError:
                continue

    return search


class _Efficiency:
    """What ``EvolutionFinder`` asks for milliseconds."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle

    def get_efficiency(self, arch: dict[str, list[int]]) -> float:
        return self.oracle.ms(arch["op"])


class _Accuracy:
    """What ``EvolutionFinder`` asks for accuracies: negative losses; and its ``arch_encoder``.

    It draws until a network is within the budget. In a large space that may be never: after ``DRAWS`` it is given one.
    """

    def __init__(self, oracle: Oracle, budget: float) -> None:
        self.oracle, self.budget, self.arch_encoder = oracle, budget, self

    def predict_acc(self, archs: Sequence[dict[str, list[int]]]) -> Array:
        return np.array([-self.oracle.loss(arch["op"]) for arch in archs])

    def random_sample_arch(self) -> dict[str, list[int]]:
        for _ in range(DRAWS):
            free = [random.randrange(size) for size in self.oracle.sizes()]
            if self.oracle.ms(free) <= self.budget:
                return {"op": free}
        found = random_within(self.oracle.problem, {self.oracle.problem.costs[0].name: self.budget}, random.Random(
            random.random()))
        return {"op": free if found is None else [found[slot] for slot in self.oracle.free]}

    def mutate_resolution(self, arch: dict[str, list[int]], probability: float) -> None:
        """There is one resolution."""

    def mutate_arch(self, arch: dict[str, list[int]], probability: float) -> None:
        for slot, size in enumerate(self.oracle.sizes()):
            if random.random() < probability:
                arch["op"][slot] = random.randrange(size)
