"""Loads images into memory, splits them once for the search, and hands them out in batches.

Everything is decoded to uint8 before training starts and augmented a batch at a time (``augment.py``), so that two
cores keep up. Splits: ``train`` for weights, ``gate`` for architecture parameters, ``select`` for choosing candidates
(``splits.py``). ``test`` is read once, at the end, and is the same for every seed and limit.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from nas.config.fields import SIDES
from nas.errors import UserError, setting
from nas.files import nearest
from nas.paths import BUILT_IN
from nas.training.augment import ALL, changed, check_augmentation, erased
from nas.training.augmentation import Augmentation
from nas.training.cluttered import cluttered
from nas.training.epochs import epoch_size
from nas.training.folder import folder
from nas.training.image_source import ImageSource
from nas.training.pixels import NARROW, Whites
from nas.training.sources import Source, cifar10, digits
from nas.training.splits import divide, fixed_parts, images_needed, origins

SOURCES: dict[str, Callable[[Path | None], Source]] = {
    "cluttered": lambda data_dir: cluttered(), "digits": lambda data_dir: digits(), "cifar10": cifar10}
MEMORY = 0.6  # of what is free
EXTREME = 0.001  # of all pixels may be darker, or brighter, than the images are said to reach


@dataclass(frozen=True)
class Split:
    """Holds one part of the data: ``images`` uint8 [N, C, H, W] (stored channels_last), ``labels`` int64 [N]."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, start: int, stop: int) -> Split:
        """Returns the images from ``start`` to ``stop`` as a view."""
        return Split(self.images[start:stop], self.labels[start:stop])

    def to(self, device: torch.device | str) -> Split:
        """Copies the images to another device; batches are then augmented there."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Data:
    """Holds a data set to train on; ``mean`` and ``std`` are per channel of the train split, for pixels in [0, 1]."""

    name: str
    classes: tuple[str, ...]
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    learn: Split  # train and gate in one piece, for fine-tuning; those two are views of it
    train: Split
    gate: Split
    select: Split
    test: Split
    source: ImageSource
    indices: dict[str, list[int]]  # split -> numbers of its images in the source
    augment: str = "flip-crop"  # what suits these images: see augment.KINDS
    whites: Whites = NARROW  # what files of more than 8 bits were divided by

    @property
    def in_ch(self) -> int:
        return 3

    def at(self, size: int) -> Data:
        """Returns the same images for networks of another input side: batches are resized, no image is kept twice."""
        return self if size == self.size else replace(self, size=size)


def load(name: str, *, data_dir: Path | None, size: int | None, seed: int, limit: int | None = None,
         whites: Whites | None = None) -> Data:
    """Loads a data set: a built-in one by its name, or a folder of images by its path (``./digits`` if so called).

    ``data_dir`` is where CIFAR-10 lies; ``size`` is the input side (default: from the source); ``limit`` is the most
    images that train, gate and select have together; ``whites`` are those that a network was trained with (default: by
    the training images). Raises UserError naming what is wrong with the path or a number, and for images of one colour.
    """
    _check_numbers(size, seed, limit)
    check_data_dir(name, data_dir)
    source = _source(name, data_dir)
    size = size or source.size
    chosen = divide(source, seed, limit)
    _check_memory(source.name, sum(map(len, chosen.values())), size)
    whites = _whites(source, whites)
    count = len(chosen["train"])
    pools = {"learn": np.concatenate((chosen["train"], chosen["gate"])), "select": chosen["select"],
             "test": chosen["test"]}
    read = {pool: source.read(which, size, whites) for pool, which in pools.items()}
    learn, select, test = (Split(read[pool].images, torch.from_numpy(source.labels[which]))
                           for pool, which in pools.items())
    splits = {"train": learn.part(0, count), "gate": learn.part(count, len(learn)), "select": select, "test": test}
    mean, std, reach = _statistics(source.origin, splits["train"].images)
    counts = {part: torch.bincount(split.labels, minlength=len(source.classes)).tolist()
              for part, split in splits.items()}
    return Data(
        name=source.name,
        classes=source.classes,
        size=size,
        mean=mean,
        std=std,
        source=ImageSource(
            origin=source.origin, fingerprint=fingerprint(splits, source.classes), available=len(source.labels),
            limit=limit, seed=seed, sizes={part: len(split) for part, split in splits.items()},
            classes=list(source.classes), class_counts=counts, splits=origins(source), needed=images_needed(source),
            pixels=source.pixels, ignored=list(source.ignored), skipped=dict(source.skipped), reach=list(reach),
            cut={pool: made.cut for pool, made in read.items()}),
        indices={part: which.tolist() for part, which in chosen.items()},
        augment=source.augment,
        whites=whites,
        learn=learn,
        **splits,
    )


def without_images(name: str, classes: Sequence[str], size: int, mean: Sequence[float], std: Sequence[float], *,
                   source: ImageSource | None = None, augment: str = "flip-crop", whites: Whites = NARROW) -> Data:
    """Makes a data set that has no images: enough for whatever needs to know what a network reads."""
    none = Split(torch.empty(0, 3, size, size, dtype=torch.uint8), torch.empty(0, dtype=torch.int64))
    return Data(name=name, classes=tuple(classes), size=size, mean=tuple(mean), std=tuple(std), learn=none, train=none,
                gate=none, select=none, test=none, source=source or ImageSource(origin="no images"), indices={},
                augment=augment, whites=whites)


def normalise(images: torch.Tensor, data: Data, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normalises uint8 [B, C, H, W] to ``dtype``, channels_last, mean 0 and deviation 1 over the train split, and
    resizes.
    """
    count, channels, height, width = images.shape
    # lines of width * channels numbers: the layout stays channels_last and the arithmetic vectorises
    lines = images.permute(0, 2, 3, 1).reshape(count * height, width * channels).float()
    shift, scale = (torch.tensor(v, device=images.device).repeat(width) for v in (data.mean, data.std))
    lines.sub_(shift * 255).mul_(1 / (scale * 255))
    return resized(lines.view(count, height, width, channels).permute(0, 3, 1, 2), data.size).to(dtype)


