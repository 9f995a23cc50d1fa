"""Draws the built-in images ``cluttered``: a handwritten digit among fragments of others, after the cluttered MNIST of
Mnih et al. 2014 (arXiv 1406.6247, section 4).

They are made of scikit-learn's digits with a fixed seed, in whole numbers alone, so that every machine draws the same.
No handwritten digit, whole or in fragments, is in the images of two pools.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch

from nas.training.pixels import Decoded, Whites
from nas.training.sources import RESIZED, Indices, Source, resized

Greys = npt.NDArray[np.int32]

SEED = 14066247
FRAME = 32  # side of an image in pixels
IMAGES = {"train": 4500, "select": 1000, "test": 1500}
SIXTHS = {"train": (2, 3, 4, 5), "select": (1,), "test": (0,)}  # of the handwritten digits of each class
WIDTHS = 13, 20  # of a digit in pixels
TURNS = -25, 25  # degrees, clockwise
FRAGMENTS, FRAGMENT = 10, 7  # how many, and the side of each in pixels
MIDDLES = 2, 6  # of a digit's 8 pixels: where the middle of a fragment is taken from
INK, FRAGMENT_INK = (176, 256), (112, 256)  # how bright strokes are, of 256
UNIT = 1024  # positions are whole numbers, in 1/1024 pixels
_CHUNK = 512  # images drawn at once, which bounds the memory


@dataclass(frozen=True)
class Pieces:
    """Holds one piece of handwriting in each of N images."""

    digit: Indices  # [N], its number in scikit-learn's collection
    width: Indices  # [N], pixels that the whole digit takes
    turn: Indices  # [N], degrees
    point: Indices  # [N, 2], x and y in the digit, in 1/1024 of its pixels ...
    place: Indices  # [N, 2], ... and where in the frame that point lies, in 1/1024 of the frame's
    ink: Indices  # [N], how bright its strokes are, of 256

    def of(self, which: Indices | slice) -> Pieces:
        """Returns the pieces of some of the images."""
        return Pieces(*(getattr(self, field.name)[which] for field in fields(self)))


def cluttered() -> Source:
    """Returns 7,000 images of 32x32 grey pixels, built in; in every pool the ten classes are equally frequent."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    greys = np.rint(raw.images * (255 / 16)).astype(np.int32)
    layers = plan(raw.target)

    def read(which: Indices, size: int, whites: Whites) -> Decoded:
        images = draw(greys, [layer.of(which) for layer in layers])
        return Decoded(resized(torch.from_numpy(images)[:, None], np.arange(len(which)), size), 0)

    ends = np.cumsum(list(IMAGES.values()))
    return Source(
        name="cluttered",
        origin="scikit-learn load_digits (8x8 grey), each among fragments of others",
        classes=tuple(str(n) for n in raw.target_names),
        labels=raw.target[layers[0].digit].astype(np.int64),
        pools={pool: np.arange(end - count, end) for (pool, count), end in zip(IMAGES.items(), ends, strict=True)},
        size=FRAME,
        augment="crop",
        pixels=RESIZED,
        read=read,
    )


def plan(labels: Indices) -> list[Pieces]:
    """Draws what the images of all pools consist of: a layer of whole digits, then layers of fragments of others."""
    rng = np.random.default_rng(SEED)
    digits = np.concatenate([_dealt(labels, pool, rng) for pool in IMAGES])
    return [_wholes(digits[:, 0], rng), *(_fragments(digits[:, layer], rng) for layer in range(1, digits.shape[1]))]


def _dealt(labels: Indices, pool: str, rng: np.random.Generator) -> Indices:
    """Chooses digits for the images of a pool, [N, 1 + FRAGMENTS]: the one to recognise, and others.

    Each class has as many images as any other, and within a class each digit is used about as often.
    """
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    classes = [which[np.isin(np.arange(len(which)) % 6, SIXTHS[pool])] for which in classes]
    count = IMAGES[pool] // len(classes)
    wholes = np.concatenate([np.resize(rng.permutation(which), count) for which in classes])
    members = np.sort(np.concatenate(classes))
    further = rng.integers(1, len(members), (len(wholes), FRAGMENTS))  # never 0, which is the digit itself
    others = members[(np.searchsorted(members, wholes)[:, None] + further) % len(members)]
    return np.column_stack((wholes, others))


def _wholes(digit: Indices, rng: np.random.Generator) -> Pieces:
    """Draws sizes, turns and places of whole digits."""
    count = len(digit)
    width, turn, ink = (rng.integers(*span, count, endpoint=True) for span in (WIDTHS, TURNS, INK))
    place = placed(width, turn, rng.integers(0, UNIT, (count, 2), endpoint=True))
    return Pieces(digit, width, turn, np.full((count, 2), 4 * UNIT), place, ink)


