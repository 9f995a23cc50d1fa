"""Makes and uses runs: search, select from one, judge by one, export from one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli.base import (
    Budgets,
    Data,
    DataDir,
    FlashKb,
    Images,
    Json,
    Minutes,
    Ops,
    RunPath,
    SramKb,
    Targets,
    Width,
    app,
    existing,
    out_folder,
    run_files,
)
from nas.cli.output import checked_budgets, named_budgets, print_result
from nas.errors import UserError
from nas.training import torchrun

if TYPE_CHECKING:
    from nas.run.records import Exported, Front, JudgedNetworks, Stopped


@app.command()
def search(
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="For example train.lr=0.05; nas "
                                                          "settings lists them all.")]
    = None,
    space: Annotated[str | None, typer.Option(help="Shipped name or file: see nas spaces. Default: ghost.")] = None,
    target: Targets = None,
    minutes: Minutes = None,
    budget_ms: Budgets = None,
    sram_kb: SramKb = None,
    flash_kb: FlashKb = None,
    data: Images = None,
    data_dir: Annotated[str | None, typer.Option(help="Where cifar10 lies.")] = None,
    limit: Annotated[int | None, typer.Option(help="Train on at most this many images.")] = None,
    size: Annotated[list[int] | None, typer.Option(help="Input side in pixels; twice or more: searched as well, the "
                                                   "images are of the largest. Default: the data's own.")] = None,
    width: Width = None,
    only_op: Annotated[str | None, typer.Option(help="Only this operator of the space.")] = None,
    selector: Annotated[str | None, typer.Option(help="ilp (default), auto, evolution, bayes, or random.")] = None,
    seed: Annotated[int | None, typer.Option(help="Default: 0.")] = None,
    train_on: Annotated[str | None, typer.Option(help="auto (default), cpu or cuda: where training runs.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of training; default: all cores.")] = None,
    exits: Annotated[str | None, typer.Option(help="Early exits of the picks, trained by boost, cache, cascade, "
                                              "distill, joint, weighted or ztw; --budget-ms then bounds the mean.")]
    = None,
    max_ms: Annotated[float | None, typer.Option("--max-ms", help="No image takes longer, predicted.")] = None,
    prune: Annotated[bool | None, typer.Option("--prune/--no-prune", help="Drop branches and layers. Default: yes.")]
    = None,
    baselines: Annotated[int | None, typer.Option(help="Known networks beside the picks, at most. Default: 1.")] = None,
    no_baseline: Annotated[bool, typer.Option("--no-baseline", help="None of these: as --baselines 0.")] = False,
    init: Annotated[str | None, typer.Option(help="A finished run whose supernet this one starts from.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings.")] = None,
    ops: Ops = None,
    until: Annotated[str | None, typer.Option(help="Stop behind this stage: supernet or selection (before "
                                              "fine-tuning). The same command without it goes on.")] = None,
    run: Annotated[Path | None, typer.Option(help="Run directory; default: runs/SPACE-TARGET-DATA-HEX.")] = None,
    as_json: Json = False,
) -> None:
    """Find the most accurate networks at each latency.

    Supernet, pruning, selection, fine-tuning, export; nas settings train says how long each is trained. The same
    command continues what was stopped.
    """
    flags = {"space": space, "target": target, "minutes": minutes, "budget_ms": budget_ms, "data": data,
             "data_dir": data_dir, "limit": limit, "size": size, "width": width, "only_op": only_op,
             "selector": selector, "seed": seed, "train_on": train_on, "threads": threads, "prune": prune, "init": init,
             "sram_kb": sram_kb, "flash_kb": flash_kb, "exits.method": exits, "max_ms": max_ms,
             "baselines": 0 if no_baseline else baselines}

    def work() -> Front | Stopped:
        from nas.cli.progress import TerminalProgress
        from nas.config.search import resolve, spread

        if no_baseline and baselines is not None:
            raise UserError(f"--baselines {baselines} and --no-baseline: give one of the two")
        run_files(ops)
        settings = spread(resolve(config, overrides or [], flags), torchrun.processes())
        from nas.pipeline.begin import begin_search

        return begin_search(settings, run, TerminalProgress(), until)

    print_result(work, as_json, _show_front if until is None else _show_stopped)


@app.command()
def select(
    run: RunPath,
    target: Targets = None,
    budget_ms: Annotated[list[str] | None, typer.Option(help="Latency budget of the first target, once or more; "
                         "TARGET=MS of several targets: the best network under all of them, too. Of macs and params in "
                         "millions.")] = None,
    points: Annotated[int | None, typer.Option("--budgets", min=1, max=256, help="Points of a front without budgets; "
                                               "default: as the search had.")] = None,
    max_params: Annotated[float | None, typer.Option(min=1, help="No pick has more parameters.")] = None,
    max_macs: Annotated[float | None, typer.Option(min=1, help="No pick has more multiply-adds.")] = None,
    sram_kb: SramKb = None,
    flash_kb: FlashKb = None,
    fine_tune: Annotated[bool, typer.Option("--fine-tune", help="Fine-tune the picks, too: takes longer.")] = False,
    storage: Annotated[str | None, typer.Option(help="Share the evaluations: sqlite:///FILE, a PostgreSQL or MySQL "
                                                "URL, or journal:FILE.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes here that evaluate, with --storage.")] = 1,
    data: Data = None,
    data_dir: DataDir = None,
    ops: Ops = None,
    as_json: Json = False,
) -> None:
    """Pick anew for other devices or budgets. Takes minutes: the supernet is not trained again."""

    def work() -> Front:
        budgets, together = named_budgets(budget_ms)
        run_files(ops)
        with existing(run) as (here, progress):
            from nas.pipeline import search as pipeline
            from nas.pipeline.budgets import Bounds
            from nas.pipeline.npu_memory import Memory
            from nas.run.images import Images
            from nas.run.settings import searched

            bounds = Bounds.of(max_params, max_macs, together)
            return pipeline.select(here, target or list(searched(here).target), budgets, progress, fine_tune,
                                   Memory(sram_kb, flash_kb), bounds, points, storage, workers, Images(data, data_dir))

    print_result(work, as_json, _show_front)


@app.command()
def judge(
    run: RunPath,
    archs: Annotated[Path | None, typer.Option("--archs", metavar="FILE", help="A JSON list of networks: of each the "
                                               "loss and accuracy with inherited weights on the selection split.")]
    = None,
    storage: Annotated[str | None, typer.Option(help="As given to nas select.")] = None,
    data: Data = None,
    data_dir: DataDir = None,
    ops: Ops = None,
    as_json: Json = False,
) -> None:
    """Judge networks by a run's supernet: those of a file, or those of a nas select --storage until interrupted.

    Batch norm statistics are recomputed for each. The same command continues what was stopped.
    """
    from nas.cli.progress import TerminalProgress
    from nas.pipeline import search as pipeline
    from nas.run.directory import Run
    from nas.run.images import Images

    if (archs is None) == (storage is None):
        raise UserError("--archs or --storage: give one of the two: a file of networks, or where nas select asks")
    if storage is not None and as_json:
        raise UserError("--json: a worker prints nothing: leave it out")
    run_files(ops)
    if storage is not None:
        # no lock: it only reads
        pipeline.judge(Run.existing(run), storage, TerminalProgress(), images=Images(data, data_dir))
        return

    def work() -> JudgedNetworks:
        assert archs is not None
        with existing(run) as (here, progress):
            return pipeline.judge_archs(here, archs, progress, Images(data, data_dir))

    print_result(work, as_json, _show_judged)


@app.command()
def export(
    run: RunPath,
    arch: Annotated[str | None, typer.Option(help="Id of the pick; default: all.")] = None,
    budget_ms: Annotated[float | None, typer.Option(help="The most accurate pick within this.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; default: inside the run.")] = None,
    kind: Annotated[str, typer.Option("--format", help="onnx, or calibrated on training images: int8-onnx, tflite.")]
    = "onnx",
    features: Annotated[bool, typer.Option("--features", help="ONNX without the head: the map of each stride as an "
                                           "output, for a detector or a segmenter.")] = False,
    data: Data = None,
    data_dir: DataDir = None,
    ops: Ops = None,
    as_json: Json = False,
) -> None:
    """Write one pick or all to files. Checked against PyTorch, and measured where this machine is the target."""

    def work() -> Exported:
        if kind not in ("onnx", "int8-onnx", "tflite"):
            raise UserError(f"--format {kind}: known are onnx, int8-onnx and tflite")
        if features and kind != "onnx":
            raise UserError(f"--features --format {kind}: the maps are written as onnx only")
        if arch is not None and budget_ms is not None:
            raise UserError("--arch and --budget-ms: give one of the two")
        checked_budgets([budget_ms] if budget_ms is not None else None)
        out_folder(out)
        run_files(ops)
        with existing(run) as (here, progress):
            from nas.pipeline import search as pipeline
            from nas.run.images import Images

            return pipeline.export(here, arch, budget_ms, out, progress, "features" if features else kind,
                                   Images(data, data_dir))

    print_result(work, as_json, _show_files)


def _show_files(result: Exported) -> None:
    from nas.cli import render

    render.exported(result)


def _show_stopped(result: Stopped) -> None:
    from nas.cli import render

    render.stopped(result)


def _show_judged(result: JudgedNetworks) -> None:
    from nas.cli import render

    render.judged(result)


def _show_front(result: Front) -> None:
    from nas.cli import render

    render.front(result)
