"""What stands around training: seeds, learning rates, recalibration, judging, an average, fine-tuning."""

import math
import random
from typing import Any

import pytest
import torch
from every import every
from short_training import CPU, training
from torch import nn

from nas import sampling
from nas.plan import Layout
from nas.subnet import build
from nas.supernet.net import Supernet
from nas.training import evaluation, finetune, optimization, randomness
from nas.training.data import Data
from nas.training.distill import kd
from nas.training.ema import Average
from nas.training.mixing import KINDS
from nas.training.policies import POLICIES
from nas.training.recipes import FineTuningRecipe


def test_seeds_come_from_names() -> None:
    assert randomness.seed_of(0, "a") == randomness.seed_of(0, "a") != randomness.seed_of(0, "b")
    state = torch.random.get_rng_state()
    with randomness.seeded(1, "x"):
        first = torch.rand(3)
    with randomness.seeded(1, "x"):
        assert torch.equal(first, torch.rand(3))
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_held_rate_by_hand() -> None:
    rates = [optimization.held(progress, 2.0) for progress in (0.0, 0.025, 0.05, 0.3, 0.5, 0.75, 1.0)]
    assert rates == pytest.approx([0.1, 1.05, 2.0, 2.0, 2.0, 1.0, 0.0])


def test_one_cycle_by_hand() -> None:
    assert optimization.one_cycle(0.0, 1.0) == pytest.approx(0.05)
    assert optimization.one_cycle(0.1, 1.0) == pytest.approx(1.0)
    assert optimization.one_cycle(0.55, 1.0) == pytest.approx(0.5)
    assert optimization.one_cycle(1.0, 1.0) == pytest.approx(0.0)


def test_kd_is_zero_for_equal_logits_and_matches_a_hand_figure() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    assert float(kd(logits, logits)) == pytest.approx(0.0, abs=1e-7)
    # T = 1: p = (1/2, 1/2), q = (3/4, 1/4): KL(q || p) = 3/4 ln(3/2) + 1/4 ln(1/2)
    figure = kd(torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]]), temperature=1.0)
    assert float(figure) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-5)


def test_recalibrate_gives_the_statistics_of_the_images() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1))
    images = [torch.full((2, 1, 4, 4), 1.0), torch.full((2, 1, 4, 4), 3.0)]
    evaluation.recalibrate(model, images)
    assert float(model[0].running_mean) == pytest.approx(2.0)  # mean of the batch means
    assert model[0].momentum == 0.1 and not model.training


@pytest.mark.parametrize(("count", "batch", "expected"), [(32, 16, [16, 16]), (33, 16, [16, 16]), (34, 16, [16, 16, 2]),
                                                          (1, 16, [1])])
def test_no_image_is_alone_in_its_batch(data: Data, count: int, batch: int, expected: list[int]) -> None:
    assert [len(part) for part in evaluation.calibration_images(data, count, batch, CPU, 0)] == expected


def test_judged_standard_error() -> None:
    judged = evaluation.Judged(0.5, 90, 100)
    assert judged.accuracy == 0.9 and judged.accuracy_se == pytest.approx(0.03)


