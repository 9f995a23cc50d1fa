from __future__ import annotations

import itertools
import logging
import random
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import optuna
import pytest
from every import every
from truths import Additive, chosen_by, flat, smooth_truth

from nas.arch import Arch, Op
from nas.errors import UserError
from nas.select import SELECTORS, evolution, get
from nas.select.evolution import _evolve, drawable, mutated, narrowed, select_evolution
from nas.select.ilp import solve
from nas.select.objective import OBJECTIVES, reward
from nas.select.problem import Cost, Limits, Problem, Scores, budgets

run = partial(chosen_by, select_evolution)


def test_reaches_the_optimum_of_an_additive_loss(problem: Problem, picks: list[list[int]]) -> None:
    judge = Additive(problem, smooth_truth(problem, 5))
    limits: list[Limits] = [{"gpu": 2.0}]
    chosen = run(problem, judge, limits, 300, seed=0)
    assert len(judge.asked) == 300 < len(picks) / 40
    within = [problem.arch(pick) for pick in picks if problem.fits(pick, limits[0])]
    assert chosen[0][0] == min(within, key=judge.loss).id


def test_is_deterministic_and_judges_only_what_fits_a_budget(problem: Problem) -> None:
    limits: list[Limits] = [{"gpu": budget, "macs": 502.5} for budget in budgets(problem, 4)]
    first, again, other = (Additive(problem, smooth_truth(problem, 5)) for _ in range(3))
    chosen = run(problem, first, limits, 70, seed=1)
    assert chosen == run(problem, again, limits, 70, seed=1)
    assert first.asked == again.asked
    run(problem, other, limits, 70, seed=2)
    assert first.asked != other.asked
    assert len(first.asked) == 70 and set(first.asked) == {id for ids in chosen for id in ids}


def test_ends_where_the_space_does(problem: Problem, picks: list[list[int]]) -> None:
    limits: list[Limits] = [{"gpu": problem.smallest("gpu") * 1.2}]
    judge = Additive(problem, smooth_truth(problem, 5))
    run(problem, judge, limits, 500, seed=0)
    assert 0 < len(judge.asked) <= sum(problem.fits(pick, limits[0]) for pick in picks) < 500


def test_infeasible_budgets_are_refused_first(problem: Problem) -> None:
    judge = Additive(problem, smooth_truth(problem, 5))
    with pytest.raises(UserError, match="smallest reachable"):
        run(problem, judge, [{"gpu": 2.0}, {"gpu": 0.01}], 20, seed=0)
    assert judge.asked == []


def test_the_ilps_answers_are_judged_first(problem: Problem) -> None:
    scores = smooth_truth(problem, 9)
    limits: list[Limits] = [{"gpu": 1.7}, {"gpu": 2.2}]
    asked: list[Arch] = []

    def judge(archs: Sequence[Arch]) -> list[float]:
        asked.extend(archs)
        return [1.0] * len(archs)

    select_evolution(problem, limits, lambda _: scores, judge, 8, random.Random(0))
    seeds = [solve(scores, problem.costs, bound, k=2, at_least={"gpu": 0.9 * bound["gpu"]}) for bound in limits]
    assert [problem.indices(arch) for arch in asked[:4]] == [seeds[0][0], seeds[1][0], seeds[0][1], seeds[1][1]]


