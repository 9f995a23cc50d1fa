"""From a picked arch to a folder that stands alone: weights, ONNX checked and measured, a card that says what it is."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nas.arch import Arch
from nas.files import write_atomic
from nas.latency.devices import local
from nas.latency.profile import check
from nas.latency.table import LatencyTable
from nas.lower import tflite
from nas.lower.onnx import export
from nas.picks import folder_of, load_weights
from nas.plan import macs, params, plan
from nas.scene import Scene
from nas.train import loop
from nas.train.data import normalise
from nas.verify import check_onnx, check_tflite

CARD, ONNX, TFLITE = "card.json", "model.onnx", "model.int8.tflite"
CALIBRATION, CHECKED = 512, 200  # training images that int8 scales come from; held-out ones on which it is compared


def predicted(scene: Scene, arch: Arch) -> dict[str, float]:
    """Milliseconds by target: the sum over its operators, rounded exactly as the selection's ``Cost.of`` rounds it."""
    slots = range(len(arch.ops))
    return {target: math.fsum((p.fixed, *(p.ms[i][arch.ops[i]] for i in slots))) for target, p in scene.prices.items()}


def one_or_all(values: dict[str, Any]) -> Any:
    """The value itself where there is one target, else the object keyed by target."""
    return next(iter(values.values())) if len(values) == 1 else values


def deliver(scene: Scene, arch: Arch, place: str, fine_tuned: bool) -> dict[str, Any]:
    """Writes ``model.onnx`` and ``card.json`` of a trained pick; returns the card."""
    name = folder_of(place, arch)
    return scene.run.stage(name + CARD, lambda: _card(scene, arch, place, fine_tuned))


def to_onnx(scene: Scene, arch: Arch, place: str, path: Path) -> dict[str, Any]:
    """Exports one pick, checks it against PyTorch and measures it where this machine is the target.

    Of the scene's data only the description is read, and its prices not at all.
    """
    model, data, size = load_weights(scene, arch, place), scene.data, scene.layout.task.size
    metadata = {"arch": json.dumps(arch.to_json()), "id": arch.id, "classes": "\n".join(data.classes),
                "input": "NCHW float32", "size": str(size), "mean": " ".join(f"{v:.6g}" for v in data.mean),
                "std": " ".join(f"{v:.6g}" for v in data.std), "scale": "pixels / 255", "producer": "nas"}
    export(model, path, in_ch=data.in_ch, size=size, metadata=metadata)
    agreement = check_onnx(path, model, in_ch=data.in_ch, size=size)
    measured = {target: _measured(scene, target, path, model) for target in scene.costs}
    return {"onnx": str(path), "max_abs_diff": agreement.max_abs_diff, "relative_diff": agreement.relative,
            "measured_ms": one_or_all({target: ms for target, (ms, _) in measured.items()}),
            "drift": one_or_all({target: drift for target, (_, drift) in measured.items()})}


def to_tflite(scene: Scene, arch: Arch, place: str, path: Path) -> dict[str, Any]:
    """Exports one pick as int8 TFLite, calibrated on training images and checked in LiteRT on held-out ones.

    Raises UserError where the packages for it are missing, and Disagreement where 8 bits are not enough.
    """
    model, data, size, cpu = load_weights(scene, arch, place), scene.data, scene.layout.task.size, torch.device("cpu")
    images = loop.calibration_images(data, CALIBRATION, 64, cpu, scene.seed)
    file = tflite.lower(model, in_ch=data.in_ch, size=size, calibration=images)
    agreement = check_tflite(file, model, normalise(data.select.images[:CHECKED], data))
    write_atomic(path, lambda out: out.write(file))
    return {"tflite": str(path), "sqnr_db": agreement.sqnr_db, "same_top1": agreement.same_top1,
            "measured_ms": one_or_all(dict.fromkeys(scene.costs))}


def _card(scene: Scene, arch: Arch, place: str, fine_tuned: bool) -> dict[str, Any]:
    name, keys = folder_of(place, arch), plan(scene.layout, arch)
    model = loop.placed(load_weights(scene, arch, place), scene.device)
    augment = scene.config.train.augment or scene.data.augment
    select = loop.evaluate_shifted(model, scene.data.select, scene.data, scene.device, augment, scene.seed)
    test = loop.evaluate(model, scene.data.test, scene.data, scene.device)
    written = to_onnx(scene, arch, place, scene.run.file(name + ONNX))
    ms = one_or_all(predicted(scene, arch))
    return {"id": arch.id, "arch": arch.to_json(), "fine_tuned": fine_tuned,
            "select_accuracy": select.accuracy, "select_loss": select.loss, "accuracy": test.accuracy,
            "accuracy_se": test.accuracy_se, "test_images": test.n, "ms": ms, "worst_ms": ms,
            "measured_ms": written["measured_ms"], "drift": written["drift"], "max_abs_diff": written["max_abs_diff"],
            "relative_diff": written["relative_diff"], "macs": sum(macs(key) for key in keys),
            "params": sum(params(key) for key in keys), "exits": [], "onnx": name + ONNX,
            "provenance": {"run": scene.run.path.name, "space": scene.config.space, "data": scene.data.name,
                           "fingerprint": scene.data.source["fingerprint"], "seed": scene.seed,
                           "targets": {target: costs.meta for target, costs in scene.costs.items()},
                           "environment": scene.run.read_json("environment.json")}}


def _measured(scene: Scene, target: str, path: Path, model: nn.Module) -> tuple[float | None, float | None]:
    """(ms, drift) on this machine if it is the target, at its threads and batch, beside the table's yardstick."""
    costs, task = scene.costs[target], scene.layout.task
    device = local(costs.meta) if isinstance(costs, LatencyTable) else None
    if not isinstance(costs, LatencyTable) or device is None:
        return None, None
    run = device.load(path) if device.reads_onnx else device.prepare(model, in_ch=task.in_ch, size=task.size)
    return check(run, scene.layout, costs, device)
