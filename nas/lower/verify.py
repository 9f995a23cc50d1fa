"""Compares exported files with the PyTorch modules that they were made of, output for output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

from nas.errors import UserError
from nas.lower.flatbuffer import MISSING

MAX_RELATIVE = 1e-4
MIN_SQNR_DB = 10.0  # of int8 outputs: a tenth of their energy is noise; a wrong scale or order is at 0 dB or below


class Disagreement(UserError):
    """Is raised where a file computes something else than the module that it was made of; the message is one line."""


@dataclass(frozen=True)
class Agreement:
    """Holds the largest difference over all outputs, and that divided by the largest output of the module."""

    max_abs_diff: float
    relative: float


@dataclass(frozen=True)
class Int8Agreement:
    """Holds signal over quantisation noise of the outputs, and the share of images (or pixels) of the same top class.
    """

    sqnr_db: float
    same_top1: float


def check_onnx(path: Path, module: nn.Module, *, in_ch: int, size: int, n: int = 4, seed: int = 0) -> Agreement:
    """Compares an ONNX file with its module on random inputs [1 and n, in_ch, size, size].

    Where the file fixes its batch, there is one input of that batch.
    Raises Disagreement where the relative difference is 1e-4 or more, or an output is not finite.
    """
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    batches = (entry.shape[0],) if isinstance(entry.shape[0], int) else (1, n)
    generator = torch.Generator().manual_seed(seed)
    diffs, largest = [], []
    for batch in batches:
        x = torch.randn(batch, in_ch, size, size, generator=generator)
        for got, expected in zip(session.run(None, {entry.name: x.numpy()}), _all_outputs(module, x), strict=True):
            if got.shape != expected.shape:
                raise Disagreement(f"{path}: the output is {got.shape}, PyTorch's is {expected.shape}")
            diffs.append(float(np.abs(got - expected).max()))
            largest.append(float(np.abs(expected).max()))
    agreement = Agreement(max(diffs), max(diffs) / max(max(largest), 1e-12))
    if not agreement.relative < MAX_RELATIVE:  # also where it is NaN
        raise Disagreement(f"{path}: differs from PyTorch by {agreement.relative:.1e} of the largest output "
                           f"(allowed: {MAX_RELATIVE:.0e})")
    return agreement


def check_tflite(model: bytes, module: nn.Module, images: torch.Tensor) -> Int8Agreement:
    """Compares an int8 TFLite file with its module on ``images`` [n, in_ch, size, size].

    Raises Disagreement below 10 dB, and UserError where LiteRT is not installed.
    """
    expected, got = _outputs(module, images), run_tflite(model, images)
    if got.shape != expected.shape:
        raise Disagreement(f"int8 TFLite: the output is {got.shape}, PyTorch's is {expected.shape}")
    return require_int8_agreement("int8 TFLite", _int8_agreement(got, expected))


def compare_int8(run: Callable[[torch.Tensor], torch.Tensor], module: nn.Module, images: torch.Tensor) -> Int8Agreement:
    """Compares what ``run`` computes, an int8 file, with its module on ``images`` [n, in_ch, size, size]."""
    return _int8_agreement(run(images).numpy(), _outputs(module, images))


def require_int8_agreement(what: object, agreement: Int8Agreement) -> Int8Agreement:
    """Returns the agreement unchanged; raises Disagreement below 10 dB, as the network is of no use then."""
    if not agreement.sqnr_db >= MIN_SQNR_DB:
        raise Disagreement(f"{what}: {agreement.sqnr_db:.1f} dB of signal over noise (at least {MIN_SQNR_DB:.0f}): "
                           "this network does not survive 8 bits as it is")
    return agreement


def run_tflite(model: bytes, images: torch.Tensor) -> np.ndarray:
    """Runs a TFLite file in LiteRT on ``images`` [n, in_ch, size, size]; outputs are laid out as in PyTorch."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        raise UserError(MISSING) from None
    interpreter = Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    entry, exit_ = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    (scale, zero), (out_scale, out_zero) = entry["quantization"], exit_["quantization"]
    outputs = []
    for image in images.permute(0, 2, 3, 1).numpy():
        stored = np.clip(np.rint(image / scale) + zero, -128, 127).astype(np.int8)
        interpreter.set_tensor(entry["index"], stored[None])
        interpreter.invoke()
        outputs.append((interpreter.get_tensor(exit_["index"])[0].astype(np.float32) - out_zero) * out_scale)
    return np.stack([y.transpose(2, 0, 1) if y.ndim == 3 else y for y in outputs])


def _int8_agreement(got: np.ndarray, expected: np.ndarray) -> Int8Agreement:
    noise = float(np.square(got - expected).sum())
    sqnr_db = 10 * float(np.log10(max(float(np.square(expected).sum()), 1e-30) / max(noise, 1e-30)))
    return Int8Agreement(sqnr_db, float(np.mean(got.argmax(1) == expected.argmax(1))))


def _outputs(module: nn.Module, x: torch.Tensor) -> np.ndarray:
    return _all_outputs(module, x)[0]


def _all_outputs(module: nn.Module, x: torch.Tensor) -> list[np.ndarray]:
    """Runs a module in eval mode and returns an array for each output, in a list."""
    training = module.training
    try:
        with torch.no_grad():
            result = module.eval()(x)
        return [y.numpy() for y in ([result] if isinstance(result, torch.Tensor) else result)]
    finally:
        module.train(training)
