"""The network that is trained is the best, or the worst, of those of about one cost."""

import random

import pytest

from nas import sampling
from nas.arch import Arch
from nas.decision import Prices, prices
from nas.plan import Layout, macs
from nas.training.attentive import POOL, choose_by_loss


@pytest.fixture
def priced(tiny: Layout) -> Prices:
    return prices(tiny, lambda keys: [1.0 + macs(key) for key in keys])


@pytest.mark.parametrize("worst", [False, True])
@pytest.mark.parametrize("k", [2, 5])
def test_the_extreme_of_k_of_about_one_cost(tiny: Layout, priced: Prices, worst: bool, k: int) -> None:
    asked: dict[Arch, float] = {}

    def loss_of(arch: Arch) -> float:
        return asked.setdefault(arch, float(int(arch.id, 16) % 1009))

    chosen = choose_by_loss(tiny, priced, random.Random(3), k, loss_of, worst)
    assert len(asked) == k and asked[chosen] == (max if worst else min)(asked.values())
    # the same draws again: no network of the pool is nearer in cost to the first than one that was asked about
    rng = random.Random(3)
    pool = list(dict.fromkeys(sampling.sample(tiny, rng) for _ in range(POOL)))
    assert len(pool) > k
    ms = [sum(row[op] for row, op in zip(priced.ms, arch.ops, strict=True)) for arch in pool]
    off = {arch: abs(cost - ms[0]) for arch, cost in zip(pool, ms, strict=True)}
    assert off[pool[0]] == 0 and pool[0] in asked
    assert max(off[arch] for arch in asked) <= min(off[arch] for arch in pool if arch not in asked)
