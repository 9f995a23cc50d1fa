"""A supernet of several input sizes: one size a step, gates of that size, and bit-equal after a break."""

from __future__ import annotations

import io
import random
from collections import Counter
from typing import Any

import pytest
import torch
from colours import colours
from every import every
from torch import Tensor

from nas import sampling
from nas.decision import Decision, Prices, prices
from nas.plan import Layout, OpKey, macs, resized
from nas.supernet.gates import Gates
from nas.supernet.prune import Pruner, survivors
from nas.training import evaluation, randomness
from nas.training.augmentation import Augmentation
from nas.training.data import Data, batches, normalise
from nas.training.recipes import SupernetRecipe
from nas.training.supernet_training import SupernetTraining

CPU = torch.device("cpu")
SIZES = (16, 8)
PHASES = {"warmup": 1, "search": 2, "settle": 1}


@pytest.fixture
def data() -> Data:
    return colours()


def by_macs(keys: list[OpKey]) -> list[float]:
    return [0.01 + macs(key) * 1e-6 for key in keys]


def ends(priced: Prices) -> tuple[float, float]:
    low = priced.fixed + sum(min(row.values()) for row in priced.ms)
    high = priced.fixed + sum(max(row.values()) for row in priced.ms)
    return low * 1.05, high * 0.9


def training(tiny: Layout, data: Data, kind: type[SupernetTraining] = SupernetTraining, **options: Any
             ) -> SupernetTraining:
    priced = [prices(resized(tiny, size), by_macs) for size in SIZES]
    recipe = SupernetRecipe(epochs=PHASES, batch=16, lr=0.005, weight_decay=0.01, label_smoothing=0.0, augment="crop",
                            **options)
    return kind(tiny, data, priced, [ends(one) for one in priced], (-1.0, 0.0, 1.0), recipe, 0, CPU, sizes=SIZES)


class Watched(SupernetTraining):
    """Remembers the side of every batch that the supernet saw, by call."""

    def _logits(self, images: Tensor, decision: Decision) -> Tensor:
        self.__dict__.setdefault("seen", []).append(images.shape[-1])
        return super()._logits(images, decision)


def test_every_step_is_of_one_size(tiny: Layout, data: Data) -> None:
    run = training(tiny, data, Watched, sandwich_every=1)
    run.epoch()
    seen = run.__dict__["seen"]
    assert len(seen) == 3 * 4  # 64 images in batches of 16, each with the largest, a random and the smallest network
    assert every(len(set(seen[i:i + 3])) == 1 for i in range(0, 12, 3)) and set(seen) == set(SIZES)
    run.__dict__["seen"].clear()
    run.epoch()  # of the search: the gates' step follows at the same size
    seen = run.__dict__["seen"]
    assert len(seen) == 4 * 4 and every(len(set(seen[i:i + 4])) == 1 for i in range(0, 16, 4))


def test_gates_learn_at_the_budgets_of_their_size(tiny: Layout, data: Data) -> None:
    """A step at 8 pixels moves the row that all share and that of 8 pixels, never that of 16."""
    run, rng, coins = training(tiny, data), random.Random(0), torch.Generator().manual_seed(0)
    batch = next(batches(data.gate, data.at(8), 16, generator=randomness.generator("x"), augment=Augmentation("none")))
    assert batch[0].shape == (16, 3, 8, 8) and run.columns(8) == [1]
    figures = run._gate_step(0.5, batch, rng, coins)
    assert figures["budget_residual"] < 1e-3
    moved = run.gates.theta.detach().abs().sum((1, 2))
    assert moved[0] > 0 and moved[1] == 0 and moved[2] > 0
    soft = run._soft(0.5, rng, 8)
    low, high = run.gates.ranges[1]
    assert soft.target == 1 and low <= soft.budget_ms <= high < run.gates.ranges[0][1]


def test_sizes_are_drawn_alike(tiny: Layout, data: Data) -> None:
    run = training(tiny, data)
    assert Counter(run._soft(0.5, random.Random(i), size).target for i in range(40) for size in SIZES) == {0: 40, 1: 40}


