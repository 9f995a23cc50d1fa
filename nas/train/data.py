"""Images in memory, split once for the search, and handed out in batches.

Everything is decoded to uint8 before training starts and augmented a batch at a time (``augment.py``), so that two
cores keep up. Splits: ``train`` for weights, ``gate`` for architecture parameters, ``select`` for choosing candidates;
all come out of the source's training images. ``test`` is read once, at the end, and is the same for every seed and
limit.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from nas.config import SIDES
from nas.errors import UserError
from nas.files import nearest
from nas.train import augment as augmentation
from nas.train.folder import folder
from nas.train.sources import Indices, Source, cifar10, digits

HELD_OUT, MOST_HELD_OUT = 0.1, 5000  # gate and select each
FEW, ENOUGH = 300, 1000  # a front cannot be told apart on fewer: data of at least ENOUGH give up to a fifth
TEST = 0.2  # where the source has no test split
MEMORY = 0.6  # of what is free
BUILT_IN = ("digits", "cifar10")


@dataclass(frozen=True)
class Split:
    """One part of the data: ``images`` uint8 [N, C, H, W] (stored channels_last), ``labels`` int64 [N]."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, start: int, stop: int) -> Split:
        """A view of some of them."""
        return Split(self.images[start:stop], self.labels[start:stop])

    def to(self, device: torch.device | str) -> Split:
        """The same images on another device; batches are then augmented there."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Data:
    """A data set ready to train on; ``mean`` and ``std`` are per channel of the train split, for pixels in [0, 1]."""

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
    source: dict[str, Any]  # where from, sizes, seed, class counts, fingerprint
    indices: dict[str, list[int]]  # split -> numbers of its images in the source
    augment: str = "flip-crop"  # what suits these images: see augment.KINDS

    @property
    def in_ch(self) -> int:
        return 3

    def at(self, size: int) -> Data:
        """The same images for networks of another input side: batches of them are resized, they are not kept twice."""
        return self if size == self.size else replace(self, size=size)


def load(name: str, *, data_dir: Path | None, size: int | None, seed: int, limit: int | None = None) -> Data:
    """``digits``, ``cifar10`` or the path of a folder of images (``./digits`` for a folder of that name).

    ``data_dir`` is where CIFAR-10 lies; ``size`` is the input side (default: from the source); ``limit`` is the most
    images that train, gate and select have together. Raises UserError naming what is wrong with the path or a number.
    """
    _check_numbers(size, seed, limit)
    source = _source(name, data_dir)
    size = size or source.size
    chosen = divide(source, seed, limit)
    _check_memory(source.name, sum(map(len, chosen.values())), size)
    count = len(chosen["train"])
    learn = _read(source, np.concatenate((chosen["train"], chosen["gate"])), size)
    splits = {
        "train": learn.part(0, count),
        "gate": learn.part(count, len(learn)),
        "select": _read(source, chosen["select"], size),
        "test": _read(source, chosen["test"], size),
    }
    mean, std = _statistics(splits["train"].images)
    return Data(
        name=source.name,
        classes=source.classes,
        size=size,
        mean=mean,
        std=std,
        source=_provenance(source, splits, seed, limit),
        indices={part: which.tolist() for part, which in chosen.items()},
        augment=source.augment,
        learn=learn,
        **splits,
    )


def description(data: Data) -> dict[str, Any]:
    """What a run's ``data.json`` says of its images."""
    return {"name": data.name, "classes": list(data.classes), "size": data.size, "mean": list(data.mean),
            "std": list(data.std), **data.source}


def recorded(value: dict[str, Any]) -> Data:
    """The inverse of ``description``, without the images: enough to export a network."""
    none = Split(torch.empty(0, 3, value["size"], value["size"], dtype=torch.uint8), torch.empty(0, dtype=torch.int64))
    return Data(
        name=value["name"],
        classes=tuple(value["classes"]),
        size=value["size"],
        mean=tuple(value["mean"]),
        std=tuple(value["std"]),
        source=value,
        indices={},
        learn=none,
        train=none,
        gate=none,
        select=none,
        test=none,
    )


