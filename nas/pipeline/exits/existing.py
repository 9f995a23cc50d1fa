"""Loads the networks that exits are added to: a pick of a run, an ONNX file, or a torchvision model with weights."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from nas.arch import Arch
from nas.errors import UserError, call, setting
from nas.exits import choice
from nas.exits.graft import Grafted, graft
from nas.latency import costs as cost_models
from nas.latency.devices.onnxruntime import clock as clock_of
from nas.latency.kernel_model import KernelModel
from nas.latency.onnx_graph import Graph, read_graph
from nas.latency.profile import time_networks
from nas.lower import formats
from nas.lower.onnx import export as export_onnx
from nas.lower.verify import check_onnx
from nas.pipeline import setup
from nas.pipeline.deliver import metadata_of
from nas.pipeline.exits.card import Reading
from nas.pipeline.exits.models import MeasuredOnnx, Model, Pick, PredictedOnnx, predict_pieces, time_here
from nas.pipeline.exits.price import known_exit_ms
from nas.pipeline.exits.serve import input_metadata, timed_here
from nas.pipeline.exits.train import with_exits
from nas.pipeline.exits.weights import build_classifier, check_size
from nas.pipeline.finetune import load_weights
from nas.pipeline.front import find_picks, read_fronts
from nas.plan import plan
from nas.progress import Progress
from nas.run.directory import Run
from nas.run.images import RECORDED, Images, with_images_at
from nas.run.settings import named_target, settings_of
from nas.training.data import Data, without_images
from nas.training.labels import names_in, outputs
from nas.training.pixels import Whites
from nas.training.preprocessing import Preprocessing, check_input, imagenet


def load_pick(run: Run, arch_id: str | None, target: str | None, images: bool, progress: Progress,
              where: Images = RECORDED) -> Pick:
    """Loads a finished pick of a run to add exits to it; without ``images`` those of the run are not read.

    Raises UserError for what is not there, and for a target whose files are int8.
    """
    config = with_images_at(settings_of(run), where)
    target = named_target(run, target) if target else None
    if not target and not config.target:
        raise UserError(f"{setting('target')}: {run.path} has none; give one")
    fronts = read_fronts(run)
    ids = [card.id for card in fronts[""].cards if not card.exits]
    if not ids:
        raise UserError(f"{run.path}: no pick without exits, which others could be added to")
    if arch_id is None and len(ids) != 1:
        raise UserError(f"{run.path}: which pick? {setting('arch')} takes one of {', '.join(ids)}")
    place, (wanted,) = find_picks(fronts, arch_id or ids[0], None)
    of = fronts[place].card(wanted)
    if of.exits:
        raise UserError(f"{setting('arch', wanted)}: has exits already; {setting('arch', str(of.of))} is the same "
                        "network without")
    target = target or config.target[0]
    inputs = setup.load_finished_inputs(config, run, [target] if target in config.target else config.target[:1], images)
    arch = Arch.from_json(run.read_json(f"{place}archs/{wanted}/arch.json"))
    inputs = inputs.of(arch)
    at = setup.with_exit_places(inputs)
    costs = setup.priced_exits(inputs, at, target, progress)
    if costs.int8_on_cpu:
        raise UserError(f"{setting('target', target)}: files with exits are float, and {target} is int8")
    full = replace(arch, exits=tuple(exit_.slot for exit_ in at.exits))
    if not full.exits:
        raise UserError(f"{wanted}: the space {arch.space} has no stride change behind its first slot: no exits")
    plain = load_weights(inputs, arch, place)
    keys = plan(at, full)
    here, metadata = timed_here(costs), metadata_of(inputs, arch)
    clock = partial(time_networks, layout=inputs.measured, table=here[0], device=here[1]) if here else None
    return Pick(name=wanted, net=with_exits(at, full, plain, inputs.seed), plain=plain,
                data=replace(inputs.data, augment=config.train.augment or inputs.data.augment), metadata=metadata,
                target=target, clock=clock, now_ns=clock_of(1)[1],
                reading=Reading(preprocessing=Preprocessing.from_metadata(metadata, run.path), classes_by=None,
                                weights_at=None, ends_in="logits"),
                layout=at, keys=keys, priced=choice.pieces(keys, costs.ms_many, known_exit_ms(costs)))


def load_file(model: str, weights: Path | None, size: int | None, target: str | None,
              data: Callable[[int, Whites], Data | None], seed: int, preprocessing: Preprocessing | None = None,
              classes: Sequence[str] | None = None) -> Model:
    """Loads an ONNX file, or a torchvision model by name with a file of its weights, to add exits to it.

    ``data`` gives images of a size, with what the file divides pixels of more than 8 bits by. Images are read as
    ``preprocessing`` says, else as the file does, else as ImageNet's; ``classes`` are those of the outputs in place of
    the file's own. Costs are measured here, or come from the target's kernel model. Raises UserError for what has no
    exits or costs.
    """
    costs = foreign_costs(model, target)
    foreign = load_foreign(model, weights, size, seed)
    net, proto, side = foreign.net, foreign.graph.model, foreign.graph.shape[2]
    kept = {p.key: p.value for p in proto.metadata_props}
    how = preprocessing or (imagenet("torchvision's weights were trained with it") if foreign.torchvision else
                            Preprocessing.from_metadata(kept, Path(model)))
    known = classes if classes is not None else names_in(kept)
    whites = Whites.from_metadata(kept)
    read, by = _read_as(data(side, whites), how, known, net.classes, side, model)
    read = read if len(read.learn) else replace(read, whites=whites)
    reading = Reading(preprocessing=how, classes_by=by, weights_at=foreign.weights, ends_in=foreign.graph.cut.kind)
    name, now_ns = Path(model).stem, clock_of(1)[1]
    metadata = {**input_metadata(read, side), "id": name}
    if costs is None:
        return MeasuredOnnx(name=name, net=net, plain=net, data=read, metadata=metadata, target="cpu", clock=time_here,
                            now_ns=now_ns, reading=reading, graph=proto)
    return PredictedOnnx(name=name, net=net, plain=net, data=read, metadata=metadata, target=str(target), now_ns=now_ns,
                         reading=reading, priced=predict_pieces(net, read, costs))


def foreign_costs(model: str, target: str | None) -> KernelModel | None:
    """Returns a target's kernel model, None for this machine, where files are timed; others are a UserError."""
    if target in (None, "cpu"):
        return None
    costs = cost_models.load(str(target))
    if not isinstance(costs, KernelModel):
        raise UserError(f"{setting('target', target)}: has rows for operators of search spaces; for {model} give cpu "
                        "(this machine) or a kernel model, such as gpu-v100")
    return costs


