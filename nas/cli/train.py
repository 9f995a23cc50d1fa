"""Trains one network from scratch, or says how good a file is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli.base import Classes, Images, Json, Mean, Minutes, Ops, Scale, Size, Std, Targets, Width, app, run_files
from nas.cli.output import print_result

if TYPE_CHECKING:
    from nas.pipeline.evaluate import Evaluation
    from nas.run.records import Front


@app.command()
def train(
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE",
                                                          help="For example train.finetune_lr=0.003; "
                                                          "nas settings train lists them.")] = None,
    arch: Annotated[str | None, typer.Option(help="largest, smallest or random of the space, or an arch.json; default: "
                                             "the only one of a space that has one.")] = None,
    space: Annotated[str | None, typer.Option(help="Shipped name or file: see nas spaces. Default: the arch's.")]
    = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the images; default: as many images as a pick of a "
                                               "search sees.")] = None,
    minutes: Minutes = None,
    target: Targets = None,
    data: Images = None,
    data_dir: Annotated[str | None, typer.Option(help="Where cifar10 lies.")] = None,
    limit: Annotated[int | None, typer.Option(help="Train on at most this many images.")] = None,
    size: Size = None,
    width: Width = None,
    seed: Annotated[int | None, typer.Option(help="Default: 0.")] = None,
    train_on: Annotated[str | None, typer.Option(help="auto (default), cpu or cuda: where training runs.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of training; default: all cores.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings.")] = None,
    ops: Ops = None,
    run: Annotated[Path | None, typer.Option(help="Directory; default: runs/SPACE-train-ARCH-DATA-HEX.")] = None,
    as_json: Json = False,
) -> None:
    """Train one network of a space from scratch, as the picks of a search are fine-tuned: a baseline.

    Writes weights, ONNX and a card. The same command continues what was stopped.
    """

    def work() -> Front:
        from nas.cli.progress import TerminalProgress
        from nas.config.search import resolve
        from nas.pipeline.begin import begin_training
        from nas.run.settings import Baseline

        run_files(ops)
        flags = {"arch": arch, "space": space, "minutes": minutes, "target": target, "data": data, "data_dir": data_dir,
                 "limit": limit, "width": width, "seed": seed, "size": size, "train_on": train_on, "threads": threads,
                 "train.finetune_epochs": epochs}
        return begin_training(resolve(config, overrides or [], flags, Baseline), run, TerminalProgress())

    print_result(work, as_json, _show)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx|RUN", help="A file, or a run whose pick is meant.")],
    arch: Annotated[str | None, typer.Option(help="Id of the pick of a run.")] = None,
    budget_ms: Annotated[float | None, typer.Option(help="The most accurate pick of a run within this.")] = None,
    data: Annotated[str | None, typer.Option(help="cluttered, digits, cifar10, or a folder; default: the run's.")]
    = None,
    data_dir: Annotated[str | None, typer.Option(help="Where cifar10 lies.")] = None,
    split: Annotated[str, typer.Option(help="test, select (choosing was by it), or all images of a folder.")] = "test",
    size: Size = None,
    seed: Annotated[int | None, typer.Option(help="Of the splits; default: that of the run, or 0.")] = None,
    mean: Mean = None,
    std: Std = None,
    scale: Scale = None,
    classes: Classes = None,
    as_json: Json = False,
) -> None:
    """Say how good an ONNX file is on images: top-1, top-5 and every class, with 95 % intervals."""

    def work() -> Evaluation:
        from nas.cli.progress import TerminalProgress
        from nas.pipeline.evaluate import evaluate as judge
        from nas.training.labels import read_names
        from nas.training.preprocessing import Preprocessing

        return judge(model, arch=arch, budget_ms=budget_ms, data=data, data_dir=data_dir, split=split, size=size,
                     seed=seed, preprocessing=Preprocessing.from_flags(mean, std, scale), classes=read_names(classes),
                     progress=TerminalProgress())

    print_result(work, as_json, _show_score)


def _show_score(result: Evaluation) -> None:
    from nas.cli import render

    render.score(result)


def _show(result: Front) -> None:
    from nas.cli import render

    render.front(result)
