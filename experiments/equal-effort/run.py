"""A search of some minutes against known networks that have as many minutes each, on little data and one core.

    python experiments/equal-effort/run.py --cifar10 DIR --imagenette FOLDER
    python experiments/equal-effort/run.py --cifar10 DIR --imagenette FOLDER --measure
    python experiments/equal-effort/report.py

A part is one search (``nas search --space ghost --width 0.5 --minutes 15`` with all defaults) or one known network
(``nas train --minutes 15``) on one data set with one seed, on one thread; it appends its line to ``results.jsonl``, and
the same command skips what stands. ``--parts`` takes some of them, so that two calls may share two cores. CIFAR-10 is
cut to 3,000 images; Imagenette is a folder of 3,000 at 64 pixels. ``--measure`` times the ONNX files of all networks of
a data set and seed in one interleaved run, on a machine that does nothing else: every file twice, so that each figure
has its noise floor.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from nas.cli.progress import TerminalProgress
from nas.errors import UserError
from nas.run import timeline
from nas.run.directory import Run
from nas.run.records import Card, Front

sys.path.append(str(Path(__file__).resolve().parents[1]))
from results import keep, nas, standing, timed_twice, told

HERE = Path(__file__).resolve().parent
KNOWN = ("mobilenet_v3_small@0.5", "mobilenet_v3_small@1.0", "mobilenet_v2@0.35", "mobilenet_v2@0.75", "ghostnet@0.5",
         "ghostnet@1.0", "resnet18@0.125", "resnet18@0.25")
SEARCH, IMAGES, SIDE = "search", 3000, 64


@dataclasses.dataclass(frozen=True)
class Part:
    """Names a search, or a known network, on a data set with a seed."""

    data: str
    seed: int
    what: str

    def __str__(self) -> str:
        return f"{self.data}-{self.seed}-{self.what}"


def command(part: Part, options: argparse.Namespace) -> list[str]:
    """Returns the words of the ``nas`` command of a part."""
    images = {"cifar10": ["--data", "cifar10", "--data-dir", str(options.cifar10), "--limit", str(IMAGES)],
              "imagenette": ["--data", str(options.imagenette), "--size", str(SIDE)]}[part.data]
    how = (["search", "--space", "ghost", "--width", "0.5", "--target", options.target] if part.what == SEARCH else
           ["train", "--space", part.what])
    return [*how, *images, "--minutes", f"{options.minutes:g}", "--seed", str(part.seed), "--threads", "1",
            "--run", str(options.work / str(part))]


def run_part(part: Part, options: argparse.Namespace) -> dict[str, Any]:
    """Runs a part and returns its line. Raises UserError with the reason where it failed."""
    nas(options.work / f"{part}.log", *command(part, options))
    run = Run.existing(options.work / str(part))
    front = run.read("front.json", Front)
    networks = [{"id": card.id, "known": card.known, "accuracy": card.accuracy, "improving": card.improving,
                 "select_accuracy": card.select_accuracy, "select_accuracy_se": card.select_accuracy_se,
                 "macs": card.macs, "test_images": card.test_images} for card in front.cards]
    return {"data": part.data, "seed": part.seed, "what": part.what, "networks": networks,
            "front": [card.id for card in front.front], "seconds": timeline.spent(run),
            "schedule": run.read_json("schedule.json"),
            "where": {"torch": torch.__version__, "python": platform.python_version()}}


def files_of(part: Part, options: argparse.Namespace) -> dict[str, Path]:
    """Returns the ONNX files of a finished part, by ``part/network``."""
    run = Run.existing(options.work / str(part))
    cards: tuple[Card, ...] = tuple(run.read("front.json", Front).cards)
    return {f"{part.what}/{card.id}": run.file(card.onnx) for card in cards}


def measure(data: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the milliseconds of every network of a data set and seed that stands: the mean of two sessions of its
    file.
    """
    files: dict[str, Path] = {}
    for part in (Part(data, seed, what) for what in (SEARCH, *KNOWN)):
        if (options.work / str(part) / "front.json").exists():
            files |= files_of(part, options)
    return {"data": data, "seed": seed, "what": "latency", **timed_twice(files, options.measure_s)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar10", type=Path, help="where CIFAR-10 lies")
    parser.add_argument("--imagenette", type=Path, help="folder of Imagenette, train/ and val/")
    parser.add_argument("--work", type=Path, default=Path("runs/equal-effort"), help="holds the run directories")
    parser.add_argument("--out", type=Path, default=HERE / "results.jsonl")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--parts", nargs="*", default=[SEARCH, *KNOWN], metavar="PART", help="search, or PRESET@WIDTH")
    parser.add_argument("--measure", action="store_true", help="times the networks instead of training them")
    parser.add_argument("--measure-s", type=float, default=120.0)
    options = parser.parse_args()
    with told():
        settings = {"minutes": options.minutes, "target": options.target}
        data = [name for name in ("cifar10", "imagenette") if getattr(options, name)]
        if not data:
            raise UserError("--cifar10, --imagenette: give one of the two at least")
        options.work.mkdir(parents=True, exist_ok=True)
        whats = ["latency"] if options.measure else options.parts
        parts = [Part(name, seed, what) for seed in options.seeds for name in data for what in whats]
        stand = {(line["data"], line["seed"], line["what"]) for line in standing(options.out, settings)}
        left = [part for part in parts if (part.data, part.seed, part.what) not in stand]
        with TerminalProgress().task("parts", len(left)) as task:
            for part in left:
                line = measure(part.data, part.seed, options) if options.measure else run_part(part, options)
                keep(options.out, [*standing(options.out, settings), line | {"settings": settings}])
                task.advance()


if __name__ == "__main__":
    main()