def divide(source: Source, seed: int, limit: int | None = None) -> dict[str, Indices]:
    """Split -> sorted image numbers; disjoint, stratified, every class in each as far as its images reach."""
    labels, pool, classes = source.labels, source.pools["train"], len(source.classes)
    test, select = source.pools.get("test"), source.pools.get("select")
    if test is None:  # the same for every seed: a run may continue from one of another seed
        test, pool = take(labels, pool, max(classes, round(TEST * len(pool))), np.random.default_rng(0))
    rng = np.random.default_rng(seed)
    if limit is not None and limit < 3 * classes:
        raise UserError(f"limit: {limit} is less than 3 images for each of the {classes} classes of {source.origin}")
    if limit is not None and limit < len(pool):
        pool, _ = take(labels, pool, limit, rng, keep=0)
    held_out = max(classes, _held_out(len(pool)))
    if select is None:
        select, pool = take(labels, pool, held_out, rng)
    elif len(select) > (most := min(limit or MOST_HELD_OUT, MOST_HELD_OUT)):
        select, _ = take(labels, select, most, rng, keep=0)
    gate, train = take(labels, pool, held_out, rng)
    splits = {"train": train, "gate": gate, "select": select, "test": test}
    if empty := [part for part, which in splits.items() if not len(which)]:
        raise UserError(f"{source.origin}: too few images, none left for {', '.join(empty)}; give at least 4 a class")
    return splits


def _held_out(images: int) -> int:
    """How many of the training images gate and select get each."""
    few = min(FEW, round(2 * HELD_OUT * images)) if images >= ENOUGH else 0
    return min(MOST_HELD_OUT, max(round(HELD_OUT * images), few))


def take(
    labels: Indices, pool: Indices, count: int, rng: np.random.Generator, keep: int = 1
) -> tuple[Indices, Indices]:
    """(drawn, rest) of ``pool``, sorted: at most ``count``, every class in proportion.

    A class gives at least one image if ``count`` allows, and keeps ``keep``.
    """
    classes, counts = np.unique(labels[pool], return_counts=True)
    order = rng.permutation(pool)
    wanted = zip(classes, quotas(counts, count, keep), strict=True)
    drawn = np.sort(np.concatenate([order[labels[order] == label][:n] for label, n in wanted]))
    return drawn, np.setdiff1d(pool, drawn)


def quotas(counts: Indices, total: int, keep: int) -> Indices:
    """``total`` shared out in proportion to ``counts`` (largest remainder), each from 1 to its count - ``keep``."""
    ideal = counts * (total / counts.sum())
    quota: Indices = np.clip(np.floor(ideal).astype(np.int64), 1, counts - keep)
    for index in np.argsort(np.floor(ideal) - ideal, kind="stable"):
        quota[index] += quota.sum() < total and quota[index] < counts[index] - keep
    while quota.sum() > total:  # the ones that were raised to 1
        quota[quota.argmax()] -= 1
    return quota


