"""The command line: one function a verb. Results go to stdout, everything else to stderr.

Whatever a verb needs is imported inside it, so that ``nas --help`` stays instant.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from nas import launch
from nas.errors import UserError
from nas.terminal import checked_budgets, checked_width, one_line, print_result

app = typer.Typer(help="Efficient vision backbones for a given device: measured latency, hard budgets, ONNX out.",
                  add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
                  context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})

Json = Annotated[bool, typer.Option("--json", help="Print one JSON value and nothing else.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="The directory that nas search printed.")]
Budgets = Annotated[list[float] | None, typer.Option("--budget-ms", help="Latency budget, once or more. Without one: "
                                                     "6, geometric over the reachable range.")]
Targets = Annotated[list[str] | None, typer.Option("--target", help="Device, once or more: see nas targets.")]
Target = Annotated[str, typer.Option("--target", help="Device: see nas targets.")]
Size = Annotated[int | None, typer.Option("--size", help="Input side in pixels; default: the data's own.")]
Threads = Annotated[int, typer.Option("--threads", min=1, max=1024, help="Threads of the runtime.")]
Batch = Annotated[int, typer.Option("--batch", min=1, max=4096, help="Images a call.")]
Device = Annotated[str, typer.Option("--device", help="What to measure on: cpu or gpu (of this machine).")]
SramKb = Annotated[float | None, typer.Option("--sram-kb", min=1, help="SRAM of an Ethos-U: no pick needs more.")]
FlashKb = Annotated[float | None, typer.Option("--flash-kb", min=1, help="The same of its flash, for the model.")]
Width = Annotated[float | None, typer.Option("--width", help="Factor of all channels, 0.05 to 8.")]


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
    seed: Annotated[int, typer.Option(min=0, help="Of the order of measuring and of the random networks.")] = 0,
    as_json: Json = False,
) -> None:
    """Fill the latency table of a device. Rows that are there stay; an interrupted call continues."""

    def work() -> dict[str, Any]:
        from nas.files import shipped
        from nas.latency.costs import LOCAL
        from nas.latency.devices import file_name, opened
        from nas.latency.profile import profile as fill
        from nas.plan import Task, layout
        from nas.progress import Progress
        from nas.space import Space

        factor, progress = checked_width(width), Progress()
        machine = opened(device, threads, batch, precision)
        path = out or LOCAL / file_name(machine.name, precision, threads, batch)
        layouts = [layout(Space.load(name).scaled(factor), Task(size, 3, classes), exits)
                   for name in space or shipped("search_spaces", ".yaml")]
        done = {}
        for each in layouts:
            with progress.task(f"profile {each.space}", 0) as task:
                done[each.space] = fill(each, path, device=machine, remeasure=remeasure, progress=_reaching(task),
                                        rng_seed=seed, validate=validate)
        checks = [one["validation"] for one in done.values() if one.get("validation")]
        return {**list(done.values())[-1], "measured": sum(one["measured"] for one in done.values()),
                "validation": max(checks, key=lambda check: check["mape"], default=None), "spaces": done}

    print_result(work, as_json, _show_profile)


@app.command()
def search(
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="For example train.lr=0.05.")]
    = None,
    space: Annotated[str | None, typer.Option(help="Shipped name or file: see nas spaces. Default: ghost.")] = None,
    target: Targets = None,
    budget_ms: Budgets = None,
    sram_kb: SramKb = None,
    flash_kb: FlashKb = None,
    data: Annotated[str | None, typer.Option(help="digits (default), cifar10, or a folder of images.")] = None,
    data_dir: Annotated[str | None, typer.Option(help="Where cifar10 lies.")] = None,
    limit: Annotated[int | None, typer.Option(help="Train on at most this many images.")] = None,
    size: Size = None,
    width: Width = None,
    only_op: Annotated[str | None, typer.Option(help="Only this operator of the space.")] = None,
    selector: Annotated[str | None, typer.Option(help="ilp (default), evolution, or random.")] = None,
    seed: Annotated[int | None, typer.Option(help="Default: 0.")] = None,
    train_on: Annotated[str | None, typer.Option(help="auto (default), cpu or cuda: where training runs.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of training; default: all cores.")] = None,
    prune: Annotated[bool | None, typer.Option("--prune/--no-prune", help="Drop branches and layers. Default: yes.")]
    = None,
    init: Annotated[str | None, typer.Option(help="A finished run whose supernet this one starts from.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings.")] = None,
    run: Annotated[Path | None, typer.Option(help="Run directory; default: runs/SPACE-TARGET-DATA-HEX.")] = None,
    as_json: Json = False,
) -> None:
    """Find the most accurate networks at each latency.

    Supernet, pruning, selection, fine-tuning, export. The same command continues what was stopped.
    """
    flags = {"space": space, "target": target, "budget_ms": budget_ms, "data": data, "data_dir": data_dir,
             "limit": limit, "size": size, "width": width, "only_op": only_op, "selector": selector, "seed": seed,
             "train_on": train_on, "threads": threads, "prune": prune, "init": init, "sram_kb": sram_kb,
             "flash_kb": flash_kb}

    def work() -> dict[str, Any]:
        from nas.config import FREE, default_run_dir, resolve, spread
        from nas.progress import Progress
        from nas.run import Run

        settings = spread(resolve(config, overrides or [], flags), launch.processes())
        path = run or default_run_dir(settings)
        from nas import search as pipeline

        fresh = not path.exists()
        if fresh:
            pipeline.refuse(settings)  # before a directory is made
        here = Run.open(path, settings.to_json(), FREE)
        try:
            with here.lock():
                return pipeline.search(settings, here, Progress())
        except UserError:
            if fresh and not here.events("epoch"):
                shutil.rmtree(path)  # refused before it began: the mended command may use the same directory
            raise

    print_result(work, as_json, _show_front)


@app.command()
def select(
    run: RunPath,
    target: Targets = None,
    budget_ms: Budgets = None,
    sram_kb: SramKb = None,
    flash_kb: FlashKb = None,
    fine_tune: Annotated[bool, typer.Option("--fine-tune", help="Fine-tune the picks, too: takes longer.")] = False,
    as_json: Json = False,
) -> None:
    """Pick anew for another device or budget. Takes minutes: the supernet is not trained again."""

    def work() -> dict[str, Any]:
        budgets = checked_budgets(budget_ms)
        with _existing(run) as (here, progress):
            from nas import search as pipeline
            from nas.footprint import Memory

            return pipeline.select(here, target or list(here.config["target"]), budgets, progress, fine_tune,
                                   Memory(sram_kb, flash_kb))

    print_result(work, as_json, _show_front)


@app.command()
def export(
    run: RunPath,
    arch: Annotated[str | None, typer.Option(help="Id of the pick; default: all.")] = None,
    budget_ms: Annotated[float | None, typer.Option(help="The most accurate pick within this.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; default: inside the run.")] = None,
    kind: Annotated[str, typer.Option("--format", help="onnx, or calibrated on training images: int8-onnx, tflite.")]
    = "onnx",
    as_json: Json = False,
) -> None:
    """Write one pick or all to files. Checked against PyTorch, and measured where this machine is the target."""

    def work() -> dict[str, Any]:
        if kind not in ("onnx", "int8-onnx", "tflite"):
            raise UserError(f"--format {kind}: known are onnx, int8-onnx and tflite")
        if arch is not None and budget_ms is not None:
            raise UserError("--arch and --budget-ms: give one of the two")
        checked_budgets([budget_ms] if budget_ms is not None else None)
        with _existing(run) as (here, progress):
            from nas import search as pipeline

            return pipeline.export(here, arch, budget_ms, out, progress, kind)

    print_result(work, as_json, lambda result: _rows(result["files"]))


@app.command()
def measure(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx")],
    device: Device = "cpu",
    threads: Threads = 1,
    batch: Batch = 1,
    as_json: Json = False,
) -> None:
    """Time an ONNX file on this machine."""

    def work() -> dict[str, Any]:
        if not model.is_file():
            raise UserError(f"{model}: no such file")
        from nas.latency.devices import measure as clock

        timing = clock(model, device, threads=threads, batch=batch)
        return {"ms": timing.ms, "p10_ms": timing.p10_ms, "p90_ms": timing.p90_ms, "n": timing.n}

    print_result(work, as_json, lambda result: _rows([result]))


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx")],
    target: Target,
    size: Annotated[int | None, typer.Option(min=1, help="Input side, where the file leaves it open.")] = None,
    allow_unknown: Annotated[bool, typer.Option("--allow-unknown", help="Leave out what has no known cost.")] = False,
    as_json: Json = False,
) -> None:
    """Latency of any ONNX file by a target's cost model, operator by operator. Nothing is measured."""

    def work() -> dict[str, Any]:
        from nas.latency.costs import load
        from nas.latency.predict import predict as price

        return {"target": target, **price(model, load(target), size, allow_unknown)}

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
    as_json: Json = False,
) -> None:
    """Random networks as ONNX with their predicted ms, to be measured anywhere. The same command continues."""

    def work() -> list[dict[str, Any]]:
        from nas.latency.costs import load
        from nas.latency.sample import sample as draw
        from nas.plan import Task, layout
        from nas.progress import Progress
        from nas.space import Space

        place = layout(Space.load(space).scaled(checked_width(width)), Task(size, 3, classes))
        return draw(place, load(target), n, seed, out, Progress())

    print_result(work, as_json, lambda samples: _rows([{key: s[key] for key in ("id", "ms", "onnx")} for s in samples]))


