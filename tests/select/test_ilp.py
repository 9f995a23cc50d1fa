from __future__ import annotations

import ctypes
import itertools
import math
import os
import random
import re

import numpy as np
import pytest
from every import every
from hypothesis import given, settings
from hypothesis import strategies as st
from truths import Additive, flat, smooth_truth, table

from nas.errors import UserError
from nas.plan import Layout, Slot
from nas.select.ilp import select_ilp, solve
from nas.select.knapsack import _silent
from nas.select.problem import Cost, Problem, Scores, budgets


def total(scores: Scores, pick: list[int]) -> float:
    return float(sum(row[i] for row, i in zip(scores, pick, strict=True)))


@pytest.mark.parametrize("seed", range(3))
def test_equals_brute_force_on_tiny(problem: Problem, tiny: Layout, picks: list[list[int]], seed: int) -> None:
    scores = table(tiny, 100 + seed)
    by_ms = {tuple(pick): problem.costs[0].of(pick) for pick in picks}
    by_macs = {tuple(pick): problem.costs[1].of(pick) for pick in picks}
    for budget in budgets(problem, 5):
        for macs in (501.5, 502.5, math.inf):
            within = [p for p in picks if by_ms[tuple(p)] <= budget and by_macs[tuple(p)] <= macs]
            if not within:
                with pytest.raises(UserError):
                    solve(scores, problem.costs, {"gpu": budget, "macs": macs})
                continue
            best = max(within, key=lambda p: total(scores, p))
            assert solve(scores, problem.costs, {"gpu": budget, "macs": macs}) == [best]


NUMBERS = st.one_of(st.integers(0, 6).map(lambda i: i * 0.1), st.floats(0, 1e3), st.floats(0, 1e-3))


