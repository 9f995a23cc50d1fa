"""What comes out runs: torch against the deployment runtime, output for output."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

from nas.errors import UserError

MAX_RELATIVE = 1e-4


class Disagreement(UserError):
    """A written file computes something else than the module that it was made of; the message is one line."""


@dataclass(frozen=True)
class Agreement:
    """Largest difference over all outputs, and the same divided by the largest output of the module."""

    max_abs_diff: float
    relative: float


def check_onnx(path: Path, module: nn.Module, *, in_ch: int, size: int, n: int = 4, seed: int = 0) -> Agreement:
    """Random inputs [1, in_ch, size, size] and [n, in_ch, size, size] (one only, where the file fixes its batch).

    Raises Disagreement where the relative difference is 1e-4 or more, or an output is not finite.
    """
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    batches = (entry.shape[0],) if isinstance(entry.shape[0], int) else (1, n)
    generator = torch.Generator().manual_seed(seed)
    diffs, largest = [], []
    for batch in batches:
        x = torch.randn(batch, in_ch, size, size, generator=generator)
        expected = _outputs(module, x)
        got = session.run(None, {entry.name: x.numpy()})[0]
        if got.shape != expected.shape:
            raise Disagreement(f"{path}: the output is {got.shape}, PyTorch's is {expected.shape}")
        diffs.append(float(np.abs(got - expected).max()))
        largest.append(float(np.abs(expected).max()))
    agreement = Agreement(max(diffs), max(diffs) / max(max(largest), 1e-12))
    if not agreement.relative < MAX_RELATIVE:  # also where it is NaN
        raise Disagreement(f"{path}: differs from PyTorch by {agreement.relative:.1e} of the largest output "
                           f"(allowed: {MAX_RELATIVE:.0e})")
    return agreement


def _outputs(module: nn.Module, x: torch.Tensor) -> np.ndarray:
    training = module.training
    try:
        with torch.no_grad():
            return module.eval()(x).numpy()
    finally:
        module.train(training)
