"""Turns image files into pixels: upright, RGB, square, 8 bits.

Files of more than 8 bits a channel (12-bit cameras, X-rays, depth) do not say how large white is. It is a property of
the whole folder: the smallest of 8, 10, 12, 14 and 16 bits that holds every value of the training images (for
floating-point numbers also 1). So brightness stays comparable between images.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from nas.errors import UserError

LEAST_SIDE = 4  # pixels; anything smaller is a tracking pixel or a mistake, not a picture
LEVELS = tuple(2**bits - 1 for bits in (8, 10, 12, 14, 16))
SLACK = 0.01  # that floating-point images may leave their range by: resizing overshoots
ORIENTATION = 0x0112  # of Exif


@dataclass(frozen=True)
class Whites:
    """Holds the value of white in files of more than 8 bits a channel; None where the images have no such files."""

    integer: int | None = None
    real: int | None = None

    def metadata(self) -> dict[str, str]:
        """Returns entries for an ONNX file's metadata: what whoever runs it divides such pixels by."""
        values = {"white_integer": self.integer, "white_float": self.real}
        return {key: str(value) for key, value in values.items() if value is not None}

    @classmethod
    def from_metadata(cls, kept: dict[str, str]) -> Whites:
        """Reads what ``metadata`` wrote; an ONNX file without these keys has none."""
        integer, real = (int(kept[key]) if kept.get(key, "").isdecimal() else None
                         for key in ("white_integer", "white_float"))
        return cls(integer or None, real or None)

    def __str__(self) -> str:
        """Returns what is said to a reader, ``files of 16 or 32 bits hold 12 bits: value / 4095``; empty where there
        are none.
        """
        integer = (f"files of 16 or 32 bits hold {self.integer.bit_length()} bits: value / {self.integer}"
                   if self.integer else "")
        return ", ".join(filter(None, (integer, f"floating-point files: value / {self.real}" if self.real else "")))


FULL, NARROW = Whites(LEVELS[-1], 1), Whites()


class Decoded(NamedTuple):
    """Holds images uint8 [n, 3, size, size], channels_last, and how many reach above white and are cut there."""

    images: torch.Tensor
    cut: int


class _Wide(NamedTuple):
    """Holds values of more than 8 bits, [h, w] or [h, w, channels]; ``coarse``: of 16 bits the lower 8 are lost."""

    values: npt.NDArray[Any]
    coarse: bool = False


def whites(files: Sequence[Path]) -> Whites:
    """Finds the white of a folder by its training images; reads those of more than 8 bits, of others the headers alone.

    Raises UserError for a file whose values are negative, above 16 bits or no numbers.
    """
    integer, real = 0.0, 0.0
    with _workers() as pool:
        for start in range(0, len(files), 256):
            read = partial(_peak, enough=integer > LEVELS[-2])
            for peak, is_real in pool.map(read, files[start : start + 256]):
                integer, real = (integer, max(real, peak)) if is_real else (max(integer, peak), real)
    return Whites(_level(integer, LEVELS), _level(real / (1 + SLACK), (1, *LEVELS)))


def _level(peak: float, levels: Sequence[int]) -> int | None:
    return next(level for level in levels if peak <= level) if peak > 0 else None


def _peak(file: Path, enough: bool) -> tuple[float, bool]:
    """Returns the largest value of a file, and whether it is a floating-point one; 0 for 8 bits, 1 if all black.

    Where ``enough`` is known of the bits of whole numbers, only floating-point files are read; others are 0.
    """
    with opened(file) as image:
        if not _is_wide(image) or (enough and image.mode != "F"):
            return 0.0, False
        try:
            values = _wide(image, file).values
            _check_range(values)
            return max(float(values.max()), 1e-6 if image.mode == "F" else 1.0), image.mode == "F"
        except Exception as error:
            raise unreadable(file, error) from error


def decoded(files: Sequence[Path], size: int, whites: Whites = FULL) -> Decoded:
    """Decodes files into pixels, in their order. Raises UserError naming a file that cannot be read."""
    out = torch.empty((len(files), size, size, 3), dtype=torch.uint8)
    pixels = out.numpy()

    def fill(index: int) -> bool:
        pixels[index], cut = _square(files[index], size, whites)
        return cut

    with _workers() as pool:
        cut = sum(pool.map(fill, range(len(files))))
    return Decoded(out.permute(0, 3, 1, 2), cut)


def square(file: Path, size: int, whites: Whites = FULL) -> npt.NDArray[np.uint8]:
    """Decodes a file to uint8 [size, size, 3]: upright, RGB, the short side resized to ``size``, the centre kept."""
    return _square(file, size, whites)[0]


