"""Tests quickly, before anything is trained, whether classes survive being mirrored left to right.

Flips are a usual augmentation, but where left and right carry meaning (arrows, text, signs) they teach wrong labels. A
linear classifier on responses to random patches of the images (Coates and Ng, 2012) learns from one half of a sample,
without flips, and answers on the other half and on its mirror images. Where classes survive, it is right on either as
often; a large difference beyond chance is reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.stats import binom

from nas.errors import setting
from nas.training.sources import Indices

SIDE, PATCH, FILTERS, CELLS = 24, 6, 64, 3  # pixels, pixels, of the patches, of the grid that responses are pooled over
SAMPLE, LEAST = 1500, 20  # images at most, and to say anything
RIDGE = 0.1  # of the number of features
CHANCE = 1e-4  # that a difference as large comes about where classes survive; of a class alone, by their number
KEPT, KEPT_OF_CLASS = 0.75, 0.5  # of what is recognised is still recognised mirrored: less is told
NAMED = 3  # classes


@dataclass(frozen=True)
class Answers:
    """Holds of every sampled image its label, what it was taken for, and what its mirror image was taken for."""

    labels: Indices
    plain: Indices
    mirrored: Indices

    def lost(self, which: npt.NDArray[np.bool_], kept: float, chance: float) -> bool:
        """Says whether less than ``kept`` of the images are recognised mirrored, beyond chance (McNemar's test)."""
        right, mirrored = (answer[which] == self.labels[which] for answer in (self.plain, self.mirrored))
        worse, better = int((right & ~mirrored).sum()), int((mirrored & ~right).sum())
        return mirrored.sum() <= kept * right.sum() and binom.sf(worse - 1, worse + better, 0.5) < chance


def warning(images: torch.Tensor, labels: torch.Tensor, classes: Sequence[str], key: str) -> str | None:
    """Returns a warning, naming the setting ``key`` to change, if mirror images of images uint8 [N, 3, S, S] are not
    recognised; else None.

    Takes a second or two, and numbers from no generator but its own.
    """
    if len(labels) < LEAST:
        return None
    sample = answers(images, labels, len(classes))
    whole = np.ones(len(sample.labels), bool)
    classwise = [label for label in range(len(classes))
                 if sample.lost(sample.labels == label, KEPT_OF_CLASS, CHANCE / len(classes))]
    if not classwise and not sample.lost(whole, KEPT, CHANCE):
        return None
    right, mirrored = (f"{(answer == sample.labels).mean():.0%}" for answer in (sample.plain, sample.mirrored))
    return (f"warning: classes may not survive mirroring: a quick linear test recognises {right} of the images and "
            f"{mirrored} of their mirror images{_examples(sample, classwise, classes)}; where left and right matter "
            f"(arrows, text, signs) give {setting(key, 'crop')}")


def _examples(sample: Answers, classwise: list[int], classes: Sequence[str]) -> str:
    """Returns, as text, the classes that lose most, and what their mirror images are taken for."""
    texts = []
    wrong = np.bincount(sample.labels[sample.mirrored != sample.labels], minlength=len(classes))
    for label in sorted(classwise, key=lambda label: -int(wrong[label]))[:NAMED]:
        taken = np.bincount(sample.mirrored[sample.labels == label], minlength=len(classes))
        taken[label] = 0
        other = int(taken.argmax())
        texts.append(f"{classes[label]!r} mirrored is taken for {classes[other]!r} "
                     f"({taken[other]} of {(sample.labels == label).sum()})")
    return f" ({', '.join(texts)})" if texts else ""


def answers(images: torch.Tensor, labels: torch.Tensor, classes: int) -> Answers:
    """Classifies each half of a sample, and its mirror images, by what was learnt from the other half."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(labels), generator=generator)[:SAMPLE]
    with torch.inference_mode():
        pixels, chosen = _small(images, order), labels[order].cpu()
        patches = _patches(pixels, generator)
        plain, mirrored = _features(pixels, patches), _features(pixels.flip(3), patches)
        mean, deviation = plain.mean(0), plain.std(0) + 1e-4
        plain, mirrored = (plain - mean) / deviation, (mirrored - mean) / deviation
        half = len(order) // 2
        parts = [(slice(half, None), slice(half)), (slice(half), slice(half, None))]
        weights = [(_ridge(plain[fit], F.one_hot(chosen[fit], classes).float()), asked) for fit, asked in parts]
        predictions = [torch.cat([(of[asked] @ slopes + start).argmax(1) for (slopes, start), asked in weights])
                 for of in (plain, mirrored)]
    return Answers(chosen.numpy(), predictions[0].numpy(), predictions[1].numpy())


def _small(images: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """Returns float32 [n, 3, SIDE, SIDE] of some images, channels of mean 0 and deviation 1; in chunks for memory."""
    small = torch.cat([F.interpolate(images[part.to(images.device)].float().cpu(), size=(SIDE, SIDE), mode="area")
                       for part in torch.split(which, 128)])
    return (small - small.mean((0, 2, 3), keepdim=True)) / (small.std((0, 2, 3), keepdim=True) + 1e-3)


def _patches(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Returns [FILTERS, 3, PATCH, PATCH] cut out of the images at random, each of mean 0 and length 1."""
    which = torch.randint(len(pixels), (FILTERS,), generator=generator).tolist()
    places = torch.randint(SIDE - PATCH + 1, (FILTERS, 2), generator=generator).tolist()
    cut = torch.stack([pixels[i, :, y : y + PATCH, x : x + PATCH] for i, (y, x) in zip(which, places, strict=True)])
    cut = cut - cut.mean((1, 2, 3), keepdim=True)
    return cut / (cut.flatten(1).norm(dim=1)[:, None, None, None] + 1e-3)


def _features(pixels: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    """Returns [n, features]: responses to patches and their negatives, pooled over a coarse grid, and the image."""
    responses = F.conv2d(pixels, patches) - 0.25  # weak responses are noise
    pooled = [F.adaptive_avg_pool2d(part.relu(), CELLS).flatten(1) for part in (responses, -responses)]
    return torch.cat([*pooled, F.adaptive_avg_pool2d(pixels, SIDE // CELLS).flatten(1)], 1)


def _ridge(features: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns slopes and intercepts of a ridge regression, by its dual, because images are fewer than features."""
    mean, start = features.mean(0), wanted.mean(0)
    centred = features - mean
    kernel = centred @ centred.T + RIDGE * features.shape[1] * torch.eye(len(features))
    slopes = centred.T @ torch.linalg.solve(kernel, wanted - start)
    return slopes, start - mean @ slopes