@dataclass(frozen=True)
class Foreign:
    """Holds a network that nas did not make, with untrained exits wherever one can stand.

    ``weights`` says where in their file the weights of a torchvision model lay.
    """

    graph: Graph
    net: Grafted
    torchvision: bool
    weights: str | None


def load_foreign(model: str, weights: Path | None, size: int | None, seed: int, untrained: bool = False) -> Foreign:
    """Loads an ONNX file, or a torchvision model by name, and puts untrained exits wherever one can stand.

    With ``untrained`` a torchvision model needs no weights. Raises UserError for what is neither, and for what exits
    cannot be added to.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, place = _as_onnx(model, weights, size, Path(folder), untrained)
        try:
            graph = read_graph(path, size).in_float().logits()
        except UserError as error:
            raise UserError(str(error).replace(str(path), model)) from None
    check_input(model, graph.shape, True)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = graft(graph.model, graph.entry, graph.shapes)
    except UserError as error:
        raise UserError(f"{model}: {error}") from None
    return Foreign(graph, net, path != Path(model), place)


def _as_onnx(model: str, weights: Path | None, size: int | None, folder: Path,
             untrained: bool) -> tuple[Path, str | None]:
    """Returns the path of a network's ONNX file, and the key under which ``weights`` hold its weights.

    A torchvision model is exported into ``folder``.
    """
    path = Path(model)
    if path.is_file():
        if (kind := formats.format_of(path)) in (formats.TORCH, formats.SAFETENSORS):
            raise UserError(f"{model}: {kind.text}, not an ONNX file; weights of a network of torchvision go with its "
                            f"name: {call('exits', model='NAME', weights=model)}")
        if other := formats.not_onnx(path):
            raise UserError(other)
        if weights is not None:
            raise UserError(f"{setting('weights')}: an ONNX file has its own")
        return path, None
    if path.suffix == ".onnx":
        raise UserError(f"{model}: no such file")
    made = build_classifier(model, weights, untrained)
    side = made.size if size is None else size
    check_size(model, made, side)
    try:
        export_onnx(made.net, folder / "model.onnx", in_ch=3, size=side, metadata={})
        if weights is not None:
            check_onnx(folder / "model.onnx", made.net, in_ch=3, size=side, n=2)
    except UserError as error:
        raise UserError(str(error).replace(str(folder / "model.onnx"), model)) from None
    return folder / "model.onnx", made.weights


def _read_as(given: Data | None, how: Preprocessing, known: Sequence[str] | None, classes: int, side: int,
             model: str) -> tuple[Data, str | None]:
    """Returns images normalised and labelled for a network, and how its classes were found.

    If none are ``given``, there are no images in what it returns.
    """
    if given is None:
        names = known if known is not None and len(known) == classes else list(map(str, range(classes)))
        blank = without_images(model, names, side, how.mean, how.std)
        return how.applied(blank), None
    meant = outputs(model, classes, known, given.classes)
    return how.applied(meant.applied(given)), meant.by
