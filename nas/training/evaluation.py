"""Computes loss and accuracy of networks on held-out images, and their batch norms beforehand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.training.augment import augmented
from nas.training.data import Data, Split, eval_batches, normalise
from nas.training.randomness import generator

VIEWED = 1000  # images, shifted copies among them, that networks are told apart on


@dataclass(frozen=True)
class Judged:
    """Holds the mean cross-entropy and the number of right answers of ``n`` held-out images."""

    loss: float
    right: float
    n: int

    @property
    def accuracy(self) -> float:
        return self.right / self.n

    @property
    def accuracy_se(self) -> float:
        """Returns the standard error of the accuracy (binomial)."""
        return standard_error(self.accuracy, self.n)


def standard_error(accuracy: float, n: int) -> float:
    """Returns the standard error of an accuracy on ``n`` images (binomial); views of them are no further images."""
    return math.sqrt(accuracy * (1 - accuracy) / n)


def recalibrate(model: nn.Module, images: Iterable[Tensor], part: nn.Module | None = None) -> None:
    """Recomputes batch norm statistics as the plain average over batches of images [N, C, S, S]; always before judging.

    With ``part``, those of that part of the model alone.
    """
    norms = [m for m in (part or model).modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [m.momentum for m in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for batch in images:
            model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def calibration_images(data: Data, count: int, batch: int, device: torch.device, seed: int) -> list[Tensor]:
    """Draws a fixed set of training images, normalised, not augmented, in batches of at least two where possible.

    A batch norm behind a global mean has no statistics of one image, and others have poor ones.
    """
    chosen = torch.randperm(len(data.train), generator=generator(seed, "calibration"))[:count]
    images = data.train.images[chosen]
    parts = torch.split(images, batch)
    return [normalise(part, data).to(device) for part in parts if len(part) > 1 or len(parts) == 1]


def evaluate(model: Callable[[Tensor], Tensor], split: Split, data: Data, device: torch.device,
             batch: int = 256) -> Judged:
    """Returns cross-entropy and accuracy of a model over a whole split, without augmentation."""
    loss, right = 0.0, 0
    with torch.inference_mode():
        for images, labels in eval_batches(split, data, batch):
            logits = model(images.to(device)).float().cpu()
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            right += int((logits.argmax(1) == labels).sum())
    return Judged(loss / len(split), right, len(split))


def evaluate_shifted(model: Callable[[Tensor], Tensor], split: Split, data: Data, device: torch.device,
                     augment: str, seed: int) -> Judged:
    """Evaluates as ``evaluate``; a split of fewer than ``VIEWED`` images is seen several times, at other shifts.

    That tells networks apart. Figures are means over the views, ``n`` and the standard error those of the split.
    """
    judged = [evaluate(model, view, data, device) for view in views(split, augment, seed)]
    right = sum(result.right for result in judged) / len(judged)
    return Judged(sum(result.loss for result in judged) / len(judged), right, len(split))


def views(split: Split, augment: str, seed: int) -> Iterator[Split]:
    """Yields the split and, where it has fewer than ``VIEWED`` images, as many shifted copies as make up that number.
    """
    yield split
    for view in range(1, -(-VIEWED // len(split))):
        yield Split(augmented(split.images, augment, generator(seed, "view", view)), split.labels)


def part_of(split: Split, count: int, *names: object) -> Split:
    """Draws a fixed random part of a split (all of it if it is smaller)."""
    chosen = torch.randperm(len(split), generator=generator(*names))[:count]
    return Split(split.images[chosen], split.labels[chosen])
