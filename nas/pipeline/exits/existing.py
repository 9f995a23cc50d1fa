"""Networks that exits are added to: a pick of a run, an ONNX file, or a torchvision model with its weights."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from nas.arch import Arch, Op
from nas.errors import UserError
from nas.exits import choice
from nas.exits.choice import Pieces
from nas.exits.export import BRANCHED, export
from nas.exits.graft import HIDDEN, Grafted, Part, graft
from nas.exits.net import Combine, MultiExit, Network
from nas.exits.policy import Point, Policy
from nas.latency import costs as cost_models
from nas.latency.devices.onnxruntime import clock as clock_of
from nas.latency.devices.onnxruntime import session, timed
from nas.latency.fresh import fresh
from nas.latency.kernel_model import KernelModel
from nas.latency.onnx_graph import Graph, read
from nas.latency.predict import kernels_ms
from nas.latency.profile import check_all, one_torch_thread
from nas.latency.timing import Run as Timed
from nas.latency.timing import interleaved
from nas.lower import formats
from nas.lower.emit import emit
from nas.lower.onnx import export as export_onnx
from nas.lower.onnx import save
from nas.lower.verify import check_onnx
from nas.pipeline import setup
from nas.pipeline.deliver import metadata_of
from nas.pipeline.exits.price import known_exit_ms
from nas.pipeline.exits.serve import Clock, Served, Trained, exit_runs, named, repriced, timed_here
from nas.pipeline.exits.train import with_exits
from nas.pipeline.exits.weights import check_size, classifier
from nas.pipeline.finetune import load_weights
from nas.pipeline.front import cards_of, find
from nas.plan import Layout, OpKey, macs, plan
from nas.progress import Progress
from nas.run.directory import Run
from nas.run.images import RECORDED, Images, lying_at
from nas.run.settings import named_target, settings_of
from nas.train.data import Data, recorded
from nas.train.labels import outputs
from nas.train.pixels import NARROW, Whites
from nas.train.preprocessing import Preprocessing, check_input, imagenet

SECONDS = 2.0  # an exit, timed without a table's yardstick


@dataclass(frozen=True)
class Model:
    """A network with fresh exits, what it costs, and on what images; ``data`` without any where they are the user's.

    ``pieces`` gives milliseconds that exits are chosen by, ``final`` those of the file with the exits that are kept, in
    a folder; ``clock`` is there where this machine is the target.
    """

    name: str
    net: Network
    plain: Callable[[torch.Tensor], torch.Tensor]
    data: Data
    metadata: dict[str, str]
    target: str
    pieces: Callable[[], Pieces]
    final: Callable[[Trained, Served, Path], Served]
    clock: Clock | None
    now_ns: Callable[[], int]
    said: Mapping[str, Any] = field(default_factory=dict)  # for the card: how images are read
    walk: tuple[Layout, Sequence[OpKey]] | None = None  # of a pick: its space with exits, its plan with all of them


def pick(run: Run, arch_id: str | None, target: str | None, images: bool, progress: Progress,
         where: Images = RECORDED) -> Model:
    """A finished pick; without ``images`` those of the run are not read.

    Raises UserError for what is not there, and for a target whose files are int8.
    """
    config = lying_at(settings_of(run), where)
    target = named_target(run, target) if target else None
    if not target and not config.target:
        raise UserError(f"--target: {run.path} has none; give one")
    places = ["", *(f"selections/{p.parent.name}/" for p in sorted(run.path.glob("selections/*/front.json")))]
    fronts = {place: run.read_json(f"{place}front.json") for place in places}
    ids = [card["id"] for card in cards_of(fronts[""]) if not card["exits"]]
    if not ids:
        raise UserError(f"{run.path}: no pick without exits, which others could be added to")
    if arch_id is None and len(ids) != 1:
        raise UserError(f"{run.path}: which pick? --arch takes one of {', '.join(ids)}")
    place, (wanted,) = find(fronts, arch_id or ids[0], None)
    of = next(card for card in cards_of(fronts[place]) if card["id"] == wanted)
    if of["exits"]:
        raise UserError(f"--arch {wanted}: has exits already; --arch {of['of']} is the same network without")
    target = target or config.target[0]
    inputs = setup.load_recorded(config, run, [target] if target in config.target else config.target[:1], images)
    arch = Arch.from_json(run.read_json(f"{place}archs/{wanted}/arch.json"))
    inputs = inputs.at(arch.size)
    at = setup.with_exit_places(inputs)
    costs = setup.priced_exits(inputs, at, target, progress)
    if costs.int8_on_cpu:
        raise UserError(f"--target {target}: files with exits are float, and {target} is int8")
    full = replace(arch, exits=tuple(exit_.slot for exit_ in at.exits))
    if not full.exits:
        raise UserError(f"{wanted}: the space {arch.space} has no stride change behind its first slot: no exits")
    plain = load_weights(inputs, arch, place)
    keys = plan(at, full)
    own = choice.pieces(keys, costs.ms_many, known_exit_ms(costs))
    here = timed_here(costs)
    metadata = metadata_of(inputs, arch)
    data = replace(inputs.data, augment=config.train.augment or inputs.data.augment)
    return Model(wanted, with_exits(at, full, plain, inputs.seed), plain, data, metadata,
                 target, lambda: own, lambda trained, served, folder: served,
                 partial(check_all, layout=inputs.layout, table=here[0], device=here[1]) if here else None,
                 clock_of(1)[1], {"preprocessing": Preprocessing.of_file(metadata, run.path).to_json()}, (at, keys))


def whites_of(model: str) -> Whites:
    """What the pixels of files of more than 8 bits were divided by in training a network, where its file says so."""
    if not Path(model).is_file():
        return NARROW
    return Whites.of_metadata({p.key: p.value for p in onnx.load(model, load_external_data=False).metadata_props})


def file(model: str, weights: Path | None, size: int | None, target: str | None, data: Callable[[int], Data | None],
         seed: int, preprocessing: Preprocessing | None = None, classes: Sequence[str] | None = None) -> Model:
    """An ONNX file, or a torchvision model by name with a file of its weights; ``data`` gives images of a size.

    Images are read as ``preprocessing`` says, else as the file does, else as ImageNet's; ``classes`` are those of the
    outputs in place of the file's own. Costs are measured here, or come from the target's kernel model. Raises
    UserError for what has no exits or costs.
    """
    costs = foreign_costs(model, target)
    foreign = grafted(model, weights, size, seed)
    net, proto, side = foreign.net, foreign.graph.model, foreign.graph.shape[2]
    kept = {p.key: p.value for p in proto.metadata_props}
    how = preprocessing or (imagenet("torchvision's weights were trained with it") if foreign.torchvision else
                            Preprocessing.of_file(kept, Path(model)))
    known = classes if classes is not None else kept["classes"].split("\n") if "classes" in kept else None
    own, by = _on(data(side), how, known, net.classes, side, model)
    own = own if len(own.learn) else replace(own, whites=Whites.of_metadata(kept))
    said = {"preprocessing": how.to_json(), "classes_by": by, "weights_at": foreign.weights,
            "ends_in": foreign.graph.cut.kind}
    name, here = Path(model).stem, clock_of(1)[1]
    metadata = {**named(own, side), "id": name}
    if costs is None:
        return Model(name, net, net, own, metadata, "cpu", lambda: measured_pieces(net, own, proto, here),
                     _timed_prefix(here), _alone, here, said)
    priced = predicted_pieces(net, own, costs)  # before anything is trained: it may not know a kernel
    return Model(name, net, net, own, metadata, str(target), lambda: priced,
                 lambda trained, served, folder: served, None, here, said)


def foreign_costs(model: str, target: str | None) -> KernelModel | None:
    """Of a target that prices any graph; None for this machine, where files are timed. Raises UserError for others."""
    if target in (None, "cpu"):
        return None
    costs = cost_models.load(str(target))
    if not isinstance(costs, KernelModel):
        raise UserError(f"--target {target}: has rows for operators of search spaces; for {model} give cpu (this "
                        "machine) or a kernel model, such as gpu-v100")
    return costs


@dataclass(frozen=True)
class Foreign:
    """A network that nas did not make, with fresh exits wherever one can stand.

    ``weights`` says where in their file the weights of a torchvision model lay.
    """

    graph: Graph
    net: Grafted
    torchvision: bool
    weights: str | None


def grafted(model: str, weights: Path | None, size: int | None, seed: int, untrained: bool = False) -> Foreign:
    """An ONNX file, or a torchvision model by name; ``untrained`` needs no weights of that.

    Raises UserError for what is neither, and for what exits cannot be added to.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, place = _as_onnx(model, weights, size, Path(folder), untrained)
        try:
            graph = read(path, size).in_float().logits()
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
    """The file itself, or one in ``folder`` of a torchvision model; and where in ``weights`` its own lay."""
    path = Path(model)
    if path.is_file():
        if (kind := formats.format_of(path)) in (formats.TORCH, formats.SAFETENSORS):
            raise UserError(f"{model}: {kind.text}, not an ONNX file; weights of a network of torchvision go with its "
                            f"name: nas exits NAME --weights {model}")
        if other := formats.not_onnx(path):
            raise UserError(other)
        if weights is not None:
            raise UserError("--weights: an ONNX file has its own")
        return path, None
    if path.suffix == ".onnx":
        raise UserError(f"{model}: no such file")
    made = classifier(model, weights, untrained)
    check_size(model, made, size or made.size)
    try:
        export_onnx(made.net, folder / "model.onnx", in_ch=3, size=size or made.size, metadata={})
        if weights is not None:
            check_onnx(folder / "model.onnx", made.net, in_ch=3, size=size or made.size, n=2)
    except UserError as error:
        raise UserError(str(error).replace(str(folder / "model.onnx"), model)) from None
    return folder / "model.onnx", made.weights


