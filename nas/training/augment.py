"""Changes whole batches of training images at random: shifts and mirrors them, draws from policies, erases parts.

Shifts and flips are one gather of pixels, no loop over images. The recipe is the usual one for small images (He et al.
2016, section 4.2: pad, crop back at random, flip), with reflected borders instead of zeros.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from nas.errors import UserError, setting
from nas.files import nearest
from nas.training import mixing
from nas.training.augmentation import Augmentation

if TYPE_CHECKING:
    from nas.training.policies import Policy

# kind -> (the largest shift is the side divided by this, flips); digits and other signs must not be mirrored
KINDS: dict[str, tuple[int | None, bool]] = {"none": (None, False), "crop": (16, False), "flip-crop": (8, True)}

ALL = slice(None)
ERASED = (0.02, 0.33)  # of an image's area, and how much higher than wide: torchvision's
ASPECT = (0.3, 3.3)


def check_augmentation(kind: str) -> None:
    """Raises UserError for an augmentation that does not exist."""
    if kind not in KINDS:
        raise UserError(f"{setting('train.augment')}: no {kind!r}; {nearest(kind, KINDS)}")


def describe(kind: str, size: int) -> str:
    """Describes what an augmentation does to images of a size."""
    part, flips = KINDS[kind]
    shifted = f"shifted by up to {max(1, size // part)} pixels" if part else "none"
    return f"{shifted}{', half of them mirrored left to right' if flips else ''} ({kind})"


def describe_more(how: Augmentation, size: int) -> str:
    """Describes what images of a size get on top of shifts, each with the setting that asks for it; empty for nothing.
    """
    parts = []
    if how.policy != "none":
        what = _policy(how.policy).describe(size, KINDS[how.kind][1])
        parts.append(f"{what} ({setting('train.policy', how.policy)})")
    if how.erase:
        parts.append(f"a rectangle of {100 * how.erase:g} % of them erased ({setting('train.erase', how.erase)})")
    if how.mix != "none":
        parts.append(f"in fine-tuning pairs of images and labels mixed by {mixing.KINDS[how.mix]} "
                     f"({setting('train.mix', how.mix)})")
    return "; ".join(parts)


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


def _policy(name: str) -> Policy:
    from nas.training.policies import POLICIES  # loads torchvision, which takes a second

    return POLICIES[name]


def _positions(count: int, size: int, most: int, generator: torch.Generator) -> torch.Tensor:
    """Returns [count, size] source positions of a line shifted by -most .. most, reflected at both ends."""
    shift = torch.randint(-most, most + 1, (count, 1), generator=generator)
    position = (torch.arange(size) + shift).abs()
    return torch.where(position < size, position, 2 * (size - 1) - position)


def changed(images: torch.Tensor, how: Augmentation, generator: torch.Generator, share: slice = ALL) -> torch.Tensor:
    """Shifts and flips images as ``augmented`` does, then applies what a policy draws for each of them."""
    count, images = len(images), augmented(images, how.kind, generator, share)
    if how.policy == "none":
        return images
    policy = _policy(how.policy)
    return policy.apply(images, policy.draw(count, generator)[share], KINDS[how.kind][1])


def erased(images: torch.Tensor, probability: float, generator: torch.Generator, count: int,
           share: slice = ALL) -> torch.Tensor:
    """Sets a rectangle of some images to 0, which is the mean of normalised ones: float [B, C, S, S] -> the same.

    Random erasing (Zhong et al., arXiv 1708.04896); a rectangle larger than the image is cut to leave a line of it.
    ``generator`` draws for all ``count`` images of a batch, of which ``images`` are the ``share``.
    """
    if not probability:
        return images
    side, of = images.shape[-1], (count, 1)
    hit = torch.rand(of, generator=generator) < probability
    area = torch.empty(of).uniform_(*ERASED, generator=generator) * side**2
    aspect = torch.empty(of).uniform_(*map(math.log, ASPECT), generator=generator).exp()
    rows = hit & _inside(side, (area * aspect).sqrt(), generator)
    columns = _inside(side, (area / aspect).sqrt(), generator)
    within = (rows[:, None, :, None] & columns[:, None, None, :])[share]
    return images.clone().masked_fill_(within.to(images.device), 0.0)


def _inside(side: int, length: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Returns [count, side]: the lines of a stretch of each ``length`` [count, 1], somewhere on a side."""
    length = length.round().clamp(1, side - 1)
    start = (torch.rand(length.shape, generator=generator) * (side - length + 1)).floor()
    line = torch.arange(side)
    return (line >= start) & (line < start + length)
