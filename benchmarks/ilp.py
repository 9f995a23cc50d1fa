"""Seconds to solve the selection ILP to proven optimality over a whole space, a budget at a time.

    python benchmarks/ilp.py --space ghost --size 32 --target gpu-v100

Scores are random (normal, one a choice): the solver knows nothing that would make it easy.
"""

import argparse
import math
import time

import numpy as np

from nas import sampling
from nas.decision import prices
from nas.latency.costs import load
from nas.plan import Task, layout
from nas.select.ilp import solve
from nas.select.problem import Cost, Problem, budgets
from nas.space import Space


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="ghost")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--target", default="gpu-v100")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    plan = layout(Space.load(options.space), Task(options.size, 3, 10))
    priced = prices(plan, load(options.target).ms_many)
    rows = tuple(np.array([priced.ms[slot.index][op] for op in slot.ops]) for slot in plan.slots)
    problem = Problem(plan, tuple(slot.ops for slot in plan.slots), (Cost(options.target, "ms", priced.fixed, rows),))
    choices = sum(len(ops) for ops in problem.allowed)
    print(f"{options.space} at {options.size}: 10^{math.log10(sampling.count(plan)):.1f} architectures, "
          f"{choices} choices in {len(plan.slots)} slots; {options.target}: {problem.costs[0].smallest:.4f} .. "
          f"{problem.costs[0].largest:.4f} ms")
    for budget in budgets(problem, 6):
        seconds = []
        for seed in range(options.seeds):
            rng = np.random.default_rng(seed)
            scores = tuple(rng.normal(size=len(ops)) for ops in problem.allowed)
            start = time.perf_counter()
            (pick,) = solve(scores, problem.costs, {options.target: budget})
            seconds.append(time.perf_counter() - start)
            assert problem.costs[0].of(pick) <= budget
        print(f"budget {budget:.4f} ms: median {np.median(seconds):.3f} s, largest {max(seconds):.3f} s of "
              f"{options.seeds} random scores")


if __name__ == "__main__":
    main()