def test_the_space_shrinks_to_the_branches_that_are_frequent_among_the_best(problem: Problem) -> None:
    first, second, last = problem.branches[0][0], problem.branches[0][1], problem.branches[0][-1]
    count = len(problem.branches[0])

    def pick(group: Sequence[int]) -> list[int]:
        return [group[0], *(groups[0][0] for groups in problem.branches[1:])]

    # the best ten of 40: once the first branch, nine times the second; the last only behind them
    own = [pick(first), *[pick(second)] * 9, *[pick(last)] * 30]
    assert 2 < count < 10  # so that one of ten is rarer than chance
    small = narrowed(problem, [own])
    assert small.drawn is not None and small.allowed == problem.allowed
    assert small.drawn[0] == set(second)
    assert [set(groups[0]) for groups in problem.branches[1:]] == [set(part) for part in small.drawn[1:]]
    assert drawable(small, pick(second)) and not drawable(small, pick(first))
    assert narrowed(problem, [own, own[30:]]).drawn[0] == {*second, *last}
    # of a second narrowing only those count that are made of what is left: no slot is ever without a branch
    assert narrowed(small, [[pick(first)] * 9 + [pick(second)]]).drawn == small.drawn
    assert narrowed(problem, [[], own]).drawn == tuple(frozenset(range(len(ops))) for ops in problem.allowed)


