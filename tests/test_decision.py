"""Decisions: one-hot and arch are inverse, and the expected latency of one network is the sum over its plan."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable

import pytest
import torch
from every import every

from nas import sampling
from nas.arch import SKIP, Op
from nas.decision import (
    Choice,
    Decision,
    Prices,
    affordable,
    arch_of,
    choice_of,
    efficient,
    expected_ms,
    grown,
    largest,
    one_hot,
    op_of,
    prices,
)
from nas.plan import Layout, OpKey, Slot, macs, plan, restrict


def ms(keys: list[OpKey]) -> list[float]:
    """A cost of its own for every key."""
    return [1 + zlib.crc32(str(key).encode()) / 2**32 for key in keys]


def test_an_operator_and_its_choice_are_inverse() -> None:
    op = Op.of("ghost", cheap=3, hidden=16)
    assert choice_of(op) == Choice(Op.of("ghost", cheap=3), 16) and op_of(choice_of(op)) == op
    assert choice_of(SKIP) == Choice(SKIP, None) and op_of(choice_of(SKIP)) == SKIP


def test_the_heaviest_choices_make_the_network(tiny: Layout) -> None:
    arch = sampling.sample(tiny, random.Random(0))
    assert arch_of(tiny, one_hot(arch)) == arch
    soft = Decision(tuple((Choice(SKIP, None, torch.tensor(0.4)), Choice(op.without("hidden"), 8, 0.6))
                          for op in (slot.ops[0] for slot in tiny.slots)))
    assert [op.get("hidden") for op in arch_of(tiny, soft).ops] == [8] * 4


def test_the_expected_ms_of_one_network_is_the_sum_over_its_plan(tiny: Layout) -> None:
    known = prices(tiny, ms)
    for seed in range(50):
        arch = sampling.sample(tiny, random.Random(seed))
        assert expected_ms(tiny, one_hot(arch), known) == pytest.approx(sum(ms(plan(tiny, arch))), rel=1e-12)


def test_every_operator_is_asked_for_once_and_skip_never(tiny: Layout) -> None:
    asked: list[OpKey] = []
    known = prices(tiny, lambda keys: asked.extend(keys) or ms(keys))
    assert len(asked) == len(set(asked)) and every(key.op != SKIP for key in asked)
    assert known.fixed == pytest.approx(sum(ms(list(tiny.fixed))))
    assert [known.ms[slot.index].get(SKIP) for slot in tiny.slots] == [0.0, 0.0, None, 0.0]


def test_the_gradient_of_the_expected_ms_is_the_prices(tiny: Layout) -> None:
    known = prices(tiny, ms)
    ops = [(slot.ops[0], slot.ops[-1]) for slot in tiny.slots]
    weights = torch.full((4, 2), 0.5, dtype=torch.float64, requires_grad=True)
    decision = Decision(tuple(tuple(Choice(choice_of(op).branch, choice_of(op).hidden, weights[i, j])
                                    for j, op in enumerate(pair)) for i, pair in enumerate(ops)))
    total = expected_ms(tiny, decision, known)
    assert isinstance(total, torch.Tensor)
    total.backward()
    each = [[known.ms[i][op] for op in pair] for i, pair in enumerate(ops)]
    assert weights.grad is not None and torch.allclose(weights.grad, torch.tensor(each, dtype=torch.float64))
    assert total.item() == pytest.approx(known.fixed + sum(map(sum, each)) / 2)


def by_width(ms: dict[int, float]) -> Callable[[Layout], Prices]:
    """What an operator costs by its hidden width alone; skip nothing."""
    def of(layout: Layout) -> Prices:
        return Prices(0.0, tuple({op: ms.get(int(op.get("hidden") or 0), 0.0) for op in s.ops} for s in layout.slots))
    return of


def left(tiny: Layout, *every: dict[int, float]) -> list[int]:
    """Widths that are left in the first slot (8, 16 and 24), which must be the same in each of its branches."""
    def of(slot: Slot, ops: list[Op]) -> set[tuple[object, ...]]:
        return {tuple(op.get("hidden") for op in ops if op.without("hidden") == b.op) for b in slot.branches
                if b.op != SKIP}

    kept = efficient(tiny, [by_width(ms)(tiny) for ms in every])
    (found,) = of(tiny.slots[0], kept[0])
    assert SKIP in kept[0]
    return [width for width in found if isinstance(width, int)]


def test_a_width_goes_where_a_wider_one_costs_no_more(tiny: Layout) -> None:
    assert left(tiny, {8: 1, 16: 2, 24: 3}) == [8, 16, 24]
    assert left(tiny, {8: 2, 16: 2, 24: 3}) == [16, 24]  # equal: the wider one
    assert left(tiny, {8: 1, 16: 4, 24: 3}) == [8, 24]
    assert left(tiny, {8: 5, 16: 4, 24: 3}) == [24]  # the widest always stays


def test_a_width_stays_where_one_target_or_size_has_a_reason_for_it(tiny: Layout) -> None:
    assert left(tiny, {8: 1, 16: 4, 24: 3}, {8: 2, 16: 2, 24: 3}) == [8, 16, 24]
    assert left(tiny, {8: 1, 16: 4, 24: 3}, {8: 1, 16: 3, 24: 3}) == [8, 24]
    assert left(tiny, {8: 4, 16: 3, 24: 5}, {8: 4, 16: 5, 24: 4}) == [8, 16, 24]  # each wider one is dearer on one


def by_macs(keys: list[OpKey]) -> list[float]:
    return [float(macs(key)) for key in keys]


def test_a_network_grows_to_the_largest(tiny: Layout) -> None:
    """Every step has at least the widths of the one before; what may be skipped comes in later."""
    known = prices(tiny, by_macs)
    steps = grown(tiny, known, 4)
    assert steps[-1] == largest(tiny, known)
    sizes = [sum(by_macs(plan(tiny, arch))) for arch in steps]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    for slot in tiny.slots:
        ops = [arch.ops[slot.index] for arch in steps]
        assert (ops[0] == SKIP) == (SKIP in slot.ops)
        widths = [int(op.get("hidden") or 0) for op in ops if op != SKIP]
        branches = {op.without("hidden") for op in ops if op != SKIP}
        assert len(branches) == 1 and widths == sorted(widths) and SKIP not in ops[len(ops) - len(widths):]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_what_is_far_too_wide_is_left_out(tiny: Layout, share: float) -> None:
    """The dearest network that is left costs what is asked for, and with one width less of the widest it would not."""
    known = prices(tiny, by_macs)
    smallest_ms, largest_ms = known.fixed, sum(by_macs(plan(tiny, largest(tiny, known))))
    most = smallest_ms + share * (largest_ms - smallest_ms)
    left = restrict(tiny, affordable(tiny, known, most))
    dearest = sum(by_macs(plan(left, largest(left, known))))
    assert dearest >= most - 1e-6
    widths = [[len(branch.ops) / len(whole.ops) for branch, whole in zip(a.branches, b.branches, strict=True)]
              for a, b in zip(left.slots, tiny.slots, strict=True)]
    assert widths and all(0 < part <= 1 for parts in widths for part in parts)
    assert (share == 1.0) == (left == tiny)