def _square(file: Path, size: int, whites: Whites) -> tuple[npt.NDArray[np.uint8], bool]:
    with opened(file) as image:
        try:
            image.draft("RGB", (2 * size, 2 * size))  # large JPEGs: decode at half, a quarter ... but not below twice
            narrow, cut = _narrowed(image, file, whites) if _is_wide(image) else (image, False)
            upright = _rgb(ImageOps.exif_transpose(narrow))
        except Exception as error:  # Pillow's decoders raise anything on broken bytes
            raise unreadable(file, error) from error
    width, height = upright.size
    side = min(width, height)
    if side < LEAST_SIDE:
        raise UserError(f"{file}: {width}x{height} is too small, sides start at {LEAST_SIDE} pixels; remove it")
    left, top = (width - side) / 2, (height - side) / 2
    # cropped first and then resized: the same pixels, and a long thin image cannot fill the memory
    cropped = upright.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    return np.asarray(cropped), cut


def _rgb(image: Image.Image) -> Image.Image:
    return (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")


def _narrowed(image: ImageFile.ImageFile, file: Path, whites: Whites) -> tuple[Image.Image, bool]:
    """Returns the image with 8 bits a channel, and whether values above white were cut."""
    wide = _wide(image, file)
    white = whites.real if image.mode == "F" else whites.integer
    if white is None:
        raise ValueError("more than 8 bits a channel, and none of the training images has; save all alike")
    _check_range(wide.values)
    if wide.coarse and white < LEVELS[-1]:
        raise ValueError(f"colour of 16 bits a channel, of which only the upper 8 can be read, and the values fill "
                         f"{white.bit_length()} bits; save it as PNG, or with 8 bits")
    scaled = np.rint(wide.values * (255 / white)).clip(0, 255).astype(np.uint8)
    narrow = Image.fromarray(scaled[..., 0] if scaled.ndim == 3 and scaled.shape[2] < 3 else scaled[..., :3]
                             if scaled.ndim == 3 else scaled)
    narrow.getexif()[ORIENTATION] = image.getexif().get(ORIENTATION, 1)
    return narrow, bool(wide.values.max() > white * (1 + SLACK * (image.mode == "F")))


def _is_wide(image: ImageFile.ImageFile) -> bool:
    """Says whether a file, whose header was read, has more than 8 bits a channel."""
    return image.mode.startswith("I") or image.mode == "F" or any(";16" in str(tile[3]) for tile in image.tile)


def _wide(image: ImageFile.ImageFile, file: Path) -> _Wide:
    """Returns the values of an image of more than 8 bits a channel, in full where Pillow or torchvision can read them.

    Of colours in other files than PNG, Pillow reads only the upper 8 bits.
    """
    if image.mode.startswith("I") or image.mode == "F":
        return _Wide(np.asarray(image).astype(np.float64))
    if image.format == "PNG":
        from torchvision.io import ImageReadMode, decode_image

        content = torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)
        return _Wide(decode_image(content, ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy().astype(np.float64))
    return _Wide(np.asarray(image.convert("RGB")).astype(np.float64) * 256 + 255, coarse=True)


def _check_range(values: npt.NDArray[Any]) -> None:
    """Raises ValueError for values that no bit depth explains."""
    if not np.isfinite(values).all():
        raise ValueError("pixels that are no numbers; save it with 8 or 16 bits")
    low, high = float(values.min()), float(values.max())
    if low < -SLACK or high > LEVELS[-1]:
        raise ValueError(f"values from {low:g} to {high:g}, where 0 to {LEVELS[-1]} are known; save it with 8 or 16 "
                         "bits")


def shortest_sides(files: Iterable[Path]) -> list[int]:
    """Returns the shorter side of each file in pixels, by its header."""
    sides = []
    for file in files:
        with opened(file) as image:
            sides.append(min(image.size))
    return sides


def opened(file: Path) -> ImageFile.ImageFile:
    """Opens an image, of which only the header is read. Raises UserError."""
    try:
        return Image.open(file)
    except Exception as error:
        raise unreadable(file, error) from error


def unreadable(file: Path, error: Exception) -> UserError:
    """Returns the error for a file that could not be read."""
    if isinstance(error, UnidentifiedImageError):  # its text repeats the path
        return UserError(f"{file}: not an image that can be read; remove or replace it")
    return UserError(f"{file}: cannot be read ({' '.join(str(error).split())}); remove or replace it")


def _workers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1))  # Pillow decodes outside the GIL