def _on(given: Data | None, how: Preprocessing, known: Sequence[str] | None, classes: int, side: int,
        model: str) -> tuple[Data, str | None]:
    """Images as the network reads them, with its classes, and how these were found; none without ``given``."""
    if given is None:
        names = known if known is not None and len(known) == classes else list(map(str, range(classes)))
        blank = recorded({"name": model, "classes": names, "size": side, "mean": how.mean, "std": how.std})
        return how.applied(blank), None
    meant = outputs(model, classes, known, given.classes)
    return how.applied(meant.applied(given)), meant.by


def _alone(prepare: Callable[[], Mapping[str, Timed]], count: int) -> tuple[dict[str, float], float | None]:
    with one_torch_thread():
        timings = fresh(lambda: interleaved(prepare(), seconds=SECONDS * count, rng=random.Random(0), max_rounds=400,
                                            warm=5))
    return {name: timing.ms for name, timing in timings.items()}, None


def _timed_prefix(now_ns: Callable[[], int]) -> Callable[[Trained, Served, Path], Served]:
    """Leaving at each exit of the very file, in place of what its pieces add up to."""

    def final(trained: Trained, served: Served, folder: Path) -> Served:
        export(trained.network(served.kept), folder, in_ch=trained.data.in_ch, size=trained.data.size,
               policy=served.policy, metadata={})
        side = trained.data.size
        images = np.random.default_rng(0).standard_normal((8, 3, side, side), dtype=np.float32)
        exits = len(served.policy.prefix_ms)
        ms, _ = _alone(lambda: exit_runs(folder / BRANCHED, images, np.zeros(8, int), exits, now_ns), exits)
        return repriced(served, np.maximum.accumulate([ms[f"exit {index}"] for index in range(exits)]).tolist())

    return final


