"""Adds early exits to a network that is trained already."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.cli.base import Classes, Json, Mean, Ops, Scale, Size, Std, app, out_folder, run_files
from nas.cli.output import print_result
from nas.errors import UserError
from nas.paths import absolute, located

if TYPE_CHECKING:
    from nas.pipeline.exits.card import ExitsCard
    from nas.pipeline.exits.models import Model
    from nas.pipeline.exits.places import Places
    from nas.progress import Progress
    from nas.run.directory import Run
    from nas.training.preprocessing import Preprocessing

LISTED = ("model", "target", "listed", "ops", "as_json")  # options that --list uses, whatever the model is
WISHES = ("confidence", "lose", "budget_ms", "max_ms")  # what exits are chosen by, once their heads are trained


@app.command()
def exits(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, an ONNX file, or a torchvision model's name.")],
    arch: Annotated[str | None, typer.Option(help="Of a run: the id of the pick.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Of a torchvision model: its trained weights.")] = None,
    images: Annotated[Path | None, typer.Option(help="Any images, without labels: exits learn what the network says.")]
    = None,
    data: Annotated[str | None, typer.Option(help="Labelled ones: cluttered, digits, cifar10, or a folder; default: "
                                             "the run's.")] = None,
    data_dir: Annotated[str | None, typer.Option(help="Where cifar10 lies.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use at most this many images.")] = None,
    size: Size = None,
    mean: Mean = None,
    std: Std = None,
    scale: Scale = None,
    classes: Classes = None,
    target: Annotated[str | None, typer.Option(help="Device: the run's, or of this machine (cpu).")] = None,
    method: Annotated[str, typer.Option(help="cache (self-distillation, no labels) or ztw.")] = "cache",
    confidence: Annotated[str, typer.Option(help="max-softmax, entropy or patience.")] = "max-softmax",
    lose: Annotated[float, typer.Option(help="Points of accuracy (%) that speed may cost.")] = 0.5,
    budget_ms: Annotated[float | None, typer.Option(help="Mean latency, in place of --lose.")] = None,
    max_ms: Annotated[float | None, typer.Option(help="No image takes longer.")] = None,
    augment: Annotated[str | None, typer.Option(help="none, crop or flip-crop; default: as the network or the images.")]
    = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Of the heads; default: 20,000 images.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of splits, heads and batches.")] = 0,
    train_on: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder; default: inside the run, or MODEL-exits.")] = None,
    listed: Annotated[bool, typer.Option("--list", help="Only say where exits could stand: no images, no training, "
                                         "and of a torchvision model no weights.")] = False,
    ops: Ops = None,
    as_json: Json = False,
) -> None:
    """Add early exits to a trained network. Only their heads learn, also from images without labels."""

    def places() -> Places:
        from nas.cli.progress import TerminalProgress
        from nas.pipeline.exits import existing
        from nas.pipeline.exits import places as listing
        from nas.run.directory import Run

        run_files(ops)
        if not Path(model).is_dir():
            return listing.places_of_file(model, weights, size, target, seed)
        return listing.places_of_pick(existing.load_pick(Run.existing(model), arch, target, False, TerminalProgress()))

    def from_run(how: Preprocessing | None, progress: Progress) -> tuple[Model, Path]:
        """Loads a pick of the run; returns it with the folder that its exits go into."""
        from nas.pipeline.exits import existing
        from nas.run.directory import Run
        from nas.run.images import Images

        if size is not None or weights is not None:
            raise UserError("--size and --weights: a run has its own")
        if how is not None or classes is not None:
            raise UserError("--mean, --std, --scale and --classes: a run knows how its networks read images")
        if limit is not None and images is None:
            raise UserError(f"--limit {limit}: a run has its own images; it is of those of --images")
        pick = existing.load_pick(Run.existing(model), arch, target, images is None, progress, Images(data, data_dir))
        return pick, out or Path(model) / "exits" / f"{pick.name}-{method}"

    def from_file(how: Preprocessing | None) -> tuple[Model, Path]:
        """Loads an ONNX file or a model of torchvision; returns it with the folder that its exits go into."""
        from nas.pipeline.exits import existing
        from nas.training.labels import read_names

        if arch is not None:
            raise UserError(f"--arch {arch}: is of a run, and {model} is none")
        if classes is not None and data is None:
            raise UserError(f"--classes {classes}: has no effect without --data, whose labels are found by it")
        read = partial(_images, data, data_dir, seed, limit)
        network = existing.load_file(model, weights, size, target, read, seed, how, read_names(classes))
        return network, out or Path(f"{Path(model).stem}-exits")

    def work() -> ExitsCard:
        from nas.cli.progress import TerminalProgress
        from nas.pipeline.exits.add import add, refuse_method
        from nas.pipeline.exits.serve import Wishes, checked_wishes
        from nas.training.preprocessing import Preprocessing

        run_files(ops)
        wishes = checked_wishes(Wishes(confidence, "search", budget_ms, lose / 100, None, max_ms))
        if images is not None and data is not None:
            raise UserError("--images and --data: give one of the two")
        refuse_method(method)
        out_folder(out)
        how, progress, of_run = Preprocessing.from_flags(mean, std, scale), TerminalProgress(), Path(model).is_dir()
        network, place = from_run(how, progress) if of_run else from_file(how)
        settings: dict[str, Any] = {
            "model": "." if of_run and out is None else absolute(model) if Path(model).exists() else model,
            "arch": arch and network.name,  # not the beginning of an id that was typed
            "images": absolute(str(images)) if images else None,
            "data": None if of_run else located("data", data), "limit": limit, "size": size,
            "target": located("target", target), "method": method, "confidence": confidence, "lose": lose,
            "budget_ms": budget_ms, "max_ms": max_ms, "epochs": epochs, "seed": seed, "augment": augment,
            "sha256": _digest(Path(model)), "weights": _digest(weights)}
        if how is not None:
            settings["preprocessing"] = vars(how)
        if classes is not None:
            settings["classes"] = _digest(classes)
        with _open_folder(place, settings) as here:
            return add(network, here, progress, images=images, limit=limit, method=method, epochs=epochs, seed=seed,
                       augment=augment, wishes=wishes, train_on=train_on)

    if listed:
        _refuse_others(context, *LISTED, *(("arch",) if Path(model).is_dir() else ("weights", "size")))
        print_result(places, as_json, _show_places)
    else:
        print_result(work, as_json, _show)


def _refuse_others(context: typer.Context, *used: str) -> None:
    """Raises UserError for an option that --list would leave without effect."""
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if source is not None and source.name == "COMMANDLINE" and parameter.name not in used:
            raise UserError(f"{parameter.opts[0]}: has no effect with --list")


@contextmanager
def _open_folder(place: Path, settings: dict[str, Any]) -> Iterator[Run]:
    """Opens the folder, locked, for one command.

    Heads do not depend on wishes, which are free until there is a card; all settings are free before an epoch. So a
    command that was refused, or that found no exits within its limits, does not stand in the way of a mended one.
    """
    from nas.pipeline.exits.serve import CARD
    from nas.run.directory import CONFIG, Run
    from nas.run.events import ExitsTrained

    run = Run(place)
    if not run.has(CONFIG):
        Run.open(place, settings)
    with run.lock():  # before what others began with is changed
        free = () if run.has(CARD) else WISHES if run.events(ExitsTrained) else tuple(settings)
        yield Run.open(place, settings, free)


def _images(name: str | None, data_dir: str | None, seed: int, limit: int | None, side: int, whites: Any) -> Any:
    from nas.training.data import load

    if name is None:
        return None
    return load(name, data_dir=Path(data_dir) if data_dir else None, size=side, seed=seed, limit=limit,
                whites=whites)


def _digest(path: Path | None) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path is not None and path.is_file() else None


def _show_places(result: Places) -> None:
    from nas.cli import render

    render.places(result)


def _show(card: ExitsCard) -> None:
    from nas.cli import render

    render.exits(card)
