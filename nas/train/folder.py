"""A folder of images, one sub-folder a class: listed, checked and decoded into memory.

Layouts: ``DIR/CLASS/*.png``, or ``DIR/train/CLASS/...`` with ``test/`` or ``val/`` (``valid/``, ``validation/``) beside
it. With both, ``test/`` is the test split and ``val/`` is what candidates are selected on; with one of them, it is the
test split. Other files, and hidden files and folders, are ignored.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from nas.errors import UserError
from nas.train.sources import Source

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
LEAST_SIDE = 4  # pixels; anything smaller is a tracking pixel or a mistake, not a picture
_VAL = ("val", "valid", "validation")
_PROBED = 64  # images whose headers settle the default size


def folder(path: Path) -> Source:
    """The classes, files and splits of a folder; pixels are decoded when a split is read.

    Images are numbered train, val, test, class by class, by path. Raises UserError, naming the path, for a folder that
    is missing or a file, has no class folders or one, an empty class, or parts whose classes differ.
    """
    parts = {part: _listing(where) for part, where in _parts(path).items()}
    classes = list(parts["train"])
    for part, listing in parts.items():
        _same_classes(path, part, classes, list(listing))
    files: list[Path] = []
    labels: list[int] = []
    pools = {}
    for part, listing in parts.items():
        pools[part] = np.arange(len(files), len(files) + sum(map(len, listing.values())))
        files += [file for found in listing.values() for file in found]
        labels += [label for label, found in enumerate(listing.values()) for _ in found]
    return Source(
        name=path.resolve().name,
        origin=str(path),
        classes=tuple(classes),
        labels=np.array(labels, dtype=np.int64),
        pools=pools,
        size=default_size([files[i] for i in np.linspace(0, len(files) - 1, _PROBED).astype(int)]),
        augment="flip-crop",
        read=lambda which, size: decoded([files[i] for i in which], size),
    )


def default_size(files: Iterable[Path]) -> int:
    """224 if the median short side is that or more, else that side rounded down to a multiple of 32 (at least 32)."""
    sides = []
    for file in files:
        with _open(file) as image:  # reads the header only
            sides.append(min(image.size))
    shortest = int(np.median(sides))
    return 224 if shortest >= 224 else max(32, shortest // 32 * 32)


def decoded(files: list[Path], size: int) -> torch.Tensor:
    """uint8 [n, 3, size, size], channels_last. Raises UserError naming a file that cannot be read."""
    out = torch.empty((len(files), size, size, 3), dtype=torch.uint8)
    pixels = out.numpy()

    def fill(index: int) -> None:
        pixels[index] = square(files[index], size)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes outside the GIL
        for _ in pool.map(fill, range(len(files))):
            pass
    return out.permute(0, 3, 1, 2)


def square(file: Path, size: int) -> npt.NDArray[np.uint8]:
    """uint8 [size, size, 3]: upright, RGB, the short side resized to ``size``, the centre kept."""
    with _open(file) as image:
        try:
            image.draft("RGB", (2 * size, 2 * size))  # large JPEGs: decode at half, a quarter ... but not below twice
            upright = _rgb(ImageOps.exif_transpose(image))
        except Exception as error:  # Pillow's decoders raise anything on broken bytes
            raise _unreadable(file, error) from error
    width, height = upright.size
    side = min(width, height)
    if side < LEAST_SIDE:
        raise UserError(f"{file}: {width}x{height} is too small, sides start at {LEAST_SIDE} pixels; remove it")
    left, top = (width - side) / 2, (height - side) / 2
    # cropped first and then resized: the same pixels, and a long thin image cannot fill the memory
    cropped = upright.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    return np.asarray(cropped)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip to white
        wide = np.asarray(image).astype(np.int64)
        return Image.fromarray((wide // 257).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save it with 8 or 16 bits")
    return (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")


def _open(file: Path) -> Image.Image:
    try:
        return Image.open(file)
    except Exception as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> UserError:
    if isinstance(error, UnidentifiedImageError):  # its text repeats the path
        return UserError(f"{file}: not an image that can be read; remove or replace it")
    return UserError(f"{file}: cannot be read ({' '.join(str(error).split())}); remove or replace it")


def _parts(path: Path) -> dict[str, Path]:
    """Split -> its folder; only "train" where the class folders stand directly in ``path``."""
    if path.is_file():
        raise UserError(f"{path}: a file, not a folder of images")
    if not path.is_dir():
        raise UserError(f"{path}: no such folder")
    found = {where.name.lower(): where for where in _folders(path)}
    held_out = [name for name in ("test", *_VAL) if name in found]
    if "train" not in found and found and len(held_out) == len(found):
        raise UserError(f"{path}: {held_out[0]}/ but no train/; give the folder that holds both")
    # a class may be called "train": then it stands among other classes and has no folders inside
    if "train" not in found or not (_folders(found["train"]) or len(found) == len(held_out) + 1):
        return {"train": path}
    val = next((found[name] for name in _VAL if name in found), None)
    test = found.get("test", val)
    select = val if test is not val else None
    named = {"train": found["train"], "select": select, "test": test}
    return {part: where for part, where in named.items() if where is not None}


def _listing(where: Path) -> dict[str, list[Path]]:
    """Class -> its images, both sorted by name."""
    listing = {inside.name: _images(inside) for inside in _folders(where)}
    if len(listing) < 2:
        has = f"only the class folder {next(iter(listing))!r}" if listing else "no class folders"
        raise UserError(f"{where}: {has}; at least two classes are needed, one folder each")
    for name, found in listing.items():
        if not found:
            raise UserError(f"{where / name}: no images ({', '.join(sorted(SUFFIXES))}); fill or remove the folder")
    return listing


def _folders(where: Path) -> list[Path]:
    try:
        inside = sorted(where.iterdir())
    except OSError as error:
        raise _refused(error) from error
    return [p for p in inside if p.is_dir() and not p.name.startswith((".", "__MACOSX"))]


def _images(where: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise _refused(error) from error

    found = []
    for inside, folders, files in os.walk(where, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        named = (Path(inside, name) for name in files if not name.startswith("."))
        found += [file for file in named if file.suffix.lower() in SUFFIXES]
    return sorted(found)


def _refused(error: OSError) -> UserError:
    return UserError(f"{error.filename}: cannot be listed ({error.strerror})")


def _same_classes(path: Path, part: str, classes: list[str], others: list[str]) -> None:
    only_train, only_here = sorted(set(classes) - set(others)), sorted(set(others) - set(classes))
    if only_train or only_here:
        missing = f"{part} lacks {', '.join(map(repr, only_train))}" if only_train else ""
        extra = f"{part} alone has {', '.join(map(repr, only_here))}" if only_here else ""
        raise UserError(f"{path}: the classes differ: {'; '.join(filter(None, (missing, extra)))}")
