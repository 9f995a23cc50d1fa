"""Training loops: seeds, schedules, BN recomputation, distillation, and continuing bit-equal from a checkpoint."""

import io
import math
import random

import pytest
import torch
from torch import nn

from nas import genome
from nas.decision import prices
from nas.errors import UserError
from nas.plan import Layout, OpKey, macs
from nas.subnet import build
from nas.train import finetune, loop
from nas.train.data import Data, Split
from nas.train.distill import kd
from nas.train.search_loop import Recipe, SupernetTraining

CPU = torch.device("cpu")


@pytest.fixture
def data() -> Data:
    """4 classes of 16x16 noise around a class colour: learnable in a few steps."""
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        labels = torch.arange(count) % 4
        noise = torch.randint(0, 80, (count, 3, 16, 16), generator=generator)
        colour = torch.tensor([[0, 0, 0], [160, 0, 0], [0, 160, 0], [0, 0, 160]])[labels].view(count, 3, 1, 1)
        return Split((noise + colour).to(torch.uint8).contiguous(memory_format=torch.channels_last), labels)

    learn = split(80)
    parts = {"train": learn.part(0, 64), "gate": learn.part(64, 80), "select": split(32), "test": split(32)}
    return Data(name="colours", classes=("a", "b", "c", "d"), size=16, mean=(0.3,) * 3, std=(0.2,) * 3, source={},
                indices={}, augment="crop", learn=learn, **parts)


def by_macs(keys: list[OpKey]) -> list[float]:
    return [0.01 + macs(key) * 1e-6 for key in keys]


def training(tiny: Layout, data: Data, relaxation: str = "two-path") -> SupernetTraining:
    priced = prices(tiny, by_macs)
    low = priced.fixed + sum(min(row.values()) for row in priced.ms)
    high = priced.fixed + sum(max(row.values()) for row in priced.ms)
    recipe = Recipe({"warmup": 1, "search": 2, "settle": 1}, 16, 0.005, 0.01, 0.0, "crop", relaxation=relaxation)
    return SupernetTraining(tiny, data, [priced], [(low * 1.05, high * 0.9)], (-1.0, 0.0, 1.0), recipe, 0, CPU)


def weights(run: SupernetTraining) -> dict[str, torch.Tensor]:
    return {**run.supernet.state_dict(), **{f"gates.{k}": v for k, v in run.gates.state_dict().items()}}


def test_seeds_come_from_names() -> None:
    assert loop.seed_of(0, "a") == loop.seed_of(0, "a") != loop.seed_of(0, "b")
    state = torch.random.get_rng_state()
    with loop.seeded(1, "x"):
        first = torch.rand(3)
    with loop.seeded(1, "x"):
        assert torch.equal(first, torch.rand(3))
    assert torch.equal(state, torch.random.get_rng_state())


def test_one_cycle_by_hand() -> None:
    assert loop.one_cycle(0.0, 1.0) == pytest.approx(0.05)
    assert loop.one_cycle(0.1, 1.0) == pytest.approx(1.0)
    assert loop.one_cycle(0.55, 1.0) == pytest.approx(0.5)
    assert loop.one_cycle(1.0, 1.0) == pytest.approx(0.0)


def test_kd_is_zero_for_equal_logits_and_matches_a_hand_figure() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    assert float(kd(logits, logits)) == pytest.approx(0.0, abs=1e-7)
    # T = 1: p = (1/2, 1/2), q = (3/4, 1/4): KL(q || p) = 3/4 ln(3/2) + 1/4 ln(1/2)
    figure = kd(torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]]), temperature=1.0)
    assert float(figure) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-5)


def test_recalibrate_gives_the_statistics_of_the_images() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1))
    images = [torch.full((2, 1, 4, 4), 1.0), torch.full((2, 1, 4, 4), 3.0)]
    loop.recalibrate(model, images)
    assert float(model[0].running_mean) == pytest.approx(2.0)  # mean of the batch means
    assert model[0].momentum == 0.1 and not model.training


