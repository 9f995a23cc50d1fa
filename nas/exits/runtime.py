"""Runs networks with early exits; needs onnxruntime and numpy only, and is copied beside every export.

This part: how sure an exit is. The same figures calibrate thresholds (``nas.exits.policy``) and are compared with them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

CONFIDENCES = ("max-softmax", "entropy", "patience")
Array = np.ndarray[Any, Any]


def confidence(kind: str, logits: Array, temperature: float = 1.0,
               before: tuple[Array, Array] | None = None) -> tuple[Array, tuple[Array, Array]]:
    """How sure one exit is of logits [n, classes]: ([n], what the next exit needs as ``before``). Larger is surer.

    ``max-softmax``: the largest probability; ``entropy``: 1 - entropy / log(classes); both of logits / temperature.
    ``patience``: how many exits before it agree with it in a row (PABEE, Zhou et al., arXiv 2006.04152).
    """
    classes = logits.argmax(1)
    run = np.zeros(len(logits)) if before is None else np.where(classes == before[0], before[1] + 1, 0.0)
    if kind == "patience":
        return run, (classes, run)
    z = logits / temperature
    z = z - z.max(1, keepdims=True)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    if kind == "max-softmax":
        return p.max(1), (classes, run)
    if kind == "entropy":
        entropy = -(p * np.log(np.maximum(p, 1e-30))).sum(1)
        return 1 - entropy / np.log(logits.shape[1]), (classes, run)
    raise ValueError(f"confidence {kind!r}: known are {', '.join(CONFIDENCES)}")


def confidences(kind: str, logits: Array, temperatures: Array | None = None) -> Array:
    """[exits, n, classes] -> [exits, n]"""
    found, before = [], None
    for index, own in enumerate(logits):
        sure, before = confidence(kind, own, 1.0 if temperatures is None else float(temperatures[index]), before)
        found.append(sure)
    return np.stack(found)
