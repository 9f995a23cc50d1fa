"""Turns the pixels of an image into what a network trained elsewhere reads, by one rule for every such network.

What the command line says counts, else what the file's metadata say, else ImageNet's mean and deviation. Every command
that shows images to such a network takes it from here and says which of the three it was.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nas.errors import UserError, setting
from nas.training.data import Data

Triple = tuple[float, float, float]
IMAGENET: tuple[Triple, Triple] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALES = {"pixels / 255": 1.0, "pixels": 255.0}  # of metadata -> what the value 255 becomes
LEAST_STD = 1 / 256  # of the scale, about one grey level: less is a deviation in other units than the scale


@dataclass(frozen=True)
class Preprocessing:
    """Computes a network's input as ``(pixel / 255 * scale - mean) / std``, by channel in the order red, green, blue.

    ``source`` says where that comes from.
    """

    mean: Triple
    std: Triple
    scale: float
    source: str

    def applied(self, data: Data) -> Data:
        """Returns the images, normalised by this: ``Data`` has mean and deviation of pixels in [0, 1]."""
        return replace(data, mean=tuple(v / self.scale for v in self.mean), std=tuple(v / self.scale for v in self.std))

    @staticmethod
    def from_flags(mean: str | None, std: str | None, scale: float | None) -> Preprocessing | None:
        """Reads mean, deviation and scale as the user gave them; a scale alone has mean 0, deviation 1; nothing: None.

        Raises UserError for one of mean and deviation alone, and for what cannot be.
        """
        if mean is None and std is None and scale is None:
            return None
        if (mean is None) != (std is None):
            given, other = ("mean", "std") if std is None else ("std", "mean")
            raise UserError(f"{setting(given)}: has no meaning without {setting(other)}; give both "
                            f"({setting('mean', 0)} {setting('std', 1)} changes nothing)")
        values = {"mean": mean, "std": std, "scale": scale}
        given = " ".join(setting(name) for name, value in values.items() if value is not None)
        return _checked(given, _triple(setting("mean"), "0" if mean is None else mean),
                        _triple(setting("std"), "1" if std is None else std), 1.0 if scale is None else scale, given)

    @staticmethod
    def from_metadata(metadata: Mapping[str, str], path: Path, given: Preprocessing | None = None) -> Preprocessing:
        """Returns ``given``, else what the metadata of an ONNX file say, else ImageNet's. Raises UserError for
        nonsense.
        """
        if given is not None:
            return given
        present = [key for key in ("mean", "std") if key in metadata]
        if len(present) < 2:
            has = f"the file's metadata have {present[0]} alone" if present else "the file has no mean and std"
            return imagenet(has)
        where, scale = f"{path}: its metadata", metadata.get("scale", "pixels / 255")
        if scale not in SCALES:
            raise UserError(f"{where}: scale {scale!r}, known are {' and '.join(map(repr, SCALES))}; give "
                            f"{setting('mean')}, {setting('std')} and {setting('scale')}")
        mean, std = (_triple(f"{where}: {key}", metadata[key]) for key in ("mean", "std"))
        return _checked(where, mean, std, SCALES[scale], "the file's metadata")


def imagenet(why: str) -> Preprocessing:
    """Returns the preprocessing of ImageNet, usual for published networks; ``why`` says what the file lacks."""
    return Preprocessing(*IMAGENET, 1.0, f"ImageNet's: {why}")


def check_input(where: object, shape: Sequence[Any], floats: bool) -> None:
    """Raises UserError unless a network reads images as they are read here: float [N, 3, S, S]."""
    sides = list(shape)
    if len(sides) != 4:
        raise UserError(f"{where}: its input is {sides}, expected one image [N, 3, S, S]")
    if sides[1] != 3 and sides[3] == 3:
        raise UserError(f"{where}: its input {sides} has channels last; export it with channels first, [N, 3, S, S]")
    if isinstance(sides[1], int) and sides[1] != 3:
        raise UserError(f"{where}: its input {sides} has {sides[1]} channel(s), and images are read with 3 (RGB); "
                        "export it with an input [N, 3, S, S]")
    if not floats:
        raise UserError(f"{where}: its input is no floating-point one; export it with a float input [N, 3, S, S]")
    if isinstance(sides[2], int) and isinstance(sides[3], int) and sides[2] != sides[3]:
        raise UserError(f"{where}: its images are {sides[2]}x{sides[3]}, and images are read as squares; export it "
                        "with an input [N, 3, S, S]")


def _triple(where: str, text: str) -> Triple:
    """Reads three numbers, or one for all channels. Raises UserError."""
    words = re.split(r"[,\s]+", text.strip(" \t\n[]()"))
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = []
    if len(values) not in (1, 3) or not all(map(math.isfinite, values)):
        raise UserError(f"{where} {text!r}: expected 3 numbers (red, green, blue), as in 0.5,0.5,0.5, or one for all")
    red, green, blue = values * 3 if len(values) == 1 else values
    return red, green, blue


def _checked(where: str, mean: Triple, std: Triple, scale: float, source: str) -> Preprocessing:
    """Makes a preprocessing of values that images can have, else raises UserError: units and scale often disagree."""
    if not 0 < scale < math.inf:
        raise UserError(f"{where}: scale {scale:g}: what the pixel value 255 becomes, a number above 0")
    if not all(0 <= value <= scale for value in mean):
        hint = (f"; for a mean of pixels in 0 .. 255 give {setting('scale', 255)}"
                if 0 <= min(mean) <= max(mean) <= 255 else "")
        raise UserError(f"{where}: mean {_shown(mean)} is outside 0 .. {scale:g}, the range of images{hint}")
    if not all(value >= LEAST_STD * scale for value in std):
        raise UserError(f"{where}: std {_shown(std)}: must be above 0, and less than one grey level of a range of 0 .. "
                        f"{scale:g} is that of no images")
    return Preprocessing(mean, std, scale, source)


def _shown(values: Triple) -> str:
    return ", ".join(f"{value:g}" for value in values)
