"""The picks of a search against known networks of equal latency: every one from scratch, by the same recipe.

    nas profile --device cpu --space ghost --width 0.5 --size 32 --validate 20
    nas search --config experiments/cifar10-head-to-head/search.yaml --data-dir DIR --run SEARCH
    python experiments/cifar10-head-to-head/run.py --search SEARCH --data-dir DIR
    python experiments/cifar10-head-to-head/run.py --search SEARCH --data-dir DIR --measure
    python experiments/cifar10-head-to-head/report.py

Every part is one network with one seed, trained by ``nas train`` in a directory of its own under ``--work``; it appends
its line to ``results.jsonl``, and the same command goes on with what was stopped. Without ``--search`` only the known
networks are trained. ``--measure`` times the ONNX files of all networks in one interleaved run, each file loaded twice,
so that the figure has its noise floor, and writes ``latency.json``, which names the networks that ``report.py`` shows:
on a machine that does nothing else.
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
from nas.files import write_json
from nas.run import events, timeline
from nas.run.directory import Run
from nas.run.records import Card, Front

sys.path.append(str(Path(__file__).resolve().parents[1]))
from results import keep, nas, standing, timed_twice, told

HERE = Path(__file__).resolve().parent
KNOWN = ("ghostnet@0.25", "mobilenet_v2@0.25", "mobilenet_v2@0.5", "mobilenet_v3_small@0.5", "mobilenet_v3_small@1.0",
         "resnet18@0.125", "resnet18@0.1875", "resnet18@0.25")  # 0.28 to 0.74 ms where the picks take 0.3 to 0.8


@dataclasses.dataclass(frozen=True)
class Network:
    """``pick`` is the directory of a network that the search delivered; else ``name`` is a preset with its width."""

    name: str
    pick: Path | None = None

    @property
    def given(self) -> list[str]:
        return ["--space", self.name] if self.pick is None else ["--arch", str(self.pick / "arch.json")]


def picks(search: Path) -> tuple[list[Network], dict[str, dict[str, Any]]]:
    """Those of the budgets, fastest first, and what the search says of each. Raises UserError for a run without.

    With those of its selections that were fine-tuned.
    """
    run = Run(search)
    if not run.has("front.json"):
        raise UserError(f"--search {search}: has no front.json; is the search at its end?")
    cards: dict[str, Card] = {}
    places: dict[str, Path] = {}
    budgets: list[str] = []
    for file in (search / "front.json", *sorted(search.glob("selections/*/front.json"))):
        front = run.read(file.relative_to(search).as_posix(), Front)
        every = {card.id: card for card in front.cards if card.fine_tuned}
        places |= {name: file.parent for name in every if name not in places}
        cards = every | cards
        budgets += [budget.id for budget in front.budgets if budget.id in every]
    (target,) = run.config["target"]
    chosen = sorted(set(budgets), key=lambda name: cards[name].ms[target])
    tuned = timeline.tuned(run)
    selection = [event.seconds for event in run.events(events.Stage) if event.name.endswith("picks.json")]
    searched = round(sum(epoch.seconds for epoch in timeline.epochs(run)) + sum(selection), 1)
    spent = {name: round(sum(epoch.seconds for epoch in tuned if epoch.id == name), 1) for name in chosen}
    said = {name: {"ms": cards[name].ms[target], "accuracy": cards[name].accuracy, "search_s": searched,
                   "finetune_s": spent[name]} for name in chosen}
    return [Network(name, places[name] / "archs" / name) for name in chosen], said


def trained(network: Network, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The line of one part. Raises UserError with the reason of a training that failed."""
    run = Run(options.work / f"{network.name}-seed{seed}")
    images = ["--data-dir", str(options.data_dir)] if options.data_dir else []
    images += ["--limit", str(options.limit)] if options.limit else []
    nas(options.work / f"{run.path.name}.log", "train", *network.given, "--data", "cifar10", *images, "--epochs",
        str(options.epochs), "--seed", str(seed), "--threads", "1", "--run", str(run.path),
        f"train.batch={options.batch}")
    (card,) = run.read("front.json", Front).front
    seconds = sum(epoch.seconds for epoch in timeline.tuned(run))
    return {"network": network.name, "pick": network.pick is not None, "seed": seed, "accuracy": card.accuracy,
            "params": card.params, "macs": card.macs, "seconds": round(seconds, 1),
            "where": {"torch": torch.__version__, "python": platform.python_version()}}


def measured(networks: list[Network], options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of every network: two sessions of its ONNX file, all interleaved. Raises UserError if one lacks."""
    files = {one.name: next(options.work.glob(f"{one.name}-seed*/archs/*/model.onnx"), None) for one in networks}
    if lacking := [name for name, file in files.items() if file is None]:
        raise UserError(f"--measure: {', '.join(lacking)}: not trained yet; the command without --measure does that")
    return timed_twice({name: file for name, file in files.items() if file}, options.measure_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--search", type=Path, help="run directory of the finished search")
    parser.add_argument("--data-dir", type=Path, help="where CIFAR-10 lies")
    parser.add_argument("--work", type=Path, default=Path("runs/head-to-head"), help="holds the run directories")
    parser.add_argument("--out", type=Path, default=HERE / "results.jsonl")
    parser.add_argument("--latency", type=Path, default=HERE / "latency.json", help="where --measure writes")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first-seed", type=int, default=0, help="where another call trains those before it")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--limit", type=int, help="images; default: all")
    parser.add_argument("--known", nargs="*", default=list(KNOWN), metavar="PRESET@WIDTH")
    parser.add_argument("--measure", action="store_true", help="times the networks instead of training them")
    parser.add_argument("--measure-s", type=float, default=60.0)
    options = parser.parse_args()
    with told():
        searched, said = picks(options.search) if options.search else ([], {})
        networks = [*map(Network, options.known), *searched]
        if options.measure:
            write_json(options.latency, {**measured(networks, options), "delivered": said})
            return
        settings = {"epochs": options.epochs, "batch": options.batch, "limit": options.limit}
        lines = standing(options.out, settings)
        stand = {(line["network"], line["seed"]) for line in lines}
        left = [(one, seed) for seed in range(options.first_seed, options.seeds) for one in networks
                if (one.name, seed) not in stand]
        options.work.mkdir(parents=True, exist_ok=True)
        with TerminalProgress().task("networks", len(left)) as task:
            for network, seed in left:
                line = trained(network, seed, options) | {"settings": settings}
                lines = [*standing(options.out, settings), line]  # read again: another call may train others
                keep(options.out, lines)
                task.advance(accuracy=line["accuracy"], seconds=line["seconds"])


if __name__ == "__main__":
    main()