def resized(images: torch.Tensor, size: int) -> torch.Tensor:
    """Resizes float32 [B, C, H, W] to [B, C, size, size], channels_last: bilinear, antialiased, as images are read.

    Elastic resolution resizes the batch (Once-for-All, arXiv 1908.09791, section 3.3: a size is drawn for each).
    """
    if images.shape[-1] == size:
        return images
    scaled = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
    return scaled.contiguous(memory_format=torch.channels_last)


def batches(
    split: Split, data: Data, batch: int, *, generator: torch.Generator, augment: Augmentation, share: slice = ALL,
    most: int | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields one epoch of (float32 [B, C, H, W], int64 [B]), shuffled and augmented by ``generator`` (a CPU one).

    The last incomplete batch is dropped, unless it is the only one. With a ``share`` only those images of each batch;
    with ``most`` an epoch is a random part of so many images. Raises UserError for an unknown kind of ``augment``.
    """
    check_augmentation(augment.kind)
    return _epoch(split, data, batch, generator, augment, share, most)


def _epoch(
    split: Split, data: Data, batch: int, generator: torch.Generator, augment: Augmentation, share: slice,
    most: int | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    order = torch.randperm(len(split), generator=generator).to(split.images.device)
    for start in range(0, max(1, epoch_size(len(split), most) - batch + 1), batch):
        chosen = order[start : start + batch]
        images = normalise(changed(split.images[chosen], augment, generator, share), data)
        yield erased(images, augment.erase, generator, len(chosen), share), split.labels[chosen[share]]


def eval_batches(split: Split, data: Data, batch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields (float32 [B, C, H, W], int64 [B]) of the whole split in order; the last batch may be smaller."""
    for start in range(0, len(split), batch):
        yield normalise(split.images[start : start + batch], data), split.labels[start : start + batch]


def free_bytes() -> int | None:
    """Returns the memory that this process may still take, None where the system does not say."""
    free = None
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        lines = Path("/proc/meminfo").read_text().splitlines()  # counts what caches would give back, too
        free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), free)
        free = min(free, int(Path("/sys/fs/cgroup/memory.max").read_text()))  # a container's limit
    except (OSError, ValueError, AttributeError):  # not Linux, or no limit ("max")
        pass
    return free


