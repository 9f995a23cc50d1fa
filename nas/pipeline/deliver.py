"""Delivers a pick as a folder that can be used alone: weights, an ONNX file that is checked and measured, a card.

Where a target's milliseconds are those of int8 files in ONNX Runtime, such a file is written beside the float one, and
the accuracies are the int8 file's: what is stated together is of one file. With float targets beside it they still are.
Accuracies are what ONNX Runtime gets right with the file; a float one's are computed in PyTorch where that has a GPU.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nas.arch import Arch
from nas.errors import UserError
from nas.files import write_atomic
from nas.latency.base import Costs
from nas.latency.devices.board import recorded_target
from nas.latency.devices.ethos_u import compiler_of_table
from nas.latency.devices.onnxruntime import session, weight_bits
from nas.lower import tflite
from nas.lower.onnx import export, lower, save
from nas.lower.qdq import quantise
from nas.lower.verify import Int8Agreement, check_onnx, check_tflite, compare_int8, require_int8_agreement
from nas.pipeline.finetune import load_weights, network_folder
from nas.pipeline.inputs import Inputs
from nas.pipeline.measuring import Measured, Network, measure_on_all, parts
from nas.pipeline.npu_memory import Memory
from nas.pipeline.overrun import excesses
from nas.plan import macs, params, plan
from nas.progress import Progress
from nas.run import timeline
from nas.run.directory import ENVIRONMENT
from nas.run.operators import recorded_files
from nas.run.provenance import Environment, Provenance
from nas.run.records import Card
from nas.subnet import Backbone
from nas.training import evaluation, placement
from nas.training.data import normalise
from nas.training.evaluation import Judged

CARD, ONNX, INT8, TFLITE = "card.json", "model.onnx", "model.int8.onnx", "model.int8.tflite"
CALIBRATION, CHECKED = 512, 200  # training images that int8 scales come from; held-out ones on which it is compared
AT_ONCE = 32  # images that a file is evaluated on at once: a processor's cache has room for their maps


def predicted_ms(inputs: Inputs, arch: Arch) -> dict[str, float]:
    """Returns the predicted ms of a network by target: sums over its operators, rounded exactly as selection does."""
    slots = range(len(arch.ops))
    return {target: math.fsum((p.fixed, *(p.ms[i][arch.ops[i]] for i in slots))) for target, p in inputs.prices.items()}


@dataclass(frozen=True)
class Wanted:
    """Says which trained network is delivered, and what its card says of it beside its figures.

    ``bounds`` are the budgets by target that it was chosen for: what is measured above them is said in the card.
    ``known`` is the name of a known network.
    """

    arch: Arch
    fine_tuned: bool
    bounds: Mapping[str, float] = field(default_factory=dict)
    known: str | None = None


@dataclass(frozen=True)
class _Written:
    """Holds a network whose files are written, with what its card says of them: paths and differences from PyTorch."""

    network: Network
    said: dict[str, Any]


def deliver(inputs: Inputs, networks: Sequence[Wanted], place: str, progress: Progress) -> dict[Arch, Card]:
    """Writes ``model.onnx``, for int8 targets ``model.int8.onnx``, and ``card.json`` of networks; returns the cards.

    Of those that have no card from an earlier call, some are written and measured together, then evaluated in turn.
    """
    run, names = inputs.run, {wanted.arch: network_folder(place, wanted.arch) + CARD for wanted in networks}
    left = [wanted for wanted in networks if not run.has(names[wanted.arch])]
    with progress.task("export", len(networks), len(networks) - len(left)) as task:
        for some in parts(left):
            written = {wanted.arch: _write(inputs.of(wanted.arch), wanted.arch, place) for wanted in some}
            times = measure_on_all(inputs, {arch: each.network for arch, each in written.items()})
            for wanted in some:
                arch = wanted.arch
                run.record(names[arch], Card, partial(_make_card, inputs.of(arch), wanted, written[arch], times[arch]))
                task.advance()
    return {arch: run.read(name, Card) for arch, name in names.items()}


def to_onnx(inputs: Inputs, arch: Arch, place: str, path: Path) -> dict[str, Any]:
    """Exports one pick, checks it against PyTorch and measures it where this machine is the target.

    Of the inputs only the description of the images and the costs are read, no images and no prices.
    """
    model = load_weights(inputs, arch, place)
    return {"onnx": str(path), **_write_float(inputs, arch, model, path),
            **_measure(inputs, arch, Network(model, {"float": path}))}


def to_features(inputs: Inputs, arch: Arch, place: str, path: Path) -> dict[str, Any]:
    """Exports one pick without its head: an output for the map of each stride, named after it, checked against PyTorch.

    ``predicted_ms`` is without the head; nothing is measured.
    """
    network = load_weights(inputs, arch, place)
    model, in_ch, size = Backbone(network), inputs.data.in_ch, inputs.layout.task.size
    maps = [{"name": f"stride{feature.stride}", "channels": feature.channels, "stride": feature.stride}
            for feature in model.maps]
    names = [str(feature["name"]) for feature in maps]
    export(model, path, in_ch=in_ch, size=size, metadata={**metadata_of(inputs, arch), "features": json.dumps(maps)},
           outputs=names)
    agreement = check_onnx(path, model, in_ch=in_ch, size=size)
    trunk = plan(inputs.layout, arch)[:-1]
    ms = {target: math.fsum(costs.ms_many(trunk)) for target, costs in inputs.costs.items()}
    return {"onnx": str(path), "features": maps, "max_abs_diff": agreement.max_abs_diff,
            "relative_diff": agreement.relative, "predicted_ms": ms, "measured_ms": dict.fromkeys(ms)}


def to_int8(inputs: Inputs, arch: Arch, place: str, path: Path) -> dict[str, Any]:
    """Exports one pick as int8 ONNX, calibrated on training images and compared with PyTorch on held-out ones.

    Raises Disagreement where 8 bits are not enough.
    """
    model = load_weights(inputs, arch, place)
    agreement = require_int8_agreement(path, _write_int8(inputs, arch, model, path))
    return {"onnx": str(path), "sqnr_db": agreement.sqnr_db, "same_top1": agreement.same_top1,
            **_measure(inputs, arch, Network(model, {"int8": path}))}


def to_tflite(inputs: Inputs, arch: Arch, place: str, path: Path) -> dict[str, Any]:
    """Exports one pick as int8 TFLite, calibrated on training images and checked in LiteRT on held-out ones.

    Raises UserError where the packages for it are missing, and Disagreement where 8 bits are not enough.
    """
    model, data, size = load_weights(inputs, arch, place), inputs.data, inputs.layout.task.size
    file = tflite.lower(model, in_ch=data.in_ch, size=size, calibration=_calibration(inputs))
    agreement = check_tflite(file, model, normalise(data.select.images[:CHECKED], data))
    write_atomic(path, lambda out: out.write(file))
    return {"tflite": str(path), "sqnr_db": agreement.sqnr_db, "same_top1": agreement.same_top1,
            "measured_ms": dict.fromkeys(inputs.costs)}


def _write(inputs: Inputs, arch: Arch, place: str) -> _Written:
    """Writes the files of a network; however weak int8 makes it, as its accuracy says what it is worth."""
    name, model = network_folder(place, arch), load_weights(inputs, arch, place)
    files = {"float": inputs.run.file(name + ONNX)}
    said = {"onnx": name + ONNX, **_write_float(inputs, arch, model, files["float"])}
    if _int8_tables(inputs):
        files["int8"] = inputs.run.file(name + INT8)
        agreement = _write_int8(inputs, arch, model, files["int8"])
        said |= {"int8_onnx": name + INT8, "sqnr_db": agreement.sqnr_db, "same_top1": agreement.same_top1}
    return _Written(Network(model, files), said)


def _make_card(inputs: Inputs, wanted: Wanted, written: _Written, times: Mapping[str, Measured]) -> Card:
    """Returns the card of a network whose files are written and measured; evaluates them."""
    arch, network, trained = wanted.arch, written.network, wanted.fine_tuned
    keys, ms, said = plan(inputs.layout, arch), predicted_ms(inputs, arch), _said_of(times)
    select, test = _evaluate_splits(inputs, _to_evaluate(inputs, network))
    of_float: dict[str, Any] = {}
    if "int8" in network.files:
        of_float = {"float_accuracy": test.accuracy, "float_select_accuracy": select.accuracy}
        select, test = _evaluate_splits(inputs, _onnx_model(network.files["int8"]))
    return Card(id=arch.id, arch=arch, known=wanted.known, size=arch.size, ms=ms, worst_ms=ms,
                macs=sum(map(macs, keys)), params=sum(map(params, keys)), fine_tuned=trained, exits=[],
                improving=timeline.improving(inputs.run, arch.id) if trained else None, **said,
                over_budget=excesses(said["measured_ms"], wanted.bounds), tables=busy_tables(inputs),
                select_accuracy=select.accuracy, select_accuracy_se=select.accuracy_se, select_loss=select.loss,
                accuracy=test.accuracy, accuracy_se=test.accuracy_se, test_images=test.n, **written.said, **of_float,
                **_npu_memory(inputs, network.model), provenance=_provenance(inputs))


def _provenance(inputs: Inputs) -> Provenance:
    """Returns where the networks of a run come from: run, space, images, seed, tables, machine, operators' files."""
    return Provenance(run=inputs.run.path.name, space=inputs.config.space, data=inputs.data.name,
                      fingerprint=inputs.data.source.fingerprint, seed=inputs.seed,
                      targets={target: costs.meta for target, costs in inputs.costs.items()},
                      environment=inputs.run.read(ENVIRONMENT, Environment), ops=recorded_files(inputs.run))


