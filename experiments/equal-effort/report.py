"""Table, verdicts and figure of ``results.jsonl``: a search and known networks of as many minutes, at equal latency.

    python experiments/equal-effort/report.py

At each of four latencies, spread evenly in the logarithm over the range in which picks and presets both have points,
stand the best that take no longer: of a search the one that its user would take, by the selection split, of the presets
the best of all on the test images. Figures are means over seeds, their errors those of so many test images.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from nas.errors import UserError
from nas.files import write_atomic

sys.path.append(str(Path(__file__).resolve().parents[1]))
from results import told

HERE = Path(__file__).resolve().parent
SEARCH, LATENCY = "search", "latency"
LATENCIES = 4
BELOW = 2.0  # points that a pick may be below the best preset
NOISE = 2.0  # standard errors of a difference that are no difference
SAME = 1 + 1e-9  # times a latency is not slower than it
MARKERS = "sD^v<>ph*"
Lines = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Network:
    """Holds what a trained network takes and gets right on test images (a share), and on those of selection."""

    name: str
    ms: float
    accuracy: float
    test_images: int
    select_accuracy: float


@dataclass(frozen=True)
class Seed:
    """Holds the networks of a data set and seed: picks of the space alone, the front of the search, presets alone."""

    picks: list[Network]
    front: list[Network]
    presets: list[Network]


@dataclass(frozen=True)
class Estimate:
    """Holds an accuracy in %, or a difference in points, with its standard error."""

    value: float
    se: float

    @staticmethod
    def of(networks: Sequence[Network]) -> Estimate:
        """Returns the mean accuracy of networks, one a seed; errors are binomial over the test images of each."""
        variance = sum(each.accuracy * (1 - each.accuracy) / each.test_images for each in networks)
        return Estimate(100 * statistics.fmean(each.accuracy for each in networks),
                        100 * math.sqrt(variance) / len(networks))

    def minus(self, other: Estimate) -> Estimate:
        """Returns the difference, as of two that are independent: of the same test images its error is less."""
        return Estimate(self.value - other.value, math.hypot(self.se, other.se))

    def __str__(self) -> str:
        return f"{self.value:.1f} +- {self.se:.1f}"


@dataclass(frozen=True)
class Row:
    """Compares the best networks of a latency, one a seed."""

    ms: float
    pick: Estimate
    preset: Estimate
    front: Estimate
    presets: list[str]

    @property
    def pick_gap(self) -> Estimate:
        return self.pick.minus(self.preset)

    @property
    def front_gap(self) -> Estimate:
        return self.front.minus(self.preset)


def seeds_of(lines: Lines, data: str) -> dict[int, Seed]:
    """Returns the seeds of a data set whose search is done and timed, with those of the presets that are."""
    of_data = [line for line in lines if line["data"] == data]
    ms = {line["seed"]: line["ms"] for line in of_data if line["what"] == LATENCY}
    seeds = {}
    for search in (line for line in of_data if line["what"] == SEARCH and line["seed"] in ms):
        timed = ms[search["seed"]]
        own, front = networks(search, timed), set(search["front"])
        presets = [network for line in of_data if line["seed"] == search["seed"] and line["what"] not in
                   (SEARCH, LATENCY) for network in networks(line, timed).values()]
        known = {card["id"] for card in search["networks"] if card["known"]}
        seeds[search["seed"]] = Seed([each for id, each in own.items() if id not in known],
                                     [each for id, each in own.items() if id in front], presets)
    return seeds


def networks(line: Mapping[str, Any], ms: Mapping[str, float]) -> dict[str, Network]:
    """Returns the timed networks of a part, by id; one of a preset has its name, others their id."""
    what = line["what"]
    return {card["id"]: Network(card["id"] if what == SEARCH else what, ms[place], card["accuracy"],
                                card["test_images"], card["select_accuracy"])
            for card in line["networks"] if (place := f"{what}/{card['id']}") in ms}


def missing(lines: Lines, seeds: Iterable[int], parts: Sequence[str]) -> list[str]:
    """Says of each data set which parts have no line, and which networks were not timed."""
    said = []
    for data, seed in itertools.product(dict.fromkeys(line["data"] for line in lines), seeds):
        here = {line["what"]: line for line in lines if (line["data"], line["seed"]) == (data, seed)}
        if lacking := [part for part in parts if part not in here]:
            said.append(f"{data}, seed {seed}: not run: {', '.join(lacking)}")
        timed = here.get(LATENCY, {"ms": {}})["ms"]
        untimed = [part for part in here if part in parts and part != LATENCY
                   and any(f"{part}/{card['id']}" not in timed for card in here[part]["networks"])]
        if untimed:
            said.append(f"{data}, seed {seed}: not timed (run.py --measure): {', '.join(untimed)}")
    return said


def latencies(seeds: Collection[Seed], count: int = LATENCIES) -> list[float]:
    """Returns so many ms, evenly in the logarithm, from the least to the most at which every seed has a pick and a
    preset, and something on its front; none where there is no such range.
    """
    groups = [group for seed in seeds for group in (seed.picks, seed.presets, seed.front)]
    if not groups or not all(groups):
        return []
    low = max(min(each.ms for each in group) for group in groups)
    high = min(max(each.ms for each in group) for seed in seeds for group in (seed.picks, seed.presets))
    return [low * (high / low) ** (i / (count - 1)) for i in range(count)] if low < high else []


def best(group: Iterable[Network], ms: float, by: Callable[[Network], float]) -> Network:
    """Returns the best network of those that are not slower than ``ms``."""
    return max((each for each in group if each.ms <= ms * SAME), key=by)


def compare(seeds: Sequence[Seed], ms: float) -> Row:
    """Compares the best of picks, presets and front at a latency that picks and presets of every seed reach."""
    def select(network: Network) -> float:
        return network.select_accuracy

    presets = [best(seed.presets, ms, lambda each: each.accuracy) for seed in seeds]
    return Row(ms, Estimate.of([best(seed.picks, ms, select) for seed in seeds]), Estimate.of(presets),
               Estimate.of([best(seed.front, ms, select) for seed in seeds]),
               list(dict.fromkeys(preset.name for preset in presets)))


def table(rows: Sequence[Row]) -> str:
    """Markdown, a row a latency: accuracies in %, differences in points, with standard errors."""
    heads = ["measured ms", "best pick", "best preset", "pick minus preset", "best of the front", "front minus preset",
             "which preset"]
    cells = [[f"{row.ms:.3f}", str(row.pick), str(row.preset), f"{row.pick_gap.value:+.1f} +- {row.pick_gap.se:.1f}",
              str(row.front), f"{row.front_gap.value:+.1f} +- {row.front_gap.se:.1f}", ", ".join(row.presets)]
             for row in rows]
    return "\n".join([f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *(f"| {' | '.join(c)} |" for c in cells)])


def verdicts(rows: Sequence[Row]) -> list[str]:
    """Says of each of the two bars whether it is reached at every latency, and where it is missed by most."""
    bars = [(f"picks at most {BELOW} points below the best preset", [(row.pick_gap, -BELOW) for row in rows]),
            (f"the front with known networks not below it by more than {NOISE:g} standard errors",
             [(row.front_gap, -NOISE * row.front_gap.se) for row in rows])]
    said = []
    for bar, gaps in bars:
        worst = min(range(len(rows)), key=lambda i: gaps[i][0].value - gaps[i][1])
        gap, least = gaps[worst]
        said.append(f"{bar}: {'yes' if gap.value >= least else 'no'}, at worst {gap.value:+.1f} +- {gap.se:.1f} at "
                    f"{rows[worst].ms:.3f} ms")
    return said


def draw(data: Mapping[str, Mapping[int, Seed]], path: Path) -> None:
    """Draws test accuracy over measured ms, a panel a data set: searches as lines, presets as markers."""
    figure = Figure(figsize=(5 + 4 * (len(data) - 1), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(data), squeeze=False)[0]
    for axes, (name, seeds) in zip(panels, data.items(), strict=True):
        for seed, of_seed in seeds.items():
            for group, line, label in ((of_seed.picks, "o-", "picks"), (of_seed.front, "x:", "front")):
                ordered = sorted(group, key=lambda each: each.ms)
                axes.plot([each.ms for each in ordered], [100 * each.accuracy for each in ordered], line,
                          color=f"C{seed}", label=f"{label}, seed {seed}")
        draw_presets(axes, [each for seed in seeds.values() for each in seed.presets])
        axes.set(title=name, xlabel="measured ms (ONNX Runtime, 1 thread, batch 1)", ylabel="test accuracy, %",
                 xscale="log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    panels[-1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    write_atomic(path, lambda file: figure.savefig(file, format="png", dpi=150))


def draw_presets(axes: Any, presets: Sequence[Network]) -> None:
    """Draws presets, a marker a family, each with its width."""
    families = sorted({each.name.partition("@")[0] for each in presets})
    for number, (family, marker) in enumerate(zip(families, itertools.cycle(MARKERS), strict=False), 2):
        members = [each for each in presets if each.name.partition("@")[0] == family]
        axes.plot([each.ms for each in members], [100 * each.accuracy for each in members], marker, color=f"C{number}",
                  label=family)
        for each in members:
            axes.annotate(each.name.partition("@")[2], (each.ms, 100 * each.accuracy), textcoords="offset points",
                          xytext=(5, -9), fontsize=7, color=f"C{number}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    parser.add_argument("--figure", type=Path, default=HERE / "equal-effort.png")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1], help="those that are asked for")
    options = parser.parse_args()
    with told():
        if not options.results.is_file():
            raise UserError(f"{options.results}: no such file; run.py writes it")
        from run import KNOWN  # has that name only where this file is the script

        lines = [json.loads(text) for text in options.results.read_text().splitlines()]
        for text in missing(lines, options.seeds, [SEARCH, *KNOWN, LATENCY]):
            print(f"missing: {text}\n")
        data = {name: seeds for name in dict.fromkeys(line["data"] for line in lines)
                if (seeds := seeds_of(lines, name))}
        for name, seeds in data.items():
            rows = [compare(list(seeds.values()), ms) for ms in latencies(seeds.values())]
            print(f"{name}, n = {len(seeds)} seed{'s' if len(seeds) > 1 else ''}\n")
            print("\n\n".join([table(rows), *verdicts(rows)]) if rows else "no latency that picks and presets share",
                  end="\n\n")
        if data:
            draw(data, options.figure)


if __name__ == "__main__":
    main()