def placed(width: Indices, turn: Indices, share: Indices) -> Indices:
    """Returns where digits have their middles, [N, 2], ``share`` (of 1024) of the way from the first place to the last
    at which they are whole.

    A digit of 8 pixels has ink on 8.5, because pixels fade into what is beside them.
    """
    cosine, sine = _rotation(turn, width * UNIT)
    half = (abs(cosine) + abs(sine)) * 17 // 32  # of the upright square around the turned one
    return half[:, None] + (FRAME * UNIT - 2 * half[:, None]) * share // UNIT


def _fragments(digit: Indices, rng: np.random.Generator) -> Pieces:
    """Draws which part of each digit is taken, its size and turn, and where in the frame its window lies."""
    count = len(digit)
    width, turn, ink = (rng.integers(*span, count, endpoint=True) for span in (WIDTHS, TURNS, FRAGMENT_INK))
    point = rng.integers(MIDDLES[0] * UNIT, MIDDLES[1] * UNIT, (count, 2), endpoint=True)
    corner = rng.integers(0, FRAME - FRAGMENT, (count, 2), endpoint=True)
    return Pieces(digit, width, turn, point, corner * UNIT + FRAGMENT * UNIT // 2, ink)


def draw(greys: Greys, layers: list[Pieces]) -> npt.NDArray[np.uint8]:
    """Draws images, uint8 [N, 32, 32], of whole digits and square windows of others; the brighter stays on top."""
    wholes, *fragments = layers
    images = np.zeros((len(wholes.digit), FRAME, FRAME), np.uint8)
    for start in range(0, len(images), _CHUNK):
        part = slice(start, start + _CHUNK)
        _paint(images[part], greys, wholes.of(part), FRAME)
        for layer in fragments:
            _paint(images[part], greys, layer.of(part), FRAGMENT)
    return images


def _paint(images: npt.NDArray[np.uint8], greys: Greys, pieces: Pieces, side: int) -> None:
    """Paints what of the pieces is in a window of ``side`` pixels around their places, or of the whole frame."""
    corner = np.clip(pieces.place // UNIT - side // 2, 0, FRAME - side)
    columns, rows = (corner[:, axis, None] + np.arange(side) for axis in (0, 1))
    cells = np.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]
    images[cells] = np.maximum(images[cells], sampled(greys, pieces, columns, rows))


def sampled(greys: Greys, pieces: Pieces, columns: Indices, rows: Indices) -> Greys:
    """Returns the brightness of the pieces at these pixels of the frame, [N, rows, columns], 0 to 255."""
    cosine, sine = (part[:, None, None] for part in _rotation(pieces.turn, greys.shape[1] * UNIT // pieces.width))
    dx = _narrow(columns * UNIT + UNIT // 2 - pieces.place[:, :1])[:, None, :]
    dy = _narrow(rows * UNIT + UNIT // 2 - pieces.place[:, 1:])[:, :, None]
    x, y = _narrow(pieces.point.T[:, :, None, None])
    value = _bilinear(greys, pieces.digit, (cosine * dx + sine * dy) // UNIT + x, (cosine * dy - sine * dx) // UNIT + y)
    strokes = np.clip(value * 3 // 2 - 96, 0, 255)  # sharper than the bilinear slopes of an image enlarged twofold
    return strokes * _narrow(pieces.ink)[:, None, None] // 256


def _bilinear(greys: Greys, digit: Indices, x: Greys, y: Greys) -> Greys:
    """Reads digits between their pixels, at ``x`` and ``y`` in 1/1024 pixels from the corner; around them is black."""
    side = greys.shape[1] + 4
    flat = np.pad(greys, ((0, 0), (2, 2), (2, 2))).reshape(-1)
    from_first = 3 * UNIT // 2  # a pixel's value holds at its middle, and two black ones come before the corner
    x, y = (np.clip(value + from_first, 0, (side - 1) * UNIT - 1) for value in (x, y))
    first = (_narrow(digit)[:, None, None] * side + y // UNIT) * side + x // UNIT
    right, down = x % UNIT, y % UNIT
    upper = flat[first] * (UNIT - right) + flat[first + 1] * right
    lower = flat[first + side] * (UNIT - right) + flat[first + side + 1] * right
    return (upper // UNIT * (UNIT - down) + lower // UNIT * down) // UNIT


def _rotation(turn: Indices, length: Indices) -> tuple[Greys, Greys]:
    """Returns ``length`` times the cosine and the sine of whole degrees, rounded to whole numbers."""
    angles = np.radians(turn)
    return _narrow(np.rint(np.cos(angles) * length)), _narrow(np.rint(np.sin(angles) * length))


def _narrow(values: npt.NDArray[np.generic]) -> Greys:
    return values.astype(np.int32)  # half the memory, twice the speed