def test_a_small_split_is_seen_at_several_shifts(tiny: Layout, data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(tiny, sampling.decode(tiny, [0] * len(tiny.slots))).eval()

    def judged(viewed: int) -> evaluation.Judged:
        monkeypatch.setattr(evaluation, "VIEWED", viewed)
        assert len(list(evaluation.views(data.select, "crop", 0))) == -(-viewed // 32)
        return evaluation.evaluate_shifted(model, data.select, data, CPU, "crop", 0)

    once, often = judged(32), judged(200)
    assert once == evaluation.evaluate(model, data.select, data, CPU)
    assert often.n == once.n == 32
    assert often == judged(200)
    assert often.loss != once.loss


def test_an_average_by_hand(tiny: Layout) -> None:
    net = Supernet(tiny)
    weight = next(net.parameters())
    with torch.no_grad():
        weight.fill_(1.0)
    average = Average(net, 0.25)
    followed = [1.0]
    for value, d in ((2.0, 2 / 11), (5.0, 3 / 12), (3.0, 0.25)):  # (1 + n) / (10 + n), at most 0.25
        with torch.no_grad():
            weight.fill_(value)
        average.follow(net)
        followed.append(d * followed[-1] + (1 - d) * value)
        assert torch.allclose(next(average.net.parameters()), torch.tensor(followed[-1]))
    assert not any(p.requires_grad for p in average.net.parameters())


def test_averaged_weights_are_judged_inherited_and_started_from(tiny: Layout, data: Data) -> None:
    run = training(tiny, data, ema=0.9)
    with torch.no_grad():
        run.gates.theta[0, 2, 1] = -20.0  # loses its place, in the average as well
    while not run.finished:
        run.epoch()
    assert run.average is not None
    assert run.average.net.layout == run.supernet.layout
    assert [p.shape for p in run.average.net.parameters()] == [p.shape for p in run.supernet.parameters()]
    arch = sampling.sample(run.supernet.layout, random.Random(0))
    inherited, mean, last = run.inherit(arch), run.average.net.inherit(arch), run.supernet.inherit(arch)
    assert every(torch.equal(a, b) for a, b in zip(inherited.parameters(), mean.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(inherited.parameters(), last.parameters(), strict=True))
    judged = run.judge(arch, data.select, 32)
    evaluation.recalibrate(mean, evaluation.calibration_images(data, 32, 128, CPU, 0))
    assert judged == evaluation.evaluate(mean, data.select, data, CPU)
    heir = training(tiny, data, ema=0.5)
    assert heir.start_from(run.state_dict()) == len(run.supernet.state_dict())
    assert heir.average is not None
    for net in (heir.supernet, heir.average.net):
        assert torch.equal(next(net.parameters()), next(run.average.net.parameters()))


def tuned(tiny: Layout, data: Data, stop: int | None, **more: Any) -> finetune.FineTuning:
    recipe = FineTuningRecipe(epochs=3, batch=16, lr=0.01, weight_decay=0.0, label_smoothing=0.0, augment="crop",
                              **more)
    arch = sampling.decode(tiny, [0] * len(tiny.slots))

    def fresh() -> finetune.FineTuning:
        with randomness.seeded("w"):
            return finetune.FineTuning("x", build(tiny, arch), build(tiny, arch), data, recipe, 0, CPU)

    tuning = fresh()
    while not tuning.finished:
        tuning.epoch()
        if tuning.done == stop:
            state, tuning = tuning.state_dict(), fresh()
            tuning.load_state_dict(state)
            stop = None
    return tuning


def test_averaged_weights_of_fine_tuning_by_hand(tiny: Layout, data: Data) -> None:
    recipe = FineTuningRecipe(epochs=2, batch=16, lr=0.01, weight_decay=0.0, label_smoothing=0.0, augment="crop",
                              ema=0.2)
    tuning = finetune.FineTuning("x", build(tiny, sampling.decode(tiny, [0] * len(tiny.slots))), None, data, recipe, 0,
                                 CPU)
    expected, steps = [p.detach().clone() for p in tuning.model.parameters()], 0

    def follow(step: int, of: int) -> None:
        nonlocal steps
        steps += 1
        d = {1: 2 / 11}.get(steps, 0.2)  # (1 + n) / (10 + n), at most 0.2: 3 / 12 is more
        for mean, weight in zip(expected, tuning.model.parameters(), strict=True):
            mean.mul_(d).add_((1 - d) * weight.detach())
        if steps <= 3:
            check()

    def check() -> None:
        averaged = list(tuning.result.parameters())
        assert every(torch.allclose(a, b, atol=1e-6) for a, b in zip(expected, averaged, strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(tuning.model.parameters(), averaged, strict=True))

    while not tuning.finished:
        tuning.epoch(follow)
    check()
    assert steps == 2 * (len(data.learn) // 16) > 3
    buffers = zip(tuning.result.buffers(), tuning.model.buffers(), strict=True)
    assert every(torch.equal(kept, latest) for kept, latest in buffers)


def test_fine_tuning_learns_and_continues_bit_equal(tiny: Layout, data: Data) -> None:
    whole, broken = tuned(tiny, data, None), tuned(tiny, data, 1)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, broken.model.state_dict()[name]), name
    evaluation.recalibrate(whole.model, evaluation.calibration_images(data, 64, 16, CPU, 0))
    assert evaluation.evaluate(whole.model, data.test, data, CPU).accuracy > 0.9


@pytest.mark.parametrize("more", [*({"policy": name} for name in POLICIES), *({"mix": name} for name in KINDS),
                                  {"erase": 0.5}, {"ema": 0.9}], ids=str)
def test_with_every_recipe_it_continues_bit_equal(tiny: Layout, data: Data, more: dict[str, Any]) -> None:
    whole, broken, plain = tuned(tiny, data, None, **more), tuned(tiny, data, 2, **more), tuned(tiny, data, None)
    kept, usual = broken.result.state_dict(), plain.result.state_dict()
    for name, tensor in whole.result.state_dict().items():
        assert torch.equal(tensor, kept[name]), name
    assert any(not torch.equal(tensor, usual[name]) for name, tensor in whole.result.state_dict().items())


class Scripted(finetune.FineTuning):
    """Has the held-out losses of a list, and notes its learning rates."""

    def __init__(self, losses: list[float], *given: Any) -> None:
        super().__init__(*given)
        self.losses, self.rates = losses, list[float]()

    def judge(self) -> float | None:
        return self.losses[self.done - 1]

    def rate(self) -> float:
        self.rates.append(super().rate())
        return self.rates[-1]


@pytest.mark.parametrize(("patient", "losses", "epochs"), [
    (True, [1.0] * 40, 16),  # flat behind the eighth: held so long, then as long to fall
    (True, [1.0, 0.8, 0.6, 0.5] + [0.4] * 36, 18),  # the best of the last four is first no better behind the ninth
    (False, [1.0] * 40, 40),
    (True, [0.9**epoch for epoch in range(40)], 40)])  # never flat: at most so long
def test_patient_training_ends_where_the_loss_is_flat(tiny: Layout, data: Data, patient: bool, losses: list[float],
                                                      epochs: int) -> None:
    recipe = FineTuningRecipe(epochs=40, batch=16, lr=0.01, weight_decay=0.0, label_smoothing=0.0, augment="none",
                              patient=patient, epoch_images=16)
    network = build(tiny, sampling.decode(tiny, [0] * len(tiny.slots)))
    tuning = Scripted(losses, "x", network, None, data, recipe, 0, CPU)
    while not tuning.finished:
        tuning.epoch()
    assert tuning.done == epochs == tuning.epochs
    held, falling = tuning.rates[3:epochs // 2], tuning.rates[epochs // 2:]
    assert held == [0.01] * len(held) and falling == pytest.approx(
        [0.01 * (1 - step / len(falling)) for step in range(len(falling))])
