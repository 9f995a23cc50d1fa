"""Moves of random search stay in the space; indices and architectures are inverse."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from every import every
from hypothesis import given
from hypothesis import strategies as st
from tiny_space import TINY

from nas import sampling
from nas.arch import SKIP, Arch
from nas.files import shipped
from nas.plan import Layout, Task, layout, plan
from nas.space import Space

TINY_LAYOUT = layout(Space.parse(TINY), Task(16, 3, 4))
seeds = st.integers(0, 2**32)


@given(seeds, st.floats(0, 1))
def test_every_move_stays_in_the_space(seed: int, probability: float) -> None:
    rng = random.Random(seed)
    first, second = sampling.sample(TINY_LAYOUT, rng), sampling.sample(TINY_LAYOUT, rng)
    mutant = sampling.mutate(TINY_LAYOUT, first, rng, probability)
    child = sampling.cross_over(TINY_LAYOUT, first, second, rng)
    for arch in (first, second, mutant, child, sampling.sample_thinned(TINY_LAYOUT, rng)):
        assert plan(TINY_LAYOUT, arch)  # raises for an operator that is not admitted
    assert every(op in pair for op, pair in zip(child.ops, zip(first.ops, second.ops, strict=True), strict=True))
    assert sampling.mutate(TINY_LAYOUT, first, rng, 0.0) == first
    assert sampling.cross_over(TINY_LAYOUT, first, first, rng) == first


@given(seeds)
def test_encode_and_decode_are_inverse(seed: int) -> None:
    arch = sampling.sample(TINY_LAYOUT, random.Random(seed))
    indices = sampling.encode(TINY_LAYOUT, arch)
    assert sampling.decode(TINY_LAYOUT, indices) == arch
    assert every(0 <= i < len(slot.ops) for i, slot in zip(indices, TINY_LAYOUT.slots, strict=True))


def test_the_size_is_exact(tiny: Layout) -> None:
    assert sampling.count(tiny) == 10 * 10 * 9 * 16
    assert 10**41 < sampling.count(layout(Space.load("ghost"), Task(224, 3, 1000))) < 10**42


def test_the_same_seed_is_the_same_network(tiny: Layout) -> None:
    assert sampling.sample(tiny, random.Random(3)) == sampling.sample(tiny, random.Random(3))
    assert len({sampling.sample(tiny, random.Random(seed)) for seed in range(20)}) > 15


def test_branches_are_drawn_alike_so_that_widths_do_not_crowd_out_skip(tiny: Layout) -> None:
    rng = random.Random(0)
    drawn = Counter(sampling.sample_op(tiny.slots[3], rng).without("hidden") for _ in range(4000))
    assert len(drawn) == 4 and drawn[SKIP] == pytest.approx(1000, rel=0.15)


@pytest.mark.parametrize("name", shipped("search_spaces", ".yaml"))
def test_the_smallest_network_skips_all_it_can(name: str) -> None:
    at = layout(Space.load(name), Task(32, 3, 10))
    smallest = sampling.smallest(at)
    assert plan(at, smallest)
    assert [op == SKIP for op in smallest.ops] == [SKIP in slot.ops for slot in at.slots]
    assert every(op in (SKIP, slot.branches[0].ops[0])
               for op, slot in zip(smallest.ops, at.slots, strict=True))


def test_another_space_is_not_encoded(tiny: Layout) -> None:
    with pytest.raises(ValueError):
        sampling.encode(tiny, Arch("tiny", 16, (SKIP,)))


def test_thinned_networks_have_all_depths() -> None:
    rng = random.Random(0)
    skips = Counter(sampling.sample_thinned(TINY_LAYOUT, rng).ops.count(SKIP) for _ in range(200))
    assert set(skips) == {0, 1, 2, 3} and min(skips.values()) > 10  # 3 of the 4 slots may be skipped