def measured_pieces(net: Grafted, data: Data, plain: onnx.ModelProto, now_ns: Callable[[], int]) -> Pieces:
    """Of the file with all exits, left at each: what it takes beyond the network without exits are the heads, by MACs.
    """
    exits = len(net.exits) + 1
    nobody = Point((np.inf,) * (exits - 1) + (-np.inf,), (0.0,) * exits, 0.0, 0.0, 0.0)
    made = Policy("max-softmax", (1.0,) * exits, (0.0,) * exits, 1, nobody)
    with tempfile.TemporaryDirectory() as folder:
        export(MultiExit(net, Combine()).eval(), Path(folder), in_ch=3, size=data.size, policy=made, metadata={})
        images = np.random.default_rng(0).standard_normal((8, 3, data.size, data.size), dtype=np.float32)

        def prepare() -> dict[str, Timed]:
            runs = exit_runs(Path(folder) / BRANCHED, images, np.zeros(8, int), exits, now_ns)
            return {**runs, "plain": timed(session(plain.SerializeToString()), 1, now_ns)}

        ms, _ = _alone(prepare, exits + 1)
    prefix = np.maximum.accumulate([ms[f"exit {index}"] for index in range(exits)])
    work = np.array(head_macs(net, data), float)
    over = max(prefix[-1] - ms["plain"], 0.02 * ms["plain"])
    heads = np.r_[over * work / work.sum(), 0.0]
    return Pieces(np.maximum(np.diff(np.r_[0.0, prefix]) - heads, 1e-6), heads)


def predicted_pieces(net: Grafted, data: Data, costs: KernelModel) -> Pieces:
    """By the target's kernel model, part by part. Raises UserError where it does not know a part."""
    try:
        return _priced_pieces(net, data, costs)
    except UserError as error:
        raise UserError(f"--target {costs.name}: {error}; --target cpu times the network on this machine") from None


def _priced_pieces(net: Grafted, data: Data, costs: KernelModel) -> Pieces:
    with tempfile.TemporaryDirectory() as name:
        path, x = Path(name) / "part.onnx", torch.zeros(1, 3, data.size, data.size)
        trunk, heads = [], []
        for part, head in net.stages():
            assert isinstance(part, Part)
            save(part.model, path, {})
            trunk.append(kernels_ms(read(path), costs))
            x = part(x)
            heads.append(0.0)
            if not isinstance(head, nn.Identity):
                save(emit(head, in_ch=x.shape[1], size=x.shape[2]), path, {})
                heads[-1] = kernels_ms(read(path), costs)
    return Pieces(np.array(trunk), np.array(heads))


def head_macs(net: Grafted, data: Data) -> list[int]:
    """Of each exit's head."""
    found, x = [], torch.zeros(1, data.in_ch, data.size, data.size)
    for part in list(net.parts)[:-1]:
        x = part(x)
        found.append(macs(OpKey(Op.of("exit_head", hidden=HIDDEN), x.shape[1], net.classes, 1, x.shape[2])))
    return found
