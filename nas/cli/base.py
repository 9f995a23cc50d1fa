"""Defines what the verbs share: the app, common options, opening a run, printing rows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from nas import __version__
from nas.errors import UserError

app = typer.Typer(help="Efficient vision backbones for a given device: measured latency, hard budgets, ONNX out.",
                  add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
                  context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"nas {__version__}")
        raise typer.Exit


@app.callback()
def _options(version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_print_version,
                                                   help="Print the version and exit.")] = False) -> None:
    pass



Json = Annotated[bool, typer.Option("--json", help="Print one JSON value and nothing else.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="The directory that nas search printed.")]
Budgets = Annotated[list[float] | None, typer.Option("--budget-ms", help="Latency budget, once or more; of macs and "
                                                     "params in millions. Without one: 6, geometric over the "
                                                     "reachable range.")]
Targets = Annotated[list[str] | None, typer.Option("--target", help="Device, macs or params, once or more: see nas "
                                                   "targets.")]
Target = Annotated[str, typer.Option("--target", help="Device, macs or params: see nas targets.")]
Size = Annotated[int | None, typer.Option("--size", help="Input side in pixels; default: the data's own.")]
Threads = Annotated[int, typer.Option("--threads", min=1, max=1024, help="Threads of the runtime.")]
Batch = Annotated[int, typer.Option("--batch", min=1, max=4096, help="Images a call.")]
Images = Annotated[str | None, typer.Option("--data", help="cluttered (default), digits, cifar10, or a folder of "
                                            "images.")]
Data = Annotated[str | None, typer.Option("--data", help="Where the run's images lie now, if it or they were moved: "
                                          "the same images.")]
DataDir = Annotated[str | None, typer.Option("--data-dir", help="The same for cifar10: the folder that it lies in.")]
Device = Annotated[str, typer.Option("--device", help="What to measure on: cpu or gpu (of this machine).")]
Minutes = Annotated[float | None, typer.Option("--minutes", help="How long all of it may take: epochs follow from the "
                                               "speed of this machine. Default: by the number of images.")]
SramKb = Annotated[float | None, typer.Option("--sram-kb", min=1, help="SRAM of an Ethos-U: no pick needs more.")]
FlashKb = Annotated[float | None, typer.Option("--flash-kb", min=1, help="The same of its flash, for the model.")]
Width = Annotated[float | None, typer.Option("--width", help="Factor of all channels, 0.05 to 8.")]
Ops = Annotated[list[Path] | None, typer.Option("--ops", metavar="FILE.py", help="Operators of your own, once or more: "
                                                "Python files that are executed.")]

Mean = Annotated[str | None, typer.Option("--mean", help="What the network takes off its input, as 0.5 or "
                                          "0.5,0.4,0.3 (red, green, blue). Default: the file's metadata, else "
                                          "ImageNet's.")]
Std = Annotated[str | None, typer.Option("--std", help="What it divides the rest by.")]
Scale = Annotated[float | None, typer.Option("--scale", help="What the pixel value 255 becomes before --mean and "
                                             "--std: 1 (default), or 255 for networks that take 0 .. 255.")]
Classes = Annotated[Path | None, typer.Option("--classes", help="The network's classes, one a line in the order of its "
                                              "outputs, where the file does not name them.")]


def out_folder(out: Path | None) -> None:
    """Raises UserError for an ``--out`` that is a file."""
    if out is not None and out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: a file; give a folder, which is made if it is not there")


def out_file(out: Path | None) -> None:
    """Raises UserError for an ``--out`` that is a folder."""
    if out is not None and out.is_dir():
        raise UserError(f"--out {out}: a folder; give a file in it")


def run_files(ops: list[Path] | None) -> None:
    """Executes the files of ``--ops``, which nothing else does."""
    if ops:
        from nas.ops import user_files

        user_files.load(ops)


@contextlib.contextmanager
def existing(path: Path) -> Iterator[tuple[Any, Any]]:
    from nas.cli.progress import TerminalProgress
    from nas.run.directory import Run

    run = Run.existing(path)
    with run.lock():
        yield run, TerminalProgress()


def rows(values: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    from nas.cli import render

    render.rows(values, columns) if values else render.line("none")