def _npu_memory(inputs: Inputs, model: nn.Module) -> dict[str, Any]:
    """Returns the SRAM and flash of a trained network on targets that Vela compiles, None where it is not installed.

    With limits ``fits`` says whether it keeps them: trained weights may need more than the typical ones that it was
    chosen by, as they compress less.
    """
    tables = {target: costs.meta for target, costs in inputs.costs.items() if recorded_target(costs.meta)}
    if not tables:
        return {}
    try:
        npus = {target: compiler_of_table(meta) for target, meta in tables.items()}
        size = inputs.layout.task.size
        file = tflite.lower(model, in_ch=inputs.data.in_ch, size=size, calibration=_calibration(inputs))
    except UserError:
        if inputs.footprints:
            raise
        return {key: dict.fromkeys(tables) for key in ("sram_kb", "flash_kb")}
    needs = {target: Memory.from_report(npu.compile(file, f"a pick on {target}"))
             for target, npu in npus.items() if npu}
    fits = all(footprint.limits.admits(needs[target]) for target, footprint in inputs.footprints.items())
    return {"sram_kb": {target: need.sram_kb for target, need in needs.items()},
            "flash_kb": {target: need.flash_kb for target, need in needs.items()},
            **({"fits": fits} if inputs.footprints else {})}


