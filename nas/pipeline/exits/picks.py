"""Adds early exits to the picks of a search: trains them after fine-tuning, and puts them beside the picks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nas import sampling
from nas.arch import Arch
from nas.errors import UserError, setting
from nas.exits import choice
from nas.exits.base import Method
from nas.exits.export import check, export
from nas.exits.methods import method as make
from nas.exits.net import Kept, MultiExit, Network
from nas.exits.thresholds import Policy
from nas.files import copy
from nas.latency.devices.onnxruntime import clock
from nas.latency.profile import time_networks
from nas.pipeline.deliver import busy_tables, metadata_of
from nas.pipeline.exits.card import UNMEASURED, Times
from nas.pipeline.exits.price import known_exit_ms
from nas.pipeline.exits.serve import (
    CARD,
    CLASSES,
    PICTURES,
    THRESHOLDS,
    Served,
    Trained,
    Wishes,
    check_files,
    choose_exits,
    measure_exits,
    timed_here,
    write_files,
)
from nas.pipeline.exits.train import load_exits, train_exits, with_exits
from nas.pipeline.finetune import load_weights, network_folder
from nas.pipeline.inputs import Inputs
from nas.pipeline.overrun import excesses
from nas.plan import macs, params, plan
from nas.progress import Progress
from nas.run.records import Card, ExportedFile
from nas.subnet import build
from nas.training import evaluation, placement, randomness
from nas.training.recipes import FineTuningRecipe

FOLDER = "exits/"  # of a pick's
RANDOM = 64  # inputs on which an export without images is compared with PyTorch


def refuse_exits(inputs: Inputs) -> None:
    """Raises UserError where a search cannot have exits: by its space, targets, epochs, or settings of the method."""
    if not inputs.layout.exits:
        raise UserError(f"{setting('exits', inputs.config.exits.method)}: {inputs.layout.space} has no stride change "
                        f"behind its first slot at {inputs.layout.task.size} pixels")
    int8 = [t for t, costs in inputs.costs.items() if costs.int8_on_cpu]
    if int8:
        raise UserError(f"{setting('exits', inputs.config.exits.method)}: files with exits are float, and {int8[0]} "
                        "is int8")
    options, some = inputs.config.exits, sampling.smallest(inputs.layout)
    if inputs.config.train.finetune_epochs == 0:
        raise UserError(f"{setting('exits', options.method)}: exits are trained with fine-tuned picks, and "
                        "train.finetune_epochs=0: leave one of them out")
    with randomness.seeded(inputs.seed):
        net = build(inputs.layout, _with_all_exits(inputs, some))
    least = _count_phases(inputs, net)
    if options.epochs is not None and options.epochs < least:
        raise UserError(f"exits.epochs={options.epochs}: {options.method} trains in {least} phases, each an epoch at "
                        "least")


def _count_phases(inputs: Inputs, net: Network) -> int:
    """Counts the phases of the method around a network with all exits. Raises UserError for settings it refuses."""
    options = inputs.config.exits
    with randomness.seeded(inputs.seed):  # what it begins with is not kept, and nothing else is to begin otherwise
        return make(options.method, net, **options.settings).phases()


def exit_card(inputs: Inputs, arch: Arch, plain: Card, place: str, recipe: FineTuningRecipe,
              progress: Progress, bounds: Mapping[str, float]) -> Card | None:
    """Trains and writes the exits of a pick whose card is ``plain``; returns a card of their own.

    None where no exits keep within the limits, and where their files cannot be made or differ from PyTorch.

    ``bounds`` are the budgets of the mean, by target: what is measured above them is said in the card.
    """
    name = network_folder(place, arch) + FOLDER

    def made() -> dict[str, Any] | None:
        card = _make_card(inputs, arch, plain, name, place, recipe, progress, bounds)
        return card.to_json() if card else None

    return inputs.run.read(name + CARD, Card) if inputs.run.stage(name + CARD, made) else None


def export_exits(inputs: Inputs, card: Card, place: str, folder: Path) -> ExportedFile:
    """Writes the files of a pick with exits anew and compares them with PyTorch on random inputs.

    Thresholds, classes, pictures and card are copied, as they were made of images.
    """
    method, full = load_with_all_exits(inputs, card, place)
    kept = [full.exits.index(slot) for slot in card.exits]
    network = MultiExit(Kept(method.net.net, kept), method.net.combine.kept(kept)).eval()
    delivered = inputs.run.file(card.onnx).parent
    policy = inputs.run.read(str(Path(card.onnx).parent / THRESHOLDS), Policy)
    arch = replace(full, exits=())
    size, in_ch = inputs.layout.task.size, inputs.layout.task.in_ch
    written = export(network, folder, in_ch=in_ch, size=size, policy=policy,
                     metadata={**metadata_of(inputs, arch), "exit_method": inputs.config.exits.method})
    for name in (THRESHOLDS, CLASSES, CARD, *PICTURES):
        copy(delivered / name, folder / name)
    images = torch.randn(RANDOM, in_ch, size, size, generator=torch.Generator().manual_seed(0))
    return ExportedFile(id=card.id, predicted_ms=card.ms, onnx=str(folder / written.onnx),
                        **dict(check_files(folder, network, policy, images)))


def load_with_all_exits(inputs: Inputs, card: Card, place: str) -> tuple[Method, Arch]:
    """Loads the network of a pick with exits as it was trained, with all exits that it could have, and its arch."""
    arch = Arch.from_json(inputs.run.read_json(f"{place}archs/{card.of}/arch.json"))
    full, options = _with_all_exits(inputs, arch), inputs.config.exits
    net = with_exits(inputs.layout, full, load_weights(inputs, arch, place), inputs.seed)
    method = make(options.method, net, **options.settings)
    load_exits(method, inputs.run, f"{Path(card.onnx).parent}/")
    return method.eval(), full


def _with_all_exits(inputs: Inputs, arch: Arch) -> Arch:
    """Returns the arch with an exit wherever the space has one."""
    return replace(arch, exits=tuple(exit_.slot for exit_ in inputs.layout.exits))


def _make_card(inputs: Inputs, arch: Arch, plain: Card, name: str, place: str, recipe: FineTuningRecipe,
               progress: Progress, bounds: Mapping[str, float]) -> Card | None:
    options, data, full = inputs.config.exits, inputs.data, _with_all_exits(inputs, arch)
    net = with_exits(inputs.layout, full, load_weights(inputs, arch, place), inputs.seed)
    try:
        check(net, in_ch=data.in_ch, size=data.size)
    except UserError as error:
        progress.note(f"{arch.id}: no exits: {error}")
        return None
    least = _count_phases(inputs, net)
    epochs = options.epochs if options.epochs is not None else max(least, recipe.epochs)
    learned = recipe.model_copy(update={"epochs": epochs})
    method = train_exits(arch.id, placement.placed(net, inputs.device), data, learned, inputs.run, name, inputs.seed,
                         inputs.device, progress, method=options.method, settings=options.settings)
    views = list(evaluation.views(data.select, inputs.config.train.augment or data.augment, inputs.seed))
    trained = Trained.of(method, data, inputs.device, options.confidence, views)
    pieces = {target: choice.pieces(plan(inputs.layout, full), costs.ms_many, known_exit_ms(costs))
              for target, costs in inputs.costs.items()}
    first, limit = next(iter(pieces)), inputs.config.max_ms
    if limit is not None:  # that is of the run's first target
        bounded = next(iter(inputs.config.target), "")
        first, limit = (bounded, limit) if bounded in pieces else (first, None)
    wishes = Wishes(options.confidence, options.rule, None, options.lose / 100, plain.select_accuracy, limit)
    try:
        served = choose_exits(trained, pieces[first], wishes)
        written = write_files(inputs.run.file(name), trained, served, {**metadata_of(inputs, arch),
                                                                "exit_method": options.method})
    except UserError as error:  # of this pick: the others and the search go on
        progress.note(f"{arch.id}: no exits: {error}")
        return None
    slots = tuple(full.exits[index] for index in served.kept)
    shortened = replace(arch, exits=slots)
    keys = plan(inputs.layout, shortened)
    times = _measure(inputs, trained, served, name)
    mean_ms, worst_ms = ({target: getattr(figures, key) for target, figures in times.items()}
                         for key in ("measured_ms", "measured_worst_ms"))
    excess = excesses(mean_ms, bounds)
    if limit is not None:
        excess |= excesses(worst_ms, {first: limit})
    shares, prefixes = np.array(served.crossed.shares), {t: p.prefix_ms(served.kept) for t, p in pieces.items()}
    mean = {target: float(shares @ prefix) for target, prefix in prefixes.items()}
    worst = {target: float(prefix[-1]) for target, prefix in prefixes.items()}
    return Card(id=shortened.id, of=arch.id, arch=shortened, size=shortened.size, ms=mean, worst_ms=worst,
                macs=sum(macs(key) for key in keys), params=sum(params(key) for key in keys), fine_tuned=True,
                exits=list(slots), measured_ms=mean_ms, measured_worst_ms=worst_ms,
                drift={target: figures.drift for target, figures in times.items()}, over_budget=excess,
                tables=busy_tables(inputs),
                select_accuracy=served.crossed.accuracy,
                select_accuracy_se=evaluation.standard_error(served.crossed.accuracy, len(data.select)),
                accuracy=served.test.accuracy, accuracy_se=written.accuracy_se, test_images=written.n,
                onnx=f"{name}{written.onnx}", relative_diff=written.relative_diff, method=options.method,
                shares=written.shares, prefix_ms={first: written.prefix_ms},
                test_mean_ms={first: written.mean_ms}, cuts=written.cuts, provenance=plain.provenance)


def _measure(inputs: Inputs, trained: Trained, served: Served, name: str) -> dict[str, Times]:
    """Measures exits by target, on each that is this machine."""
    times = dict.fromkeys(inputs.costs, UNMEASURED)
    for target, costs in inputs.costs.items():
        if here := timed_here(costs):
            table, device = here
            beside = partial(time_networks, layout=inputs.measured, table=table, device=device)
            times[target] = measure_exits(inputs.run.file(name), trained, served, beside, clock(1)[1])
    return times
