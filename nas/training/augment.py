"""Crops and flips whole batches of images at random: one gather of pixels, no loop over images.

The recipe is the usual one for small images (He et al. 2016, section 4.2: pad, crop back at random, flip), with
reflected borders instead of zeros.
"""

from __future__ import annotations

import torch

from nas.errors import UserError, setting
from nas.files import nearest

# kind -> (the largest shift is the side divided by this, flips); digits and other signs must not be mirrored
KINDS: dict[str, tuple[int | None, bool]] = {"none": (None, False), "crop": (16, False), "flip-crop": (8, True)}

ALL = slice(None)


def check_augmentation(kind: str) -> None:
    """Raises UserError for an augmentation that does not exist."""
    if kind not in KINDS:
        raise UserError(f"{setting('train.augment')}: no {kind!r}; {nearest(kind, KINDS)}")


def describe(kind: str, size: int) -> str:
    """Describes what an augmentation does to images of a size."""
    part, flips = KINDS[kind]
    shifted = f"shifted by up to {max(1, size // part)} pixels" if part else "none"
    return f"{shifted}{', half of them mirrored left to right' if flips else ''} ({kind})"


def augmented(images: torch.Tensor, kind: str, generator: torch.Generator, share: slice = ALL) -> torch.Tensor:
    """Shifts and flips every image of a batch on its own: uint8 [B, C, S, S] -> the same shape in channels_last.

    With a ``share`` only those images are returned, as they are in the whole batch: ``generator`` draws for all.
    """
    check_augmentation(kind)
    part, flips = KINDS[kind]
    if part is None:
        return images[share]
    count, channels, size, _ = images.shape
    most = max(1, size // part)
    rows = _positions(count, size, most, generator)
    columns = _positions(count, size, most, generator)
    if flips:
        flipped = torch.randint(2, (count, 1), generator=generator).bool()
        columns = torch.where(flipped, columns.flip(1), columns)
    images, rows, columns = images[share], rows[share], columns[share]
    count = len(images)
    rows += torch.arange(count)[:, None] * size
    pixels = (rows[:, :, None] * size + columns[:, None, :]).flatten().to(images.device)
    # whole pixels as rows of one matrix: three times faster than indexing the four dimensions
    picked = images.permute(0, 2, 3, 1).reshape(-1, channels).index_select(0, pixels)
    return picked.view(count, size, size, channels).permute(0, 3, 1, 2)


def _positions(count: int, size: int, most: int, generator: torch.Generator) -> torch.Tensor:
    """Returns [count, size] source positions of a line shifted by -most .. most, reflected at both ends."""
    shift = torch.randint(-most, most + 1, (count, 1), generator=generator)
    position = (torch.arange(size) + shift).abs()
    return torch.where(position < size, position, 2 * (size - 1) - position)
