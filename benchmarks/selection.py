"""Seconds of the selection ILP on spaces of 10^10 to 10^100 architectures, and whether it is right on small ones.

    python benchmarks/selection.py

Every choice has a size; its cost of each kind is the size times a factor of the kind's and the slot's own, give or take
a half, and its score rises with the size and flattens, plus noise: costs agree about as much as milliseconds, MACs and
parameters do. Every answer is proven optimal, or the script fails.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time

import numpy as np

from nas.errors import UserError
from nas.select.ilp import solve
from nas.select.knapsack import Knapsack
from nas.select.problem import Cost, Scores

SPACES = {10: (10, 10), 30: (15, 100), 60: (26, 204), 100: (44, 188)}  # decade -> slots, choices each; 100: see LANA
LANA = (46, 197)  # Molchanov et al., ECCV 2022: 197^46, more than 10^105
ENDS = (0.15, 0.6)  # budgets, as a share of the way from the smallest to the largest cost


def instance(slots: int, choices: int, kinds: int, seed: int) -> tuple[Scores, list[Cost]]:
    rng = np.random.default_rng(seed)
    sizes = [rng.uniform(0.2, 1, choices) for _ in range(slots)]
    scores = tuple(-0.3 * np.exp(-2 * size) + rng.normal(0, 0.03, choices) for size in sizes)
    costs = [Cost(f"cost {kind}", "ms", 0.1, tuple(size * rng.uniform(0.5, 1.5, choices) * rng.uniform(0.1, 1)
                                                   for size in sizes)) for kind in range(kinds)]
    return scores, costs


def limits_at(costs: list[Cost], shares: np.ndarray) -> dict[str, float]:
    return {cost.name: cost.smallest + share * (cost.largest - cost.smallest)
            for cost, share in zip(costs, shares, strict=True)}


def seconds_of(scores: Scores, costs: list[Cost], limits: dict[str, float]) -> float:
    start = time.perf_counter()
    knapsack = Knapsack(scores, costs, limits)
    pick = knapsack.best([], [])
    assert pick is not None and knapsack.gap == 0
    assert all(cost.of(pick) <= limits[cost.name] for cost in costs)
    return time.perf_counter() - start


def against_all(instances: int) -> None:
    """Every network of 10^4 counted out, under one to five limits."""
    equal = 0
    for seed in range(instances):
        kinds = 1 + seed % 5
        scores, costs = instance(4, 10, kinds, seed)
        limits = limits_at(costs, np.random.default_rng(seed).uniform(*ENDS, kinds))
        every = [list(pick) for pick in itertools.product(range(10), repeat=4)]
        within = [pick for pick in every if all(cost.of(pick) <= limits[cost.name] for cost in costs)]

        def total(pick: list[int], scores: Scores = scores) -> float:
            return float(sum(row[i] for row, i in zip(scores, pick, strict=True)))

        if not within:
            try:
                solve(scores, costs, limits)
            except UserError:
                equal += 1
            continue
        equal += math.isclose(total(solve(scores, costs, limits)[0]), max(map(total, within)), abs_tol=1e-9)
    print(f"10^4 architectures, 1 to 5 limits: {equal} of {instances} optima equal those of exhaustive search",
          flush=True)


def timed(name: str, shape: tuple[int, int], kinds: int, n: int) -> None:
    taken = []
    for seed in range(n):
        scores, costs = instance(*shape, kinds, seed)
        rng = np.random.default_rng(1000 + seed)
        shares = rng.uniform(*ENDS) * rng.uniform(0.95, 1.05, kinds)  # all of them bind, more or less
        taken.append(seconds_of(scores, costs, limits_at(costs, shares)))
    print(f"{name}, {shape[0]} slots of {shape[1]}, {kinds} limit{'s' * (kinds > 1)}: median {np.median(taken):.2f} s, "
          f"largest {max(taken):.2f} s, n = {n}", flush=True)


def front(name: str, shape: tuple[int, int], budgets: int, n: int) -> None:
    taken = []
    for seed in range(n):
        scores, costs = instance(*shape, 1, seed)
        taken.append(sum(seconds_of(scores, costs, limits_at(costs, np.array([share])))
                         for share in np.linspace(*ENDS, budgets)))
    print(f"{name}, a front of {budgets} budgets: median {np.median(taken):.2f} s, largest {max(taken):.2f} s, n = {n}",
          flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--instances", type=int, default=10, help="random problems of each kind")
    options = parser.parse_args()
    against_all(50)
    shapes = {**{f"10^{decade}": shape for decade, shape in SPACES.items()}, "LANA's 10^105": LANA}
    for kinds in (1, 5):
        for name, shape in shapes.items():
            timed(name, shape, kinds, options.instances)
    front("LANA's 10^105", LANA, 50, 3)


if __name__ == "__main__":
    main()
