"""Folders of small images for tests."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from nas.training.data import Data, load


def picture(path: Path, size: tuple[int, int] = (40, 30), colour: Any = None, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if colour is None:
        colour = tuple(np.frombuffer(str(path).encode()[-3:], np.uint8).tolist())
    Image.new(mode, size, colour).save(path)
    return path


def tree(root: Path, counts: dict[str, int]) -> Path:
    """So many images a class; red holds the number in the name, green the length of the class's name."""
    for name, count in counts.items():
        for index in range(count):
            picture(root / name / f"{index:03d}.png", colour=(index, len(name), 7))
    return root


def from_folder(path: Path, **options: Any) -> Data:
    return load(str(path), data_dir=None, **{"size": 16, "seed": 0, **options})


def png16(path: Path, values: npt.NDArray[Any]) -> Path:
    """A PNG of 16 bits a channel, which Pillow does not write in colour; values [h, w, 1 to 4]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    lines = b"".join(b"\0" + values[y].astype(">u2").tobytes() for y in range(height))

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines))
                     + chunk(b"IEND", b""))
    return path


def noise(folder: Path, n: int, seed: int = 0) -> None:
    """Images of 16x16 without classes."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for index in range(n):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / f"{index}.png")
