"""Loads images without labels, for exits that learn from the network itself: its answers stand in for labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from nas.errors import UserError, setting
from nas.training import randomness
from nas.training.data import Data, Split, eval_batches
from nas.training.folder import PIXELS
from nas.training.image_source import ImageSource
from nas.training.listing import Lister
from nas.training.pixels import NARROW, decoded, whites

LEAST = 30  # images: fewer can neither be learned from nor set thresholds
HELD_OUT = 0.2  # of the images, for thresholds, and as many to report on


def unlabeled(folder: Path, like: Data, seed: int, limit: int | None = None) -> Data:
    """Loads all images under a folder, at the size, mean and deviation of the data set ``like``; all labels are 0.

    ``answered`` gives them labels. 60 % are to learn from, 20 % for thresholds (``select``) and 20 % to report on
    (``test``). Raises UserError for a folder that is missing or has too few.
    """
    folder, lister = folder.expanduser(), Lister()
    if not folder.is_dir():
        raise UserError(f"{setting('images', folder)}: no such folder")
    files = lister.images(folder)
    order = torch.randperm(len(files), generator=randomness.generator(seed, "unlabeled"))[:limit].tolist()
    if len(order) < LEAST:
        raise UserError(f"{setting('images', folder)}: {len(order)} images; at least {LEAST} are needed")
    held_out = max(1, round(HELD_OUT * len(order)))
    chosen = [files[index] for index in order]
    white = like.whites if like.whites != NARROW else whites(chosen)
    pixels, cut = decoded(chosen, like.size, white)
    whole = Split(pixels, torch.zeros(len(order), dtype=torch.int64))
    learn = whole.part(2 * held_out, len(whole))
    select, test = whole.part(0, held_out), whole.part(held_out, 2 * held_out)
    source = ImageSource(origin=str(folder), available=len(files), limit=limit, seed=seed, pixels=PIXELS,
                         sizes={"learn": len(learn), "select": len(select), "test": len(test)},
                         skipped=dict(lister.skipped), cut={"images": cut})
    return Data(name=folder.resolve().name, classes=like.classes, size=like.size, mean=like.mean, std=like.std,
                learn=learn, train=learn, gate=learn.part(0, 0), select=select,
                test=test, source=source, indices={}, augment=like.augment, whites=white)


def answered(data: Data, network: Callable[[torch.Tensor], torch.Tensor], device: torch.device) -> Data:
    """Returns the data with the network's own answers as labels: accuracy is then agreement with it."""

    def asked(split: Split) -> Split:
        if not len(split):
            return split
        with torch.inference_mode():
            answers = [network(images.to(device)).argmax(1).cpu() for images, _ in eval_batches(split, data, 128)]
        return Split(split.images, torch.from_numpy(np.concatenate([answer.numpy() for answer in answers])))

    learn = asked(data.learn)
    return Data(**{**vars(data), "learn": learn, "train": learn.part(0, len(data.train)),
                   "gate": learn.part(len(data.train), len(learn)), "select": asked(data.select),
                   "test": asked(data.test)})