def _check_numbers(size: int | None, seed: int, limit: int | None) -> None:
    if size is not None and not SIDES[0] <= size <= SIDES[1]:
        raise UserError(f"{setting('size')}: {size} is outside {SIDES[0]} .. {SIDES[1]} pixels")
    if seed < 0:
        raise UserError(f"{setting('seed')}: {seed} is negative; give 0 or more")
    if limit is not None and limit < 1:
        raise UserError(f"{setting('limit')}: {limit} images are none to train on; give a number above 0")


def check_data_dir(name: str, data_dir: Path | str | None) -> None:
    """Raises UserError where the folder of CIFAR-10 is given for other images."""
    if data_dir is not None and name != "cifar10":
        raise UserError(f"{setting('data_dir')}: has no effect on {name}: it is the folder that cifar10 lies in; leave "
                        "it out")


def _source(name: str, data_dir: Path | None) -> Source:
    if name in SOURCES:
        return SOURCES[name](data_dir)
    path = Path(os.path.expanduser(name))
    if name and (path.exists() or len(path.parts) > 1):
        return folder(path)
    raise UserError(f"{setting('data')}: no {name!r} and no such folder; {nearest(name, BUILT_IN)}")


def _whites(source: Source, given: Whites | None) -> Whites:
    """Returns the values of white given, else those of the training images; looks at no image of the test split."""
    return given if given not in (None, NARROW) else source.whites(fixed_parts(source)[0])


def _check_memory(name: str, count: int, size: int) -> None:
    need, free = count * 3 * size * size, free_bytes()
    if free is not None and need > MEMORY * free:
        raise UserError(
            f"{name}: {count:,} images at {size}x{size} take {need / 1e9:.1f} GB, more than {MEMORY:.0%} of the "
            f"{free / 1e9:.1f} GB free; give a smaller {setting('size')} or a limit"
        )


def _statistics(origin: str, images: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...], tuple[int, int]]:
    """Returns mean and deviation per channel, in [0, 1], and the levels (of 255) with 0.1 % of the pixels beyond.

    From exact counts, so that threads and chunks do not matter. Raises UserError where all pixels are alike.
    """
    levels = np.arange(256) / 255
    counts = np.zeros((3, 256), np.int64)
    for image in range(0, len(images), 256):  # in chunks, because bincount takes 8 bytes a pixel
        for channel in range(3):
            counts[channel] += np.bincount(images[image : image + 256, channel].flatten().numpy(), minlength=256)
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ levels
    deviation = np.sqrt((share * (levels - mean[:, None]) ** 2).sum(1))
    if ((counts > 0).sum(1) == 1).all():
        colour = ", ".join(str(level) for level in counts.argmax(1))
        raise UserError(f"{origin}: all pixels of the training images are alike (red, green, blue {colour} of 255), so "
                        "there is nothing to learn; look at what the files hold")
    below, total = np.cumsum(counts.sum(0)), counts.sum()
    darkest = int(np.searchsorted(below, EXTREME * total, side="right"))
    reach = darkest, int(np.searchsorted(below, (1 - EXTREME) * total))
    # a channel of one level: one grey level, not a division by zero
    return tuple(mean.tolist()), tuple(np.maximum(deviation, 1 / 255).tolist()), reach


def fingerprint(splits: dict[str, Split], classes: tuple[str, ...]) -> str:
    """Returns 12 hex digits of the hash of images, labels and class names, by which a resumed run compares its data."""
    digest = hashlib.sha256(repr(classes).encode())
    for part, split in splits.items():
        digest.update(f"{part} {tuple(split.images.shape)}".encode())
        digest.update(_bytes(split.images.permute(0, 2, 3, 1)))
        digest.update(_bytes(split.labels))
    return digest.hexdigest()[:12]


def _bytes(values: torch.Tensor) -> memoryview:
    return np.ascontiguousarray(values.cpu().numpy()).data.cast("B")