@app.command()
def validate(
    samples: Annotated[Path, typer.Argument(metavar="SAMPLES.json", help="Of nas sample.")],
    measured: Annotated[Path, typer.Argument(metavar="MEASURED.csv", help="Columns id and ms.")],
    table: Annotated[str, typer.Option(help="The target that predicted: see nas targets.")],
    write: Annotated[bool, typer.Option("--write", help="Note the result in the table.")] = False,
    as_json: Json = False,
) -> None:
    """Compare predicted ms with measurements made elsewhere."""

    def work() -> dict[str, Any]:
        from nas.latency.validate import validate as compare

        return compare(table, samples, measured, write)

    print_result(work, as_json, lambda result: _rows([result]))


@app.command()
def spaces(
    size: Annotated[int, typer.Option(help="Input side in pixels.")] = 224,
    as_json: Json = False,
) -> None:
    """List the shipped search spaces."""

    def work() -> list[dict[str, Any]]:
        from nas.files import shipped

        return [_space(name, size) for name in shipped("search_spaces", ".yaml")]

    print_result(work, as_json, _rows)


@app.command()
def targets(as_json: Json = False) -> None:
    """List the devices with known costs. Says where the figures come from."""

    def work() -> list[dict[str, Any]]:
        from nas.latency.costs import targets as known

        return list(known())

    shown = ("name", "device", "processor", "runtime", "precision", "batch", "threads", "date", "checked", "error")
    print_result(work, as_json, lambda targets: _rows([{k: one[k] for k in shown if k in one} for one in targets]))


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Exits with 0, or with 2 and one line on stderr, or with 130 when interrupted."""
    words = list(sys.argv[1:] if args is None else args)
    if "OMP_WAIT_POLICY" not in os.environ:
        # PyTorch's idle threads spin long by default: beside any other load a step then takes 12 times as long
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    signal.signal(signal.SIGTERM, _interrupt)
    if not launch.leads():  # torchrun's other processes help to train; the first alone reads settings, writes, prints
        launch.go_when_told()
        if words[:1] == ["search"] and not {"-h", "--help"} & set(words):
            from nas.train import crew

            crew.follow()
        sys.exit(0)
    try:
        code = app(args=words or ["--help"], prog_name="nas", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        text = one_line(error)
        if text is None or os.environ.get("NAS_DEBUG") == "1":
            raise
        print(f"nas: {text}", file=sys.stderr)
        sys.exit(2)
    if code == 130:
        print("nas: interrupted: the same command continues", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _interrupt(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _existing(path: Path) -> Iterator[tuple[Any, Any]]:
    from nas.progress import Progress
    from nas.run import Run

    run = Run.existing(path)
    with run.lock():
        yield run, Progress()


def _reaching(task: Any) -> Callable[[int, int, float], None]:
    return lambda done, total, left_s: task.reach(done, total)


def _space(name: str, size: int) -> dict[str, Any]:
    import math

    from nas import genome
    from nas.files import resolve
    from nas.plan import Task, candidates, layout
    from nas.space import Space

    space = Space.load(name)
    plan = layout(space, Task(size, 3, 1000))
    return {"name": name, "slots": len(plan.slots), "archs": f"10^{math.log10(genome.size(plan)):.1f}",
            "operators": len(candidates(plan)), "ops": list(space.ops), "channels": [s.out for s in space.stages],
            "depth": [s.depth for s in space.stages], "last_map": plan.head.size, "about": space.about,
            "file": str(resolve("search_spaces", name, ".yaml"))}


def _rows(values: Sequence[dict[str, Any]]) -> None:
    from nas import show

    show.rows(values) if values else show.line("none")


def _show_front(result: dict[str, Any]) -> None:
    from nas import show

    show.front(result)


def _show_profile(result: dict[str, Any]) -> None:
    from nas import show

    show.profile(result)


def _show_prediction(result: dict[str, Any]) -> None:
    from nas import show

    show.prediction(result)
