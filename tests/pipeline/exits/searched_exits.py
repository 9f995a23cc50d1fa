"""A search with exits of seconds."""

from __future__ import annotations

from typing import Any

from nas.pipeline.exits.serve import CLASSES, THRESHOLDS

OPTIONS = ["exits.method=joint", "exits.epochs=2", "exits.lose=5"]
FILES = {"model.onnx", "segment-0.onnx", "segment-1.onnx", "runtime.py", "curve.png", "shares.png",
         "first-and-last.png", THRESHOLDS, CLASSES, "exits.safetensors", "card.json"}


def cards(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [*result["front"], *result["dominated"]]
