"""Reads the built-in images digits and CIFAR-10, and defines what a source of images is.

Others are in ``cluttered.py`` and ``folder.py``.

Digits: scikit-learn's copy of the UCI test set of Alpaydin and Kaynak (1998). CIFAR-10: Krizhevsky (2009).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from nas.errors import UserError, setting
from nas.training.pixels import NARROW, Decoded, Whites

Indices = npt.NDArray[np.int64]
RESIZED = "resized (bilinear, antialiased)"
_CIFAR10 = "cifar-10-batches-py"


@dataclass(frozen=True)
class Source:
    """Holds labelled images that are not read yet: which goes to which split is settled before anything is decoded."""

    name: str
    origin: str  # where from, for the record
    classes: tuple[str, ...]
    labels: Indices  # [N]
    pools: dict[str, Indices]  # "train", and "select" and "test" where the source has them
    size: int  # default input side
    augment: str
    pixels: str  # how they become square and RGB, for the record
    read: Callable[[Indices, int, Whites], Decoded]  # which, at what size
    whites: Callable[[Indices], Whites] = lambda which: NARROW
    parts: Mapping[str, str] = field(default_factory=dict)  # pool -> the folder that it is, where it is one
    ignored: tuple[str, ...] = ()  # folders beside those of the splits
    skipped: Mapping[str, int] = field(default_factory=dict)  # what a folder has beside images -> how many


def digits() -> Source:
    """Returns 1,797 handwritten digits of 8x8 grey pixels, built in; they have no test split of their own."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    grey = torch.from_numpy(np.rint(raw.images * (255 / 16)).astype(np.uint8))[:, None]
    return Source(
        name="digits",
        origin="scikit-learn load_digits (8x8 grey)",
        classes=tuple(str(n) for n in raw.target_names),
        labels=raw.target.astype(np.int64),
        pools={"train": np.arange(len(grey))},
        size=32,
        augment="crop",
        pixels=RESIZED,
        read=lambda which, size, whites: Decoded(resized(grey, which, size), 0),
    )


def cifar10(data_dir: Path | None) -> Source:
    """Returns CIFAR-10 under ``data_dir`` (``./data``), downloaded if missing; its test images have numbers from
    50,000.

    Raises UserError when the download fails and when a file is not the official one.
    """
    root = _cifar10_root(data_dir)
    train, test = _cifar10_part(root, True), _cifar10_part(root, False)
    pixels = torch.from_numpy(np.concatenate([train.data, test.data])).permute(0, 3, 1, 2)
    return Source(
        name="cifar10",
        origin=f"CIFAR-10 in {root / _CIFAR10}",
        classes=tuple(train.classes),
        labels=np.array([*train.targets, *test.targets], dtype=np.int64),
        pools={"train": np.arange(len(train.data)), "test": np.arange(len(train.data), len(pixels))},
        size=32,
        augment="flip-crop",
        pixels=RESIZED,
        read=lambda which, size, whites: Decoded(resized(pixels, which, size), 0),
    )


def resized(images: torch.Tensor, which: Indices, size: int) -> torch.Tensor:
    """Resizes the chosen images, bilinear: uint8 [N, 1 or 3, h, w] -> uint8 [n, 3, size, size], channels_last."""
    out = torch.empty((len(which), size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    for start in range(0, len(which), 256):  # in chunks, because the float copy is four times as large
        part = images[torch.from_numpy(which[start : start + 256])]
        if part.shape[-1] != size:
            scaled = F.interpolate(part.float(), size=(size, size), mode="bilinear", antialias=True)
            part = scaled.round_().clamp_(0, 255)
        out[start : start + 256] = part
    return out


def _cifar10_root(data_dir: Path | None) -> Path:
    """Returns the folder that holds ``cifar-10-batches-py``; that folder itself may be named, too."""
    root = Path("data") if data_dir is None else Path(data_dir).expanduser()
    if root.is_file():
        raise UserError(f"{root}: a file, not a folder; name the folder that holds {_CIFAR10} with "
                        f"{setting('data_dir')}")
    return root.resolve().parent if root.resolve().name == _CIFAR10 and root.is_dir() else root


def _cifar10_part(root: Path, train: bool) -> Any:
    """Opens torchvision's data set, which compares every file's MD5 with the official one before it unpickles any."""
    from torchvision.datasets import CIFAR10

    folder = root / _CIFAR10
    if not folder.is_dir():
        _download(CIFAR10, root)
    try:
        return CIFAR10(str(root), train=train, download=False)
    except RuntimeError as error:
        raise UserError(
            f"{folder}: not the official CIFAR-10 files (missing or altered); delete the folder to download it again, "
            f"or name another with {setting('data_dir')}"
        ) from error


def _download(dataset: Callable[..., Any], root: Path) -> None:
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
            dataset(str(root), download=True)
    except (OSError, RuntimeError, EOFError) as error:  # URLError is an OSError
        reason = " ".join(str(error).split())
        raise UserError(
            f"{root / _CIFAR10}: not there, and the download failed ({reason}); name the folder that holds {_CIFAR10} "
            f"with {setting('data_dir')}"
        ) from error
