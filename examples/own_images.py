"""Searches on a folder of your own images, takes the best network within a budget, and classifies one image with it.

    python examples/own_images.py photos --ms 0.3        # photos/cat/1.jpg, photos/dog/1.jpg, ...
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

import nas


def main(images: Path, *, ms: float, space: str = "ghost", run: Path | None = None,
         settings: Mapping[str, Any] | None = None) -> str:
    """Returns the class of the first image, by the exported file alone."""
    found = nas.search(space=space, target="gpu-v100", data=images, size=32, budget_ms=[ms], run=run, settings=settings)
    pick = found.front.best(ms=ms)
    print(f"{pick.id}: {pick.ms['gpu-v100']:.3f} ms predicted, {100 * pick.accuracy:.1f} % of the test images")
    return classify(pick.onnx, sorted(images.glob("*/*.*"))[0])


def classify(model: Path, image: Path) -> str:
    """Runs an exported file on one image, read as the file's metadata say: needs ONNX Runtime, NumPy and Pillow."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    meta = session.get_modelmeta().custom_metadata_map
    side = int(meta["size"])
    with Image.open(image) as opened:
        edge = min(opened.size)
        corner = ((opened.width - edge) // 2, (opened.height - edge) // 2)
        square = opened.convert("RGB").crop((*corner, corner[0] + edge, corner[1] + edge))
    pixels = np.asarray(square.resize((side, side), Image.Resampling.BILINEAR), np.float32).transpose(2, 0, 1) / 255
    mean, std = (np.array(meta[name].split(), np.float32)[:, None, None] for name in ("mean", "std"))
    (logits,) = session.run(None, {"input": ((pixels - mean) / std)[None]})
    return meta["classes"].split("\n")[int(np.argmax(logits))]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("--ms", type=float, required=True)
    given = parser.parse_args()
    print(main(given.images, ms=given.ms))
