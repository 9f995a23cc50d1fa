"""From rows to networks: the published GPUNets, and the correction that their latencies ask for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nas.latency.fusion import Kernel
from nas.latency.kernel_model import Correction, KernelModel
from nas.latency.trace import kernels

Array = NDArray[np.float64]
PADDED = Correction(padded_sides=[6, 8, 10, 14, 20, 28, 40, 56, 80, 112, 160, 224], padded_multiples=[32, 128],
                    padded_channels=[16, 32, 64, 128, 256, 384, 512, 768, 1024], scale=1.0,
                    per_kernel_ms=0.0, floor_ms=0.0085 / 4)
# ms of GPUNet-0/1/2 on a V100, fp16, TensorRT: "server compute infer" of the offline scenario in
# PyTorch/Classification/GPUNet/triton/{065,085,175}ms/README.md at 68c33b3; batch 1 is in the data
PUBLISHED_MS = {32: (5.43, 5.56, 15.88), 64: (10.03, 10.22, 29.59)}
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "swish": nn.SiLU, "none": nn.Identity}


class Published(nn.Module):
    """A calibration network from its list of layers."""

    def __init__(self, layers: list[dict[str, Any]]) -> None:
        super().__init__()
        self.layers = layers
        self.parts = nn.ModuleList(_part(layer) for layer in layers)

    def forward(self, x: Tensor) -> Tensor:
        entry = x
        for layer, part in zip(self.layers, self.parts, strict=True):
            if layer.get("role") in ("pw_expand", "fused_expand"):
                entry = x
            x = x * part(x) if layer["op"] == "se" else part(x)
            if layer.get("fused_residual"):
                x = x + entry
        return x


def _part(layer: dict[str, Any]) -> nn.Module:
    if layer["op"] == "conv":
        conv = nn.Conv2d(layer["cin"], layer["cout"], layer["k"], layer["stride"], layer["pad"], groups=layer["groups"],
                         bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(layer["cout"]), ACTIVATIONS[layer["act"]]())
    if layer["op"] == "se":
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(layer["c"], layer["rd"], 1),
                             ACTIVATIONS[layer["act"]](), nn.Conv2d(layer["rd"], layer["c"], 1), nn.Sigmoid())
    if layer["op"] == "gap":
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert layer["op"] == "fc", layer
    return nn.Linear(layer["cin"], layer["cout"])


def calibration(model: KernelModel, path: Path, batch: int) -> tuple[Correction, list[dict[str, Any]]]:
    """The correction, and each network's figures with the error of a correction fitted on the other two."""
    networks, rows = json.loads(path.read_text()), []
    published = PUBLISHED_MS.get(batch, [n["measured"]["V100"]["readme_tensorrt8_fp16_ms"] for n in networks])
    points, raw = [], []
    for found, ms in zip(gpunets(path), published, strict=True):
        raw.append(float(model.raw_ms(found).sum()))
        points.append((float(model.kernel_ms(found).sum()), len(found), ms))
    table = np.array(points)
    for i, network in enumerate(networks):
        others = np.delete(table, i, 0)
        off = {form: float(table[i, :2] @ fit(others) / table[i, 2] - 1) for form, fit in FORMS.items()}
        rows.append({"network": network["model"], "raw_ms": round(raw[i], 4), "least_ms": round(points[i][0], 4),
                     "kernels": points[i][1], "published_ms": points[i][2],
                     **{f"left_out_{f}_%": round(100 * e, 1) for f, e in off.items()}})
    scale, per_kernel = FORMS[CHOSEN](table)
    change = {"scale": float(f"{scale:.5g}"), "per_kernel_ms": float(f"{per_kernel:.5g}")}
    return PADDED.model_copy(update=change), rows


def gpunets(path: Path) -> list[list[Kernel]]:
    """Kernels of the calibration networks."""
    found = []
    for network in json.loads(path.read_text()):
        with torch.device("meta"):
            module = Published(network["expanded_layers"])
        found.append(kernels(module, 3, network["img_resolution"]))
    return found


def transferred(model: KernelModel, path: Path, calibrated: list[dict[str, Any]]) -> float:
    """The scale at which the GPUNets take what is left when each kernel hides as much of a launch as it does in the
    calibrated table: longer kernels hide less of themselves."""
    points = np.array([(row["least_ms"], row["kernels"], row["published_ms"]) for row in calibrated])
    hidden_ms = _hidden_launch(points)[1]
    ratios = [1 + hidden_ms * len(found) / float(model.kernel_ms(found).sum()) for found in gpunets(path)]
    return float(np.exp(np.log(ratios).mean()))


def _scale_only(points: Array) -> Array:
    return np.array([np.exp(np.log(points[:, 2] / points[:, 0]).mean()), 0.0])


def _affine(points: Array) -> Array:
    """Least squares of relative errors; a hidden launch can only make a kernel cheaper."""
    scale, per_kernel = np.linalg.lstsq(points[:, :2] / points[:, 2:], np.ones(len(points)), rcond=None)[0]
    return np.array([scale, per_kernel]) if per_kernel <= 0 < scale else _scale_only(points)


def _hidden_launch(points: Array) -> Array:
    """Scale one: every row holds a part of a launch that a whole engine hides."""
    return np.array([1.0, min(0.0, float(np.mean((points[:, 2] - points[:, 0]) / points[:, 1])))])


FORMS: dict[str, Callable[[Array], Array]] = {"scale": _scale_only, "affine": _affine, "launch": _hidden_launch}
CHOSEN = "scale"