@pytest.mark.parametrize("evaluations,shrink", [(36, 10), (90, 2), (300, 2)])
@pytest.mark.parametrize("objective,several", [("loss", False), ("loss", True), ("mnas-soft", True)])
def test_shrinking_judges_as_many_and_later_ones_within_the_smaller_space(
        problem: Problem, objective: str, several: bool, evaluations: int, shrink: int,
        monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[Limits] = [{"gpu": budget} for budget in budgets(problem, 4)[1 if several else 2:3]]
    truth, asked, stages = Additive(problem, smooth_truth(problem, 5)), list[Arch](), list[tuple[int, Problem]]()
    evolved: list[Problem] = []

    def judge(archs: Sequence[Arch]) -> list[float]:
        asked.extend(archs)
        return [10 + loss for loss in truth(archs)]  # MnasNet's reward is of positive losses

    def shrunk(space: Problem, lists: Sequence[Sequence[Sequence[int]]]) -> Problem:
        stages.append((len(asked), narrowed(space, lists)))
        return stages[-1][1]

    def evolve(space: Problem, *rest: Any) -> None:
        evolved.append(space)
        begun = len(asked)
        _evolve(space, *rest)
        assert all(drawable(space, problem.indices(arch)) for arch in asked[begun:])

    monkeypatch.setattr(evolution, "narrowed", shrunk)
    monkeypatch.setattr(evolution, "_evolve", evolve)
    chosen = select_evolution(problem, limits, lambda _: flat(problem), judge, evaluations, random.Random(0),
                              OBJECTIVES[objective], shrink=shrink)
    within = {arch.id for archs in chosen for arch in archs}
    assert len(asked) == evaluations and {arch.id for arch in asked} == within
    assert len({at for at, _ in stages}) == len(stages) <= shrink  # never twice on the same networks
    assert stages[0][0] >= evaluations // (shrink + 1)
    spaces = [problem, *(space for _, space in stages)]
    for before, after in itertools.pairwise(spaces):
        assert all(one <= other and one for one, other in zip(after.drawn or (), before.drawn or after.drawn or (),
                                                              strict=True))
    assert sum(map(len, spaces[-1].drawn or ())) < sum(map(len, problem.allowed))
    assert evolved[0] is problem and spaces[1] in evolved and evolved[-1] is problem


def test_mutation_changes_a_width_or_the_operator_at_the_nearest_width(problem: Problem) -> None:
    pick, rng = [3] * len(problem.allowed), random.Random(0)
    kinds: Counter[str] = Counter()
    for _ in range(600):
        child = mutated(problem, pick, rng)
        for ops, groups, before, after in zip(problem.allowed, problem.branches, pick, child, strict=True):
            old, new = ops[before], ops[after]
            if old.without("hidden") == new.without("hidden"):
                kinds["width" if old != new else "same"] += 1
                continue
            kinds["operator"] += 1
            group = next(group for group in groups if after in group)
            if isinstance(old.get("hidden"), int) and isinstance(new.get("hidden"), int):
                gaps = [abs(int(ops[i].get("hidden") or 0) - int(old.get("hidden") or 0)) for i in group]
                assert gaps[group.index(after)] == min(gaps)
    # one slot in four is changed, half the time each way
    assert kinds["width"] + kinds["operator"] == pytest.approx(600, rel=0.15) and sum(kinds.values()) == 2400
    assert 0.7 < kinds["width"] / kinds["operator"] < 1.4


def test_a_slot_without_a_choice_stays_as_it_is(problem: Problem) -> None:
    costs = (Cost("gpu", "ms", 0.1, tuple(np.ones(1) for _ in problem.allowed)),)
    one = Problem(problem.layout, tuple((Op.of("skip"),) for _ in problem.allowed), costs)
    assert {tuple(mutated(one, [0] * 4, random.Random(i))) for i in range(20)} == {(0,) * 4}


@pytest.mark.filterwarnings("error")
def test_nothing_is_printed_logged_or_warned(problem: Problem, capfd: pytest.CaptureFixture[str]) -> None:
    optuna.logging.set_verbosity(logging.INFO)
    run(problem, Additive(problem, smooth_truth(problem, 5)), [{"gpu": 2.0}], 30, seed=0)
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == logging.INFO


def test_selectors_by_name() -> None:
    assert {name: get(name) for name in SELECTORS} == SELECTORS
    with pytest.raises(UserError, match="selector=evolutoin: no such selector; did you mean 'evolution'"):
        get("evolutoin")
    with pytest.raises(UserError, match="objective=mnas-soft: not of selector=ilp; evolution and bayes have loss, m"):
        get("ilp", "mnas-soft")
    with pytest.raises(UserError, match="shrink=2: not of selector=bayes, but of evolution"):
        get("bayes", shrink=2)


def positive(problem: Problem) -> Scores:
    return tuple(row + 1 for row in smooth_truth(problem, 5))


@pytest.mark.parametrize(("loss", "used", "soft", "hard"), [
    (2.0, 1.0, 2.0, 2.0), (2.0, 0.5, 2 * 0.5**0.07, 2.0), (2.0, 1.5, 2 * 1.5**0.07, 3.0)])
def test_mnasnets_reward_by_hand(loss: float, used: float, soft: float, hard: float) -> None:
    found = [reward(loss, used, OBJECTIVES[name]) for name in ("loss", "mnas-soft", "mnas-hard")]
    assert found == pytest.approx([loss, soft, hard])
    assert abs(1.05 * 2**-0.07 - 1) < 1e-3  # the paper's choice: 5 % for twice the milliseconds


@pytest.mark.parametrize(("selector", "evaluations"), [("evolution", 40), ("bayes", 12)])
def test_a_soft_reward_ranks_by_loss_and_milliseconds_within_the_budget(problem: Problem, selector: str,
                                                                        evaluations: int) -> None:
    judge, limits = Additive(problem, positive(problem)), [{"gpu": 1.8}, {"gpu": 2.4}]
    ask = get(selector, "mnas-soft")
    ranked = ask(problem, limits, lambda _: flat(problem), judge, evaluations, random.Random(0))
    assert len(judge.asked) == evaluations
    for bound, archs in zip(limits, ranked, strict=True):
        assert every(problem.fits(problem.indices(arch), bound) for arch in archs)
        rewards = [judge.loss(arch) * (problem.cost(arch, "gpu") / bound["gpu"])**0.07 for arch in archs]
        assert rewards == sorted(rewards) and len(rewards) > 4


def test_evolution_on_the_reward_finds_its_optimum(problem: Problem, picks: list[list[int]]) -> None:
    judge, limits = Additive(problem, positive(problem)), {"gpu": 2.4}
    [ranked] = get("evolution", "mnas-soft")(problem, [limits], lambda _: flat(problem), judge, 300, random.Random(0))

    def value(arch: Arch) -> float:
        return judge.loss(arch) * (problem.cost(arch, "gpu") / 2.4)**0.07

    within = [problem.arch(pick) for pick in picks if problem.fits(pick, limits)]
    assert ranked[0].id == min(within, key=value).id != min(within, key=judge.loss).id
