"""Changes images by operations that a policy draws for each of them: TrivialAugment or RandAugment.

Operations are torchvision's, ranges those of the papers. Draws come from a generator, which torchvision's own classes
do not take: networks that train beside each other in threads would draw from one global generator. Images of a batch
that drew the same operation at the same strength are changed in one call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

LEVELS = 31  # of strength, the weakest of which is 0
TURN_OF_SIGNS = 30.0  # degrees: a 6 that is turned further may be a 9, an arrow to the left one that points up
LARGEST_SHIFT = 150 / 331  # of the side, RandAugment's: TrivialAugment's 32 pixels leave nothing of a small image
Drawn = tuple[str, float]  # an operation and its strength, from -1 to 1


@dataclass(frozen=True)
class Ranges:
    """Holds how far operations go at full strength.

    ``shear`` is a slope, ``shift`` in pixels, ``turn`` in degrees, ``blend`` the largest change of a factor of 1
    (brightness, colour, contrast, sharpness), ``bits`` how many of 8 posterising takes away.
    """

    shear: float
    shift: float
    turn: float
    blend: float
    bits: int


def _sheared(images: Tensor, x: float, y: float) -> Tensor:
    degrees = [math.degrees(math.atan(slope)) for slope in (x, y)]
    sheared: Tensor = F.affine(images, angle=0.0, translate=[0, 0], scale=1.0, shear=degrees, center=[0, 0])
    return sheared


def _shifted(images: Tensor, x: float, y: float) -> Tensor:
    shifted: Tensor = F.affine(images, angle=0.0, translate=[int(x), int(y)], scale=1.0, shear=[0.0, 0.0])
    return shifted


# (uint8 [N, 3, S, S], strength, ranges) -> uint8 [N, 3, S, S]; what comes in from outside of an image is black
OPERATIONS: dict[str, Callable[[Tensor, float, Ranges], Tensor]] = {
    "identity": lambda images, strength, most: images,
    "shear-x": lambda images, strength, most: _sheared(images, strength * most.shear, 0),
    "shear-y": lambda images, strength, most: _sheared(images, 0, strength * most.shear),
    "translate-x": lambda images, strength, most: _shifted(images, strength * most.shift, 0),
    "translate-y": lambda images, strength, most: _shifted(images, 0, strength * most.shift),
    "rotate": lambda images, strength, most: F.rotate(images, strength * most.turn),
    "brightness": lambda images, strength, most: F.adjust_brightness(images, 1 + strength * most.blend),
    "color": lambda images, strength, most: F.adjust_saturation(images, 1 + strength * most.blend),
    "contrast": lambda images, strength, most: F.adjust_contrast(images, 1 + strength * most.blend),
    "sharpness": lambda images, strength, most: F.adjust_sharpness(images, 1 + strength * most.blend),
    "posterize": lambda images, strength, most: F.posterize(images, 8 - round(abs(strength) * most.bits)),
    "solarize": lambda images, strength, most: F.solarize(images, 255 * (1 - abs(strength))),
    "autocontrast": lambda images, strength, most: F.autocontrast(images),
    "equalize": lambda images, strength, most: F.equalize(images),
}


@dataclass(frozen=True)
class Policy:
    """Draws ``operations`` for each image, each at a level that is drawn as well, or is always ``level``."""

    title: str
    operations: int
    level: int | None
    whole: Ranges  # of the paper

    def ranges(self, size: int, mirrored: bool) -> Ranges:
        """Returns the ranges for images of a side; images that must not be mirrored are signs, and turned less."""
        turn = self.whole.turn if mirrored else min(self.whole.turn, TURN_OF_SIGNS)
        return replace(self.whole, shift=min(self.whole.shift, LARGEST_SHIFT * size), turn=turn)

    def describe(self, size: int, mirrored: bool) -> str:
        """Describes what an image of a side gets."""
        many = f"{self.operations} operations" if self.operations > 1 else "one operation"
        most, part = self.ranges(size, mirrored), 1.0 if self.level is None else self.level / (LEVELS - 1)
        return (f"{many} of {self.title} an image (turned by up to {part * most.turn:.0f} degrees, shifted by up to "
                f"{int(part * most.shift)} pixels, brightness, contrast and others)")

    def draw(self, count: int, generator: torch.Generator) -> list[list[Drawn]]:
        """Draws the operations of ``count`` images, for each on its own, in the order in which they are applied."""
        names, shape = list(OPERATIONS), (count, self.operations)
        chosen = torch.randint(len(names), shape, generator=generator)
        levels = self.level if self.level is not None else torch.randint(LEVELS, shape, generator=generator)
        signs = 2 * torch.randint(2, shape, generator=generator) - 1
        return [[(names[index], level / (LEVELS - 1)) for index, level in zip(*row, strict=True)]
                for row in zip(chosen.tolist(), (signs * levels).tolist(), strict=True)]

    def apply(self, images: Tensor, drawn: Sequence[Sequence[Drawn]], mirrored: bool) -> Tensor:
        """Applies to each image what was drawn for it: uint8 [N, 3, S, S] -> the same, in the same memory layout."""
        images, most = images.clone(), self.ranges(images.shape[-1], mirrored)
        for step in zip(*drawn, strict=True):
            alike: dict[Drawn, list[int]] = {}
            for index, operation in enumerate(step):
                alike.setdefault(operation, []).append(index)
            for (name, strength), which in alike.items():
                images[which] = OPERATIONS[name](images[which], strength, most)
        return images


POLICIES = {
    # Mueller and Hutter, arXiv 2103.10158, section 3: the wide space
    "trivialaugment": Policy("TrivialAugment", 1, None, Ranges(shear=0.99, shift=32, turn=135, blend=0.99, bits=6)),
    # Cubuk et al., arXiv 1909.13719; two operations at level 9 of 30 are torchvision's defaults
    "randaugment": Policy("RandAugment", 2, 9, Ranges(shear=0.3, shift=math.inf, turn=30, blend=0.9, bits=4)),
}