def _write_float(inputs: Inputs, arch: Arch, model: nn.Module, path: Path) -> dict[str, Any]:
    """Writes the float ONNX file of a network, and returns how far its outputs are from PyTorch's."""
    in_ch, size = inputs.data.in_ch, inputs.layout.task.size
    export(model, path, in_ch=in_ch, size=size, metadata=metadata_of(inputs, arch))
    agreement = check_onnx(path, model, in_ch=in_ch, size=size)
    return {"max_abs_diff": agreement.max_abs_diff, "relative_diff": agreement.relative}


def _write_int8(inputs: Inputs, arch: Arch, model: nn.Module, path: Path) -> Int8Agreement:
    """Writes the int8 ONNX file of a network, and returns how far its outputs are from PyTorch's.

    Weights have as many bits as the target's processor adds up without overflow: this machine's where that is unknown.
    """
    data, size = inputs.data, inputs.layout.task.size
    bits = min((table.weight_bits for table in _int8_tables(inputs)), default=weight_bits())
    graph = quantise(lower(model, in_ch=data.in_ch, size=size), _calibration(inputs), bits)
    save(graph, path, {**metadata_of(inputs, arch), "precision": "int8", "weight_bits": str(bits)})
    return compare_int8(_onnx_model(path), model, normalise(data.select.images[:CHECKED], data))


