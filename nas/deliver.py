"""From a picked arch to a folder that stands alone: weights, ONNX checked and measured, a card that says what it is."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from nas.arch import Arch
from nas.errors import UserError
from nas.files import write_atomic
from nas.latency.costs import is_local
from nas.latency.devices.onnxruntime import Cpu
from nas.latency.profile import check
from nas.latency.table import LatencyTable
from nas.lower import tflite
from nas.lower.onnx import export
from nas.plan import macs, params, plan
from nas.progress import Progress, Task
from nas.run import Run
from nas.scene import Scene
from nas.subnet import Subnet, build
from nas.train import loop
from nas.train.data import normalise
from nas.train.finetune import FineTuning, Recipe
from nas.train.search_loop import SupernetTraining
from nas.verify import check_onnx, check_tflite

WEIGHTS, CARD, ONNX, CHECKPOINT = "weights.safetensors", "card.json", "model.onnx", "finetune.pt"
TFLITE = "model.int8.tflite"
CALIBRATION, CHECKED = 512, 200  # training images that int8 scales come from; held-out ones on which it is compared


def folder_of(place: str, arch: Arch) -> str:
    return f"{place}archs/{arch.id}/"


def predicted(scene: Scene, arch: Arch) -> dict[str, float]:
    """Milliseconds by target: the sum over its operators, rounded exactly as the selection's ``Cost.of`` rounds it."""
    slots = range(len(arch.ops))
    return {target: math.fsum((p.fixed, *(p.ms[i][arch.ops[i]] for i in slots))) for target, p in scene.prices.items()}


def one_or_all(values: dict[str, Any]) -> Any:
    """The value itself where there is one target, else the object keyed by target."""
    return next(iter(values.values())) if len(values) == 1 else values


def train_picks(scene: Scene, training: SupernetTraining, archs: Sequence[Arch], place: str, recipe: Recipe,
                progress: Progress) -> None:
    """Weights of every pick: inherited, BN recomputed, fine-tuned; the largest first, which then teaches the others."""
    size = {arch: sum(macs(key) for key in plan(scene.layout, arch)) for arch in archs}
    ordered = sorted(archs, key=lambda arch: (-size[arch], arch.id))
    teacher: nn.Module | None = None
    for number, arch in enumerate(ordered):
        name = folder_of(place, arch)
        if not scene.run.has(name + WEIGHTS):
            scene.run.write_json(f"{name}arch.json", arch.to_json())
            if teacher is None and number:
                teacher = load_weights(scene, ordered[0], place)
            _tune(scene, training, arch, teacher, name, recipe, progress)


def load_weights(scene: Scene, arch: Arch, place: str) -> Subnet:
    """The delivered network in eval mode; raises UserError if its file is broken."""
    path = scene.run.file(folder_of(place, arch) + WEIGHTS)
    model = build(scene.layout, arch)
    try:
        model.load_state_dict(safetensors.torch.load(path.read_bytes()))
    except (OSError, RuntimeError, ValueError, safetensors.SafetensorError) as error:
        reason = str(error).splitlines()[0][:120]
        raise UserError(f"{path}: not the weights of {arch.id} ({reason}); delete it, then the same command") from None
    return model.eval()


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
    measured = {target: _measured(scene, target, path) for target in scene.costs}
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


def save_checkpoint(run: Run, name: str, state: dict[str, Any]) -> None:
    buffer = io.BytesIO()  # torch.save into a file turns a full disk into an error of its own
    torch.save(state, buffer)
    run.write(name, lambda file: file.write(buffer.getbuffer()))


def load_checkpoint(run: Run, name: str) -> dict[str, Any]:
    """Tensors and plain values only; raises UserError for a file that is truncated or not ours."""
    path = run.file(name)
    try:
        state = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or "done" not in state:
            raise ValueError("no checkpoint of ours")
    except Exception as error:  # torch raises many kinds for a broken file
        reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
        raise UserError(f"{path}: truncated or not a checkpoint ({reason}); delete it and give the same command: that "
                        "stage starts again") from None
    return state


def within(task: Task, epoch: int) -> Callable[[int, int], None]:
    """Moves a task that counts epochs along with the steps of one of them."""
    return lambda step, of: task.advance(epoch + step / of - task.done)


def _tune(scene: Scene, training: SupernetTraining, arch: Arch, teacher: nn.Module | None, name: str, recipe: Recipe,
          progress: Progress) -> None:
    run, data = scene.run, scene.data
    model = loop.placed(training.supernet.inherit(arch), scene.device)
    loop.recalibrate(model, loop.calibration_images(data, 1000, 128, scene.device, scene.seed))
    teacher = loop.placed(teacher, scene.device) if teacher else None
    tuning = FineTuning(arch.id, model, teacher, data, recipe, scene.seed, scene.device)
    if run.has(name + CHECKPOINT):
        tuning.load(load_checkpoint(run, name + CHECKPOINT))
    with progress.task(f"fine-tune {arch.id}", recipe.epochs, tuning.done) as task:
        while not tuning.finished:
            run.log("finetune", id=arch.id, **tuning.epoch(within(task, tuning.done)))
            save_checkpoint(run, name + CHECKPOINT, tuning.state())
    if recipe.epochs:
        loop.recalibrate(model, loop.calibration_images(data, 2000, 128, scene.device, scene.seed))
    weights = {key: value.contiguous().cpu() for key, value in model.state_dict().items()}
    run.write(name + WEIGHTS, lambda file: file.write(safetensors.torch.save(weights)))
    run.file(name + CHECKPOINT).unlink(missing_ok=True)


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


def _measured(scene: Scene, target: str, path: Path) -> tuple[float | None, float | None]:
    """(ms, drift) on this machine if it is the target, at its threads and batch, beside the table's yardstick."""
    costs = scene.costs[target]
    if not isinstance(costs, LatencyTable) or not is_local(costs):
        return None, None
    device = Cpu(int(costs.meta["threads"]), int(costs.meta["batch"]))
    return check(device.load(path), scene.layout, costs, device)
