"""Mixes pairs of training images together with their labels: mixup and CutMix."""

from __future__ import annotations

import math
import random

import torch
import torch.nn.functional as F
from torch import Tensor

KINDS = {"mixup": "mixup", "cutmix": "CutMix", "both": "mixup or CutMix"}  # both: one of them is drawn for a batch
ALPHAS = {"mixup": 0.2, "cutmix": 1.0}  # of the Beta distribution of weights, as in torchvision's recipes


def mixed(images: Tensor, labels: Tensor, kind: str, classes: int, rng: random.Random) -> tuple[Tensor, Tensor]:
    """Mixes every image of a batch with the one before it: float [N, C, S, S], int64 [N] -> the same, [N, classes].

    Mixup (Zhang et al., arXiv 1710.09412) takes a weighted mean of both, CutMix (Yun et al., arXiv 1905.04899) puts a
    rectangle of the other in; the label is shared out by weight or area. The weight is one for a batch.
    """
    kind = rng.choice(list(ALPHAS)) if kind == "both" else kind
    weight, others = rng.betavariate(ALPHAS[kind], ALPHAS[kind]), images.roll(1, 0)
    if kind == "mixup":
        images = torch.lerp(others, images, weight)
    else:
        images, weight = _pasted(images, others, weight, rng)
    hot = F.one_hot(labels, classes).float()
    return images.contiguous(memory_format=torch.channels_last), torch.lerp(hot.roll(1, 0), hot, weight)


def _pasted(images: Tensor, others: Tensor, weight: float, rng: random.Random) -> tuple[Tensor, float]:
    """Puts a rectangle of other images in, a share of 1 - ``weight`` if it does not reach the edge.

    Returns the images and the share of them that is left.
    """
    side, images = images.shape[-1], images.clone()
    half = int(0.5 * math.sqrt(1 - weight) * side)
    rows, columns = (slice(max(0, middle - half), min(side, middle + half))
                     for middle in (rng.randrange(side), rng.randrange(side)))
    images[..., rows, columns] = others[..., rows, columns]
    return images, 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / side**2