def metadata_of(inputs: Inputs, arch: Arch) -> dict[str, str]:
    """Returns the metadata of every file of a pick: what a program needs to use it on images, and what it is."""
    data = inputs.data
    return {"arch": json.dumps(arch.to_json()), "id": arch.id, "classes": "\n".join(data.classes),
            "input": "NCHW float32", "size": str(inputs.layout.task.size), "scale": "pixels / 255", "producer": "nas",
            "mean": " ".join(f"{v:.6g}" for v in data.mean), "std": " ".join(f"{v:.6g}" for v in data.std),
            **data.whites.metadata()}


def _calibration(inputs: Inputs) -> list[torch.Tensor]:
    """Returns training images that int8 scales are computed from, in small batches.

    All maps of a batch are in memory at once.
    """
    return evaluation.calibration_images(inputs.data, CALIBRATION, 8, torch.device("cpu"), inputs.seed)


def _evaluate_splits(inputs: Inputs, model: Callable[[torch.Tensor], torch.Tensor]) -> tuple[Judged, Judged]:
    """Evaluates a network on the selection split and on the test split."""
    data, device, augment = inputs.data, inputs.device, inputs.config.train.augment or inputs.data.augment
    return (evaluation.evaluate_shifted(model, data.select, data, device, augment, inputs.seed),
            evaluation.evaluate(model, data.test, data, device))


def _to_evaluate(inputs: Inputs, network: Network) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns what the accuracies of a float file are computed with: the file, or on a GPU its network in PyTorch."""
    if inputs.device.type == "cpu":
        return _onnx_model(network.files["float"])
    return placement.placed(copy.deepcopy(network.model), inputs.device)


def _onnx_model(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns a function that runs an ONNX file in ONNX Runtime, some images at once, and is called as a module is."""
    loaded = session(path, torch.get_num_threads())

    def run(images: torch.Tensor) -> torch.Tensor:
        batches = torch.split(images.cpu(), AT_ONCE)
        return torch.cat([torch.from_numpy(loaded.run(None, {"input": batch.numpy()})[0]) for batch in batches])

    return run


def _int8_tables(inputs: Inputs) -> list[Costs]:
    """Returns the costs of the targets whose networks run as int8 files in ONNX Runtime."""
    return [costs for costs in inputs.costs.values() if costs.int8_on_cpu]


def _measure(inputs: Inputs, arch: Arch, network: Network) -> dict[str, Any]:
    """Measures one network on every target that is this machine; returns what is said of that."""
    return _said_of(measure_on_all(inputs, {arch: network})[arch])


def _said_of(times: Mapping[str, Measured]) -> dict[str, Any]:
    """Returns ``measured_ms`` and ``drift`` by target."""
    return {"measured_ms": {target: time.ms for target, time in times.items()},
            "drift": {target: time.drift for target, time in times.items()}}


def busy_tables(inputs: Inputs) -> dict[str, str]:
    """Returns, by target, the sign that its table was made on a busy machine, where there is one."""
    return {target: text for target, costs in inputs.costs.items() if (text := costs.meta.busy)}


def to_time(inputs: Inputs, arch: Arch, model: nn.Module, target: str, folder: Path) -> Network:
    """Writes the file of a network, with whatever weights, that is timed for a target."""
    costs = inputs.costs[target]
    if costs.int8_on_cpu:
        graph = lower(model, in_ch=inputs.data.in_ch, size=inputs.layout.task.size)
        save(quantise(graph, _calibration(inputs), costs.weight_bits), folder / INT8, {})
        return Network(model, {"int8": folder / INT8})
    export(model, folder / ONNX, in_ch=inputs.data.in_ch, size=inputs.layout.task.size,
           metadata=metadata_of(inputs, arch))
    return Network(model, {"float": folder / ONNX})