@st.composite
def knapsacks(draw: st.DrawFn) -> tuple[Scores, list[Cost], dict[str, float]]:
    """Two to four slots of one to five ops, ties and rounding included; limits on the cost of some network exactly."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=2, max_size=4))

    def rows(numbers: st.SearchStrategy[float]) -> Scores:
        return tuple(np.array(draw(st.lists(numbers, min_size=n, max_size=n))) for n in sizes)

    scores = rows(st.one_of(st.integers(-3, 3).map(float), st.floats(-50, 50)))
    costs = [Cost(f"c{i}", "ms", draw(NUMBERS), rows(NUMBERS)) for i in range(draw(st.integers(1, 2)))]
    some = [draw(st.integers(0, n - 1)) for n in sizes]
    return scores, costs, {cost.name: cost.of(some) for cost in costs}


@settings(max_examples=150, deadline=None)
@given(knapsacks())
def test_equals_brute_force_on_drawn_numbers(case: tuple[Scores, list[Cost], dict[str, float]]) -> None:
    scores, costs, limits = case
    [pick] = solve(scores, costs, limits)
    ways = itertools.product(*(range(len(row)) for row in scores))
    within = [list(p) for p in ways if all(cost.of(p) <= limits[cost.name] for cost in costs)]
    assert pick in within
    best = max(total(scores, p) for p in within)
    spread = sum(float(np.ptp(row)) for row in scores)
    assert total(scores, pick) >= best - 1e-6 * spread


@settings(max_examples=60, deadline=None)
@given(knapsacks(), st.integers(1, 4))
def test_diverse_answers_equal_brute_force(case: tuple[Scores, list[Cost], dict[str, float]], k: int) -> None:
    scores, costs, limits = case
    answers = solve(scores, costs, limits, k=k, overlap=0.5)
    free = [slot for slot, row in enumerate(scores) if len(row) > 1]
    left = [list(p) for p in itertools.product(*(range(len(row)) for row in scores))
            if all(cost.of(p) <= limits[cost.name] for cost in costs)]
    spread = sum(float(np.ptp(row)) for row in scores)
    for answer in answers:
        assert answer in left
        assert total(scores, answer) >= max(total(scores, p) for p in left) - 1e-6 * spread
        left = [p for p in left if p != answer and sum(p[slot] == answer[slot] for slot in free) <= len(free) / 2]
    assert len(answers) == k or not left


def test_diverse_answers_are_apart_and_in_order(problem: Problem, tiny: Layout) -> None:
    scores = table(tiny, 7)
    answers = solve(scores, problem.costs, {"gpu": 2.0}, k=6, overlap=0.5)
    assert len(answers) == 6
    values = [total(scores, pick) for pick in answers]
    assert values == sorted(values, reverse=True)
    for a, b in itertools.combinations(answers, 2):
        assert sum(x == y for x, y in zip(a, b, strict=True)) <= 2


def test_answers_share_seven_tenths_of_their_slots_at_most_unless_told_otherwise() -> None:
    """10 slots of two choices each: the best but one differs from the best in 3 slots, not in 1."""
    scores = tuple(np.array([1.0 + i / 100, 0.0]) for i in range(10))
    costs = [Cost("ms", "ms", 1.0, tuple(np.ones(2) for _ in range(10)))]
    best, second, *_ = solve(scores, costs, {"ms": 100.0}, k=2)
    assert best == [0] * 10 and second == [1, 1, 1, *[0] * 7]


def test_slots_without_a_choice_do_not_count_as_overlap() -> None:
    """Four slots of two choices: half of them may be equal, whatever stands in the six that are decided."""
    scores = (*(np.array([0.0, -weight]) for weight in (1.0, 2.0, 4.0, 8.0)), *[np.zeros(1)] * 6)
    cost = Cost("ms", "ms", 0.0, tuple(np.ones(len(row)) for row in scores))
    answers = solve(scores, [cost], {"ms": 10.0}, k=3, overlap=0.5)
    assert [pick[:4] for pick in answers] == [[0, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0]]


def test_a_budget_on_a_networks_exact_cost_is_met(problem: Problem, picks: list[list[int]]) -> None:
    for pick in random.Random(3).sample(picks, 20):
        scores = tuple(np.eye(len(row))[i] for row, i in zip(problem.costs[0].per_op, pick, strict=True))
        limits = {cost.name: cost.of(pick) for cost in problem.costs}
        assert solve(scores, problem.costs, limits) == [pick]
        below = {"gpu": math.nextafter(limits["gpu"], 0)}
        answer = solve(scores, problem.costs, below)[0]
        assert answer != pick and problem.costs[0].of(answer) <= below["gpu"]


def test_many_networks_just_over_the_limit(tiny: Layout) -> None:
    """Sums that exceed the limit in the last place only, and score better: none of those may come out."""
    widths = tuple(np.array([0.1, *(0.1 + i * 1.4e-17 for i in range(1, len(slot.ops)))]) for slot in tiny.slots)
    cost = Cost("gpu", "ms", 0.0, widths)
    scores = tuple(np.arange(len(row), dtype=float) for row in widths)
    for answer in solve(scores, [cost], {"gpu": cost.smallest}, k=3):
        assert cost.of(answer) <= cost.smallest


def test_infeasible_budget_names_the_smallest(problem: Problem, tiny: Layout) -> None:
    scores = table(tiny, 7)
    with pytest.raises(UserError) as caught:
        solve(scores, problem.costs, {"gpu": 0.1})
    message = str(caught.value)
    assert message.startswith("budget_ms=0.1 is below the smallest reachable ") and "ms on gpu:" in message
    assert "\n" not in message
    shown = float(re.findall(r"reachable ([0-9.]+)", message)[0])
    assert problem.smallest("gpu") <= shown <= problem.smallest("gpu") * 1.001
    assert solve(scores, problem.costs, {"gpu": shown})
    with pytest.raises(UserError, match=r"^max_macs=3 is below the smallest reachable 500.6 MACs"):
        solve(scores, problem.costs, {"gpu": 3.0, "macs": 3.0})
    with pytest.raises(UserError, match="nan"):
        solve(scores, problem.costs, {"gpu": math.nan})
    with pytest.raises(UserError, match="did you mean 'gpu'"):
        solve(scores, problem.costs, {"gpv": 1.0})


def test_limits_that_exclude_each_other(problem: Problem, tiny: Layout, picks: list[list[int]]) -> None:
    macs = problem.smallest("macs")
    only = [pick for pick in picks if problem.costs[1].of(pick) <= macs]
    least = min(problem.costs[0].of(pick) for pick in only)
    with pytest.raises(UserError, match=r"^budget_ms=.* with max_macs <= ") as caught:
        solve(table(tiny, 7), problem.costs, {"gpu": least * 0.9, "macs": macs})
    assert float(re.findall(r"reachable ([0-9.]+)", str(caught.value))[0]) == pytest.approx(least, rel=1e-3)


def test_lower_end_is_used_where_feasible_and_dropped_where_not(problem: Problem, tiny: Layout,
                                                                picks: list[list[int]]) -> None:
    cheap = tuple(-row for row in problem.costs[0].per_op)
    [answer] = solve(cheap, problem.costs, {"gpu": 2.0}, at_least={"gpu": 1.8})
    ms = [problem.costs[0].of(pick) for pick in picks]
    assert problem.costs[0].of(answer) == min(value for value in ms if value >= 1.8)
    narrow = solve(table(tiny, 7), problem.costs, {"gpu": 1.71}, at_least={"gpu": 1.7}, k=3)
    assert every(1.7 <= problem.costs[0].of(pick) <= 1.71 for pick in narrow)
    within = [pick for pick in picks if 1.7 <= problem.costs[0].of(pick) <= 1.71]
    assert narrow[0] == max(within, key=lambda pick: total(table(tiny, 7), pick))
    [dropped] = solve(cheap, problem.costs, {"gpu": 2.0}, at_least={"gpu": 1e6})
    assert problem.costs[0].of(dropped) == problem.smallest("gpu")


def test_avoided_networks_do_not_come_back(problem: Problem, tiny: Layout) -> None:
    scores = table(tiny, 7)
    known: list[list[int]] = []
    for _ in range(5):
        [answer] = solve(scores, problem.costs, {"gpu": 2.0}, avoid=known)
        assert answer not in known
        known.append(answer)
    values = [total(scores, pick) for pick in known]
    assert values == sorted(values, reverse=True)
    smallest = {"gpu": problem.smallest("gpu")}
    only = solve(scores, problem.costs, smallest, k=5)
    assert len(only) == 1 and solve(scores, problem.costs, smallest, avoid=only) == []


def test_nothing_is_printed(problem: Problem, tiny: Layout, capfd: pytest.CaptureFixture[str]) -> None:
    solve(table(tiny, 7), problem.costs, {"gpu": 2.0, "macs": 502.5}, k=4, at_least={"gpu": 1.8})
    assert capfd.readouterr() == ("", "")


def test_what_the_solver_prints_from_c_goes_nowhere(capfd: pytest.CaptureFixture[str]) -> None:
    libc = ctypes.CDLL(None)
    libc.printf(b"before\n")
    with _silent():
        libc.printf(b"HighsMipSolverData::transformNewIntegerFeasibleSolution tmpSolver.run();\n")
        os.write(1, b"and unbuffered\n")
    libc.printf(b"after\n")
    libc.fflush(None)
    assert capfd.readouterr() == ("before\nafter\n", "")


def test_selection_finds_the_optimum_of_an_additive_loss(problem: Problem, picks: list[list[int]]) -> None:
    judge = Additive(problem, smooth_truth(problem, 5))
    limits = [{"gpu": budget} for budget in budgets(problem, 3)]
    chosen = select_ilp(problem, limits, lambda _: flat(problem), judge, 60, random.Random(0))
    assert len(judge.asked) == 60
    for bound, archs in zip(limits, chosen, strict=True):
        losses = [judge.loss(arch) for arch in archs]
        assert losses == sorted(losses)
        assert every(problem.cost(arch, "gpu") <= bound["gpu"] for arch in archs)
        best = min(total(judge.truth, pick) for pick in picks if problem.fits(pick, bound))
        assert losses[0] <= best + 0.02
    assert {arch.id for arch in chosen[0]} <= {arch.id for arch in chosen[1]} <= {arch.id for arch in chosen[2]}


def test_selection_is_deterministic_and_every_budget_gets_its_share(problem: Problem) -> None:
    def run(seed: int, evaluations: int) -> list[list[str]]:
        limits = [{"gpu": budget} for budget in budgets(problem)]
        judge = Additive(problem, smooth_truth(problem, 5))
        chosen = select_ilp(problem, limits, lambda _: flat(problem), judge, evaluations, random.Random(seed))
        return [[arch.id for arch in archs] for archs in chosen]

    assert run(1, 30) == run(1, 30) != run(2, 30)
    assert every(run(1, 6))
    assert every(run(1, 1))


def test_selection_ends_where_the_space_does(problem: Problem) -> None:
    judge = Additive(problem, smooth_truth(problem, 5))
    smallest = sorted({float(v) for v in problem.costs[0].per_op[0]})[1] - float(problem.costs[0].per_op[0].min())
    limits = [{"gpu": problem.smallest("gpu") + smallest}]
    [archs] = select_ilp(problem, limits, lambda _: flat(problem), judge, 500, random.Random(0))
    within = [pick for pick in _all(problem) if problem.fits(pick, limits[0])]
    assert len(archs) == len(within) < 500


def test_a_judge_that_knows_nothing_still_gives_networks(problem: Problem) -> None:
    chosen = select_ilp(problem, [{"gpu": 2.0}], lambda _: flat(problem), lambda archs: [math.nan] * len(archs), 12,
                        random.Random(0))
    assert len(chosen[0]) == 12


def test_an_infeasible_budget_is_refused_before_anything_is_judged(problem: Problem) -> None:
    judge = Additive(problem, smooth_truth(problem, 5))
    with pytest.raises(UserError, match="smallest reachable"):
        select_ilp(problem, [{"gpu": 2.0}, {"gpu": 0.01}], lambda _: flat(problem), judge, 30, random.Random(0))
    assert judge.asked == []


def _all(problem: Problem) -> list[list[int]]:
    return [list(pick) for pick in itertools.product(*(range(len(ops)) for ops in problem.allowed))]


def test_slots_are_those_of_the_layout(problem: Problem) -> None:
    slots: tuple[Slot, ...] = problem.layout.slots
    assert [len(slot.ops) for slot in slots] == [len(ops) for ops in problem.allowed]
