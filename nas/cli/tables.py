"""Builds latency tables, checks them, and predicts by them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.cli.base import Batch, Device, Json, Ops, Target, Threads, Width, app, out_file, rows, run_files
from nas.cli.output import checked_width, print_result
from nas.units import column

if TYPE_CHECKING:
    from nas.latency.costs import KnownTarget
    from nas.latency.predict import Prediction
    from nas.latency.sample import Sample
    from nas.latency.validate import Validated
    from nas.pipeline.profile import ProfiledSpaces


@app.command()
def profile(
    device: Annotated[str, typer.Option("--device", help="cpu or gpu (of this machine; or its runtime: "
                                        "gpu-tensorrt, gpu-ort, gpu-torch), or an NPU by its compiler: ethos-u55-128, "
                                        "ethos-u55-256, ethos-u65-256, ethos-u85-256, or a BOARD.ini.")] = "cpu",
    space: Annotated[list[str] | None, typer.Option(help="Shipped name or file, once or more; default: all shipped.")]
    = None,
    size: Annotated[int, typer.Option(help="Input side in pixels.")] = 224,
    classes: Annotated[int, typer.Option(min=1, help="Outputs of the head.")] = 10,
    width: Width = None,
    exits: Annotated[bool, typer.Option("--exits", help="The heads of early exits, too.")] = False,
    threads: Threads = 1,
    batch: Batch = 1,
    precision: Annotated[str | None, typer.Option(help="fp32 (default); int8 of the cpu, fp16 of a gpu.")] = None,
    remeasure: Annotated[bool, typer.Option("--remeasure", help="Measure rows that are there already, too.")] = False,
    out: Annotated[Path | None, typer.Option(help="Table; default: the target's file under ./latency_tables.")] = None,
    validate: Annotated[int, typer.Option(min=0, help="Compare predicted and measured on this many random networks.")]
    = 0,
    ops: Ops = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of measuring and of the random networks.")] = 0,
    as_json: Json = False,
) -> None:
    """Fill the latency table of a device. Rows that are there stay; an interrupted call continues."""

    def work() -> ProfiledSpaces:
        from nas.cli.progress import TerminalProgress
        from nas.pipeline.profile import profile_spaces
        from nas.plan import Task

        out_file(out)
        run_files(ops)
        return profile_spaces(space or [], Task(size, 3, classes), out, TerminalProgress(), device=device,
                              width=checked_width(width), exits=exits, threads=threads, batch=batch,
                              precision=precision, remeasure=remeasure, validate=validate, seed=seed)

    print_result(work, as_json, _show_profile)


@app.command()
def measure(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="Any network as an ONNX file.")],
    device: Device = "cpu",
    threads: Threads = 1,
    batch: Annotated[int | None, typer.Option("--batch", min=1, max=4096, help="Images a call, where the file leaves "
                                              "it open; default: the file's, or 1.")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Input side, where the file leaves it open.")] = None,
    as_json: Json = False,
) -> None:
    """Time an ONNX file on this machine. Its ms is the 5th percentile of many runs, as in latency tables.

    Other load only ever makes a run slower, so the low percentiles are those of the network itself.
    """

    def work() -> dict[str, Any]:
        from nas.latency.devices import measure as clock

        timing = asdict(clock(model, device, threads=threads, batch=batch, size=size))
        return {"ms": timing.pop("ms"), "ms_percentile": 5, **timing}

    def show(result: dict[str, Any]) -> None:
        rows([{"5th percentile ms": result["ms"], "10th": result["p10_ms"], "90th": result["p90_ms"],
               "runs": result["n"], **{key: result[key] for key in ("batch", "threads") if key in result}}])

    print_result(work, as_json, show)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="Any network as an ONNX file.")],
    target: Target,
    size: Annotated[int | None, typer.Option(min=1, help="Input side, where the file leaves it open.")] = None,
    allow_unknown: Annotated[bool, typer.Option("--allow-unknown", help="Leave out what has no known cost.")] = False,
    as_json: Json = False,
) -> None:
    """Predict the latency of any ONNX file by a target's cost model, operator by operator. Nothing is measured."""

    def work() -> Prediction:
        from nas.latency.predict import predict_on

        return predict_on(target, model, size, allow_unknown)

    print_result(work, as_json, _show_prediction)


@app.command()
def sample(
    target: Target,
    out: Annotated[Path, typer.Option(help="New directory for the files and samples.json.")],
    space: Annotated[str, typer.Option(help="Shipped name or file: see nas spaces.")] = "ghost",
    n: Annotated[int, typer.Option("-n", min=1, help="Networks.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of networks.")] = 0,
    size: Annotated[int, typer.Option(help="Input side in pixels.")] = 224,
    classes: Annotated[int, typer.Option(min=1, help="Outputs of the head.")] = 10,
    width: Width = None,
    ops: Ops = None,
    as_json: Json = False,
) -> None:
    """Write random networks as ONNX with their predicted ms, to be measured anywhere. The same command continues."""

    def work() -> list[Sample]:
        from nas.cli.progress import TerminalProgress
        from nas.latency.sample import sample as draw
        from nas.plan import Task, layout
        from nas.run.tables import filled
        from nas.space import Space

        run_files(ops)
        progress = TerminalProgress()
        place = layout(Space.load(space).scaled(checked_width(width)), Task(size, 3, classes))
        return draw(place, filled(target, place, progress), n, seed, out, progress)

    print_result(work, as_json, lambda samples: rows([
        {"id": drawn.id, column("predicted", target, False): drawn.ms, "onnx": drawn.onnx} for drawn in samples]))


@app.command()
def validate(
    samples: Annotated[Path, typer.Argument(metavar="SAMPLES.json", help="Of nas sample.")],
    measured: Annotated[Path, typer.Argument(metavar="MEASURED.csv", help="Columns id and ms.")],
    table: Annotated[str, typer.Option(help="The target that predicted: see nas targets.")],
    write: Annotated[bool, typer.Option("--write", help="Note the result in the table.")] = False,
    as_json: Json = False,
) -> None:
    """Compare predicted ms with measurements made elsewhere."""

    def work() -> Validated:
        from nas.latency.validate import validate as compare

        return compare(table, samples, measured, write)

    print_result(work, as_json, lambda result: rows([vars(result)]))


@app.command()
def targets(as_json: Json = False) -> None:
    """List the devices with known costs. Says where the figures come from."""

    def work() -> list[KnownTarget]:
        from nas.latency.costs import targets as known

        return known()

    shown = ("name", "device", "processor", "runtime", "precision", "batch", "threads", "date", "checked", "error")

    def show(targets: list[KnownTarget]) -> None:
        from nas.cli.render import line

        known = [target.to_json() for target in targets]
        rows(known, [key for key in shown if any(key in target for target in known)])
        for target in targets:
            if target.busy:
                line(f"{target.name}: {target.busy}")

    print_result(work, as_json, show)


def _show_profile(result: ProfiledSpaces) -> None:
    from nas.cli import render

    render.profile(result)


def _show_prediction(result: Prediction) -> None:
    from nas.cli import render

    render.prediction(result)
