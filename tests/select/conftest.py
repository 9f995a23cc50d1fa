"""A problem on the tiny space with costs that are no multiples of anything, and all of its networks."""

from __future__ import annotations

import itertools

import pytest
from truths import table

from nas.plan import Layout
from nas.select.problem import Cost, Problem


@pytest.fixture
def problem(tiny: Layout) -> Problem:
    allowed = tuple(slot.ops for slot in tiny.slots)
    costs = (Cost("gpu", "ms", 0.1, table(tiny, 1)), Cost("macs", "MACs", 500.0, table(tiny, 2)))
    return Problem(tiny, allowed, costs)


@pytest.fixture
def picks(problem: Problem) -> list[list[int]]:
    """Every network of the tiny space."""
    return [list(pick) for pick in itertools.product(*(range(len(ops)) for ops in problem.allowed))]
