"""Images are mixed with their labels, by one draw for a batch, and losses take the labels that come of it."""

from __future__ import annotations

import random
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from every import every
from torch import Tensor
from torchvision.transforms import v2

from nas import sampling
from nas.config.training import Training
from nas.plan import Layout
from nas.subnet import build
from nas.training import randomness
from nas.training.data import Data
from nas.training.distill import kd
from nas.training.finetune import FineTuning
from nas.training.mixing import ALPHAS, KINDS, mixed
from nas.training.recipes import FineTuningRecipe

CPU = torch.device("cpu")


class Loaded(random.Random):
    """Draws what it is given: a weight, then the middle of a rectangle."""

    def __init__(self, weight: float, *middle: int) -> None:
        super().__init__(0)
        self.weight, self.middle = weight, list(middle)

    def betavariate(self, alpha: float, beta: float) -> float:
        return self.weight

    def randrange(self, *given: Any, **more: Any) -> int:
        return self.middle.pop(0)


def numbered(count: int, size: int = 8) -> Tensor:
    """Image i is i everywhere."""
    return torch.arange(count).float()[:, None, None, None].expand(count, 3, size, size).contiguous()


def test_settings_name_every_kind() -> None:
    assert get_args(Training.model_fields["mix"].annotation) == ("none", *KINDS) and Training().mix == "none"
    assert {*KINDS} == {*ALPHAS, "both"}


def test_mixup_by_hand() -> None:
    images, labels = mixed(numbered(3), torch.tensor([0, 1, 3]), "mixup", 4, Loaded(0.75))
    # image i is 3/4 of itself and 1/4 of the one before it, the first of the last
    assert [set(image.flatten().tolist()) for image in images] == [{0.5}, {0.75}, {1.75}]
    assert labels.tolist() == [[0.75, 0, 0, 0.25], [0.25, 0.75, 0, 0], [0, 0.25, 0, 0.75]]


def test_cutmix_by_hand() -> None:
    images, labels = mixed(numbered(2), torch.tensor([2, 0]), "cutmix", 3, Loaded(0.75, 1, 4))
    # sqrt(1 - 3/4) of 8 are 4 lines: rows -1 .. 2, of which 0 .. 2 are there, columns 2 .. 5: 12 of 64 pixels
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[0:3, 2:6] = True
    assert torch.equal(images[0], inside.float().expand(3, 8, 8))
    assert torch.equal(images[1], (~inside).float().expand(3, 8, 8))
    assert labels.tolist() == [[0.1875, 0, 0.8125], [0.8125, 0, 0.1875]]


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.97])
def test_mixing_is_torchvisions(weight: float) -> None:
    images, labels = torch.rand(5, 3, 16, 16), torch.tensor([0, 2, 1, 1, 3])
    got = mixed(images, labels, "mixup", 4, Loaded(weight))
    theirs = v2.MixUp(num_classes=4)
    known = {"labels": labels, "batch_size": 5, "lam": weight}
    assert torch.allclose(got[0], theirs.transform(images, known)) and torch.allclose(
        got[1], theirs.transform(labels, known))
    half = int(8 * (1 - weight) ** 0.5)
    box = (max(0, 9 - half), max(0, 3 - half), min(16, 9 + half), min(16, 3 + half))  # x, y, x, y
    left = 1 - (box[2] - box[0]) * (box[3] - box[1]) / 256
    got = mixed(images, labels, "cutmix", 4, Loaded(weight, 3, 9))
    cut = v2.CutMix(num_classes=4)
    known = {"labels": labels, "batch_size": 5, "box": box, "lam_adjusted": left}
    assert torch.equal(got[0], cut.transform(images, known)) and torch.allclose(got[1], cut.transform(labels, known))


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_labels_sum_to_one_and_nothing_else_is_drawn_from(kind: str) -> None:
    images = torch.rand(6, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    labels, kept, before = torch.tensor([0, 1, 2, 3, 0, 1]), images.clone(), torch.get_rng_state()
    rng, drawn = random.Random(3), []
    for _ in range(40):
        got, soft = mixed(images, labels, kind, 4, rng)
        assert got.shape == images.shape and got.is_contiguous(memory_format=torch.channels_last)
        assert soft.shape == (6, 4) and soft.min() >= 0 and torch.allclose(soft.sum(1), torch.ones(6))
        drawn.append(round(float(soft[1, 1]), 6))  # whose neighbour is of another class
    assert len(set(drawn)) > 10
    again = random.Random(3)
    assert drawn == [round(float(mixed(images, labels, kind, 4, again)[1][1, 1]), 6) for _ in range(40)]
    assert torch.equal(images, kept) and torch.equal(before, torch.get_rng_state())


def tuning(tiny: Layout, data: Data, taught: bool = False, **more: Any) -> FineTuning:
    recipe = FineTuningRecipe(epochs=1, batch=16, lr=0.01, weight_decay=0.0, label_smoothing=0.1, augment="none",
                              **more)
    arch = sampling.decode(tiny, [0] * len(tiny.slots))
    with randomness.seeded("w"):
        model, teacher = build(tiny, arch), build(tiny, arch)
    return FineTuning("x", model, teacher if taught else None, data, recipe, 0, CPU)


def test_the_loss_of_mixed_labels_by_hand(tiny: Layout, data: Data) -> None:
    """It is linear in the label: the mean of both labels' losses; what a teacher adds is as it was."""
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    own, other = torch.tensor([0, 1, 2, 3]), torch.tensor([3, 0, 1, 2])
    soft = 0.75 * F.one_hot(own, 4).float() + 0.25 * F.one_hot(other, 4).float()
    alone, taught = tuning(tiny, data), tuning(tiny, data, taught=True)
    assert alone.teacher is None and taught.teacher is not None
    logits = alone.model(images)
    by_labels = 0.75 * F.cross_entropy(logits, own, label_smoothing=0.1) + 0.25 * F.cross_entropy(
        logits, other, label_smoothing=0.1)
    loss, figures = alone._loss(images, soft)
    assert torch.allclose(loss, by_labels) and torch.allclose(figures["label_loss"], by_labels)
    loss, figures = taught._loss(images, soft)
    assert torch.allclose(loss, (by_labels + kd(logits, taught.teacher(images))) / 2)
    assert torch.allclose(figures["label_loss"], by_labels)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_epoch_learns_from_mixed_batches(tiny: Layout, data: Data, accumulate: int,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    made, seen = tuning(tiny, data, mix="mixup", accumulate=accumulate), list[Tensor]()
    loss = made._loss
    monkeypatch.setattr(made, "_loss", lambda images, labels: (seen.append(labels), loss(images, labels))[1])
    made.epoch()
    steps = len(data.learn) // 16
    assert len(seen) == steps * accumulate
    assert every(labels.shape == (16 // accumulate, 4) and torch.allclose(labels.sum(1), torch.ones(len(labels)))
                 for labels in seen)
    weights = {round(float(labels[labels > 0].min()), 5) for labels in seen}
    assert len(weights) > 1  # one a batch