def test_a_choice_goes_only_if_it_lost_at_every_size(tiny: Layout) -> None:
    priced = [prices(resized(tiny, size), by_macs) for size in SIZES]
    for row, lost in ((0, True), (1, False), (2, False)):  # of theta: all sizes, 16 pixels, 8 pixels
        gates = Gates(tiny, priced, [ends(one) for one in priced])
        with torch.no_grad():
            gates.theta[row, 2, 1] = -20.0
        dropped = Pruner(grid=(-1.0, 0.0, 1.0)).check(gates, 1.0)
        assert [drop.op for drop in dropped if drop.slot == 2] == [str(tiny.slots[2].branches[1].op)] * lost
        assert all(len(drop.probabilities) == len(SIZES) for drop in dropped)
        kept = survivors(gates, (-1.0, 0.0, 1.0))
        for one in priced:  # the smallest latency of each size stays in reach
            assert every(min(row, key=row.__getitem__) in ops for row, ops in zip(one.ms, kept, strict=True))


def test_continued_it_is_bit_equal(tiny: Layout, data: Data) -> None:
    whole, first, second = (training(tiny, data, update=update) for update in ("single",) * 3)
    while not whole.finished:
        whole.epoch()
    for _ in range(2):
        first.epoch()
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    while not second.finished:
        second.epoch()
    for one, other in ((whole.supernet, second.supernet), (whole.gates, second.gates)):
        expected, got = one.state_dict(), other.state_dict()
        assert every(torch.equal(expected[name], got[name]) for name in expected)
    assert second.pruner == whole.pruner


def test_one_size_named_is_the_training_of_before(tiny: Layout, data: Data) -> None:
    priced = prices(tiny, by_macs)
    recipe = SupernetRecipe(epochs=PHASES, batch=16, lr=0.005, weight_decay=0.01, label_smoothing=0.0, augment="crop")
    one, named = (SupernetTraining(tiny, data, [priced], [ends(priced)], (-1.0, 0.0, 1.0), recipe, 0, CPU, **sizes)
                  for sizes in ({}, {"sizes": (16,)}))
    for _ in range(2):
        one.epoch()
        named.epoch()
    assert every(torch.equal(a, b) for a, b in zip(one.supernet.state_dict().values(),
                                                 named.supernet.state_dict().values(), strict=True))


def test_a_network_is_judged_at_its_own_size(tiny: Layout, data: Data) -> None:
    """By hand: taken out at 8 pixels, statistics of 8-pixel batches, the loss of 8-pixel images."""
    run = training(tiny, data)
    run.epoch()
    small = sampling.sample(resized(run.supernet.layout, 8), random.Random(1))
    judged = run.judge(small, data.select, 32)
    net, at = run.supernet.inherit(small), data.at(8)
    assert [key.size for key in net.keys][:2] == [8, 8]
    evaluation.recalibrate(net, [normalise(data.train.images[torch.randperm(64, generator=randomness.generator(
        0, "calibration"))[:32]], at)])
    assert judged == evaluation.evaluate(net, data.select, at, CPU)
    large = run.judge(sampling.decode(run.supernet.layout, sampling.encode(resized(run.supernet.layout, 8), small)),
                      data.select, 32)
    assert large.loss != judged.loss


def test_images_are_resized_with_antialiasing_by_hand(data: Data) -> None:
    """From 4 to 2 pixels: a triangle of two pixels' reach, 1.0 from the edge, weighs 3, 3 and 1."""
    images = torch.tensor([0, 0, 255, 255], dtype=torch.uint8).expand(1, 3, 4, 4)
    plain = Data(**{**data.__dict__, "size": 4, "mean": (0.0,) * 3, "std": (1.0,) * 3})
    assert torch.equal(normalise(images, plain)[0, 0, 0], torch.tensor([0.0, 0.0, 1.0, 1.0]))
    halved = normalise(images, plain.at(2))
    assert halved.shape == (1, 3, 2, 2) and halved.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(halved, torch.tensor([1 / 7, 6 / 7]).expand(1, 3, 2, 2))
    assert plain.at(4) is plain