def normalise(images: torch.Tensor, data: Data, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """uint8 [B, C, H, W] -> ``dtype``, channels_last, mean 0 and deviation 1 over the train split, at the data's size.
    """
    count, channels, height, width = images.shape
    # lines of width * channels numbers: the layout stays channels_last and the arithmetic vectorises
    lines = images.permute(0, 2, 3, 1).reshape(count * height, width * channels).float()
    shift, scale = (torch.tensor(v, device=images.device).repeat(width) for v in (data.mean, data.std))
    lines.sub_(shift * 255).mul_(1 / (scale * 255))
    return resized(lines.view(count, height, width, channels).permute(0, 3, 1, 2), data.size).to(dtype)


def resized(images: torch.Tensor, size: int) -> torch.Tensor:
    """float32 [B, C, H, W] -> [B, C, size, size], channels_last: bilinear with antialiasing, as images are read.

    Elastic resolution resizes the batch (Once-for-All, arXiv 1908.09791, section 3.3: a size is drawn for each).
    """
    if images.shape[-1] == size:
        return images
    scaled = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
    return scaled.contiguous(memory_format=torch.channels_last)


def batches(
    split: Split, data: Data, batch: int, *, generator: torch.Generator, augment: str, share: slice = augmentation.ALL
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One epoch of (float32 [B, C, H, W], int64 [B]), shuffled and augmented by ``generator`` (a CPU one).

    The last incomplete batch is dropped, unless it is the only one. Of a ``share`` of each batch, the same images.
    Raises UserError for an unknown ``augment``.
    """
    augmentation.check(augment)
    return _epoch(split, data, batch, generator, augment, share)


def _epoch(
    split: Split, data: Data, batch: int, generator: torch.Generator, augment: str, share: slice
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    order = torch.randperm(len(split), generator=generator).to(split.images.device)
    for start in range(0, max(1, len(split) - batch + 1), batch):
        chosen = order[start : start + batch]
        images = augmentation.augmented(split.images[chosen], augment, generator, share)
        yield normalise(images, data), split.labels[chosen[share]]


def eval_batches(split: Split, data: Data, batch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(float32 [B, C, H, W], int64 [B]) of the whole split in order; the last one may be smaller."""
    for start in range(0, len(split), batch):
        yield normalise(split.images[start : start + batch], data), split.labels[start : start + batch]


def free_bytes() -> int | None:
    """Memory that this process may still take, None where the system does not say."""
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
        raise UserError(f"size: {size} is outside {SIDES[0]} .. {SIDES[1]} pixels")
    if seed < 0:
        raise UserError(f"seed: {seed} is negative; give 0 or more")
    if limit is not None and limit < 1:
        raise UserError(f"limit: {limit} images are none to train on")


def _source(name: str, data_dir: Path | None) -> Source:
    if name == "digits":
        return digits()
    if name == "cifar10":
        return cifar10(data_dir)
    path = Path(os.path.expanduser(name))
    if name and (path.exists() or len(path.parts) > 1):
        return folder(path)
    raise UserError(f"data: no {name!r} and no such folder; {nearest(name, BUILT_IN)}")


def _read(source: Source, which: Indices, size: int) -> Split:
    return Split(source.read(which, size), torch.from_numpy(source.labels[which]))


def _check_memory(name: str, count: int, size: int) -> None:
    need, free = count * 3 * size * size, free_bytes()
    if free is not None and need > MEMORY * free:
        raise UserError(
            f"{name}: {count:,} images at {size}x{size} take {need / 1e9:.1f} GB, more than {MEMORY:.0%} of the "
            f"{free / 1e9:.1f} GB free; give a smaller --size or a limit"
        )


def _statistics(images: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation per channel, in [0, 1]; from exact counts, so that threads and chunks do not matter."""
    levels = np.arange(256) / 255
    counts = np.zeros((3, 256), np.int64)
    for image in range(0, len(images), 256):  # in chunks, because bincount takes 8 bytes a pixel
        for channel in range(3):
            counts[channel] += np.bincount(images[image : image + 256, channel].flatten().numpy(), minlength=256)
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ levels
    deviation = np.sqrt((share * (levels - mean[:, None]) ** 2).sum(1))
    # images of one colour: one grey level, not a division by zero
    return tuple(mean.tolist()), tuple(np.maximum(deviation, 1 / 255).tolist())


def _provenance(source: Source, splits: dict[str, Split], seed: int, limit: int | None) -> dict[str, Any]:
    counts = {part: torch.bincount(s.labels, minlength=len(source.classes)).tolist() for part, s in splits.items()}
    return {
        "from": source.origin,
        "sizes": {part: len(split) for part, split in splits.items()},
        "seed": seed,
        "limit": limit,
        "class_counts": counts,
        "fingerprint": fingerprint(splits, source.classes),
    }


def fingerprint(splits: dict[str, Split], classes: tuple[str, ...]) -> str:
    """First 12 hex of the sha256 of the splits' images and labels and the classes' names; a resumed run compares it."""
    digest = hashlib.sha256(repr(classes).encode())
    for part, split in splits.items():
        digest.update(f"{part} {tuple(split.images.shape)}".encode())
        digest.update(_bytes(split.images.permute(0, 2, 3, 1)))
        digest.update(_bytes(split.labels))
    return digest.hexdigest()[:12]


def _bytes(values: torch.Tensor) -> memoryview:
    return np.ascontiguousarray(values.cpu().numpy()).data.cast("B")