def test_judged_standard_error() -> None:
    judged = loop.Judged(0.5, 90, 100)
    assert judged.accuracy == 0.9 and judged.accuracy_se == pytest.approx(0.03)


def test_a_small_split_is_seen_at_several_shifts(tiny: Layout, data: Data) -> None:
    model = build(tiny, genome.decode(tiny, [0] * len(tiny.slots))).eval()
    once = loop.evaluate_shifted(model, data.select, data, CPU, "crop", 0, images=32)
    assert once == loop.evaluate(model, data.select, data, CPU)
    often = loop.evaluate_shifted(model, data.select, data, CPU, "crop", 0, images=200)
    assert often.n == once.n == 32 and often == loop.evaluate_shifted(model, data.select, data, CPU, "crop", 0, 200)
    assert often.loss != once.loss


def test_divergence_is_one_line(tiny: Layout) -> None:
    model = nn.Linear(1, 1)
    with pytest.raises(UserError, match=r"diverged.*train\.lr"):
        loop.step(model(torch.tensor([[float("nan")]])).sum(), model, loop.optimizer(model, 0.1, 0.0))


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_continued_supernet_is_bit_equal(tiny: Layout, data: Data, stop: int) -> None:
    whole = training(tiny, data)
    while not whole.finished:
        whole.epoch()
    first = training(tiny, data)
    for _ in range(stop):
        first.epoch()
    buffer = io.BytesIO()
    torch.save(first.state(), buffer)
    buffer.seek(0)
    second = training(tiny, data)
    second.load(torch.load(buffer, weights_only=True))
    while not second.finished:
        second.epoch()
    expected, got = weights(whole), weights(second)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert second.pruner.state() == whole.pruner.state()


def test_the_phases_learn_and_the_layout_shrinks(tiny: Layout, data: Data) -> None:
    run = training(tiny, data)
    loser = tiny.slots[2].branches[1]
    with torch.no_grad():
        run.gates.theta[0, 2, 1] = -20.0
    records = []
    while not run.finished:
        records.append(run.epoch())
    assert [r["phase"] for r in records] == ["warmup", "search", "search", "settle"]
    assert any(d["op"] == str(loser.op) and d["slot"] == 2 for d in records[1]["pruned"] + records[2]["pruned"])
    assert loser.op not in [branch.op for branch in run.supernet.layout.slots[2].branches]
    assert "entry_passed" in records[0] and records[1]["budget_residual"] < 1e-3
    assert records[-1]["loss_largest"] < records[0]["loss_largest"]
    arch = genome.sample(run.supernet.layout, random.Random(0))
    assert run.judge(arch, data.select, 32).n == 32


@pytest.mark.parametrize("relaxation", ["single", "gumbel"])
def test_the_other_relaxations_run(tiny: Layout, data: Data, relaxation: str) -> None:
    run = training(tiny, data, relaxation)
    records = []
    while not run.finished:
        records.append(run.epoch())
    assert ("gate_loss" in records[1]) == (relaxation == "gumbel")


def tuned(tiny: Layout, data: Data, stop: int | None) -> finetune.FineTuning:
    recipe = finetune.Recipe(3, 16, 0.01, 0.0, 0.0, "crop")
    arch = genome.decode(tiny, [0] * len(tiny.slots))

    def fresh() -> finetune.FineTuning:
        with loop.seeded("w"):
            return finetune.FineTuning("x", build(tiny, arch), build(tiny, arch), data, recipe, 0, CPU)

    tuning = fresh()
    while not tuning.finished:
        tuning.epoch()
        if tuning.done == stop:
            state, tuning = tuning.state(), fresh()
            tuning.load(state)
            stop = None
    return tuning


def test_fine_tuning_learns_and_continues_bit_equal(tiny: Layout, data: Data) -> None:
    whole, broken = tuned(tiny, data, None), tuned(tiny, data, 1)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, broken.model.state_dict()[name]), name
    loop.recalibrate(whole.model, loop.calibration_images(data, 64, 16, CPU, 0))
    assert loop.evaluate(whole.model, data.test, data, CPU).accuracy > 0.9
