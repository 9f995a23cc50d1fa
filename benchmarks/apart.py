"""What each phase of a search is worth: what some minutes more or less of it do to the front that is delivered.

    python benchmarks/apart.py --data cluttered --minutes 15 --change 5

A search of ``--minutes`` says how much there is of each phase and how long that takes here. Then the same search runs
again with one phase longer, or shorter, by what ``--change`` minutes buy; all else is as it was: budgets, images of an
epoch, the other phases, no known networks, one thread. Phases: the three parts of the warm-up (the largest network
alone, blockwise, the sandwich), gates, settling, judging, fine-tuning. An epoch of a phase that the first search lacks
is taken to last as long as one of its warm-up; the table has the minutes that each change took in the end. Every search
appends its line to ``--out``, and the same command goes on with what is left.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nas.config.search import Config
from nas.run import timeline
from nas.run.directory import Run
from nas.run.records import Card, Front
from nas.run.settings import settings_of
from nas.select.pareto import Point, hypervolume

sys.path.append(str(Path(__file__).resolve().parents[1] / "experiments"))
from results import keep, nas, standing, told

PHASES = ("largest", "blockwise", "sandwich", "gates", "settle", "judged", "finetune")
BASELINE = "baseline"
LEAST = {"judged": 1, "finetune": 1}  # a search without has no front
Line = Mapping[str, Any]


@dataclass(frozen=True)
class Amounts:
    """Holds how much of each phase a search has: epochs, of which parts of the warm-up need not be whole, and the
    networks that are judged.
    """

    largest: float
    blockwise: float
    sandwich: float
    gates: float
    settle: float
    judged: float
    finetune: float

    @staticmethod
    def of(config: Config) -> Amounts:
        """Returns those of a search with fixed epochs."""
        train = config.train
        warmup, (largest, blockwise) = float(train.warmup_epochs or 0), train.beginning(trained=config.init is not None)
        return Amounts(largest * warmup, blockwise * warmup, (1 - largest - blockwise) * warmup,
                       float(train.search_epochs or 0), float(train.settle_epochs or 0), float(config.evaluations),
                       float(train.finetune_epochs or 0))

    @property
    def warmup(self) -> float:
        return self.largest + self.blockwise + self.sandwich

    def changed(self, phase: str, by: int) -> Amounts | None:
        """Returns the amounts with so much more (or less, as far as there is) of a phase; None where nothing changes.
        """
        there = getattr(self, phase)
        by = max(by, LEAST.get(phase, 0) - math.floor(there + 1e-9))
        if phase in ("largest", "blockwise", "sandwich"):
            by = max(by, 1 - round(self.warmup))
        return replace(self, **{phase: there + by}) if by else None

    def settings(self) -> list[str]:
        """Returns them as settings of ``nas search``."""
        return [f"train.warmup_epochs={round(self.warmup)}", f"train.largest_first={self.largest / self.warmup:.9f}",
                f"train.blockwise={self.blockwise / self.warmup:.9f}", f"train.search_epochs={round(self.gates)}",
                f"train.settle_epochs={round(self.settle)}", f"train.finetune_epochs={round(self.finetune)}",
                f"evaluations={round(self.judged)}"]


def seconds_each(run: Run, amounts: Amounts) -> dict[str, float]:
    """Returns the seconds of an epoch of each phase (of fine-tuning: of all picks), or of a network that is judged."""
    epochs = timeline.epochs(run)
    warmup = [epoch.seconds for epoch in epochs if epoch.phase == "warmup"]
    ends = [amounts.largest, amounts.largest + amounts.blockwise, amounts.warmup]
    parts = {phase: [seconds for i, seconds in enumerate(warmup) if begin <= i + 0.5 < end]
             for phase, begin, end in zip(PHASES[:3], [0.0, *ends], ends, strict=False)}
    parts |= {phase: [epoch.seconds for epoch in epochs if epoch.phase == name]
              for phase, name in (("gates", "search"), ("settle", "settle"))}
    return {**{phase: statistics.fmean(seconds or warmup) for phase, seconds in parts.items()},
            "judged": timeline.spent(run)["selection"] / amounts.judged,
            "finetune": sum(epoch.seconds for epoch in timeline.tuned(run)) / amounts.finetune}


def changes(amounts: Amounts, each_s: Mapping[str, float], minutes: float) -> dict[str, Amounts]:
    """Returns the searches with so many minutes more and less of one phase, by what they are called."""
    made: dict[str, Amounts] = {}
    for phase in PHASES:
        count = max(1, round(60 * minutes / each_s[phase]))
        for by in (count, -count):
            if (changed := amounts.changed(phase, by)) is not None:
                made[f"{phase} {round(getattr(changed, phase) - getattr(amounts, phase)):+d}"] = changed
    return made


def figures(front: Front) -> dict[str, Any]:
    """Returns what a front is worth: at each budget the test accuracy of what is delivered for it, the mean of these,
    and the area that it dominates, over the logarithm of predicted ms up to the largest budget, above guessing.
    """
    target = front.target[0]
    at = {budget.budget_ms[target]: delivered(front.cards, target, budget.budget_ms[target])
          for budget in front.budgets}
    points = [Point(card.id, math.log(card.ms[target]), card.accuracy) for card in front.cards]
    return {"at": {f"{ms:.4f}": card.accuracy for ms, card in at.items()},
            "accuracy": statistics.fmean(card.accuracy for card in at.values()),
            "hypervolume": hypervolume(points, math.log(max(at)), 0.0), "test_images": front.cards[0].test_images}


def delivered(cards: Iterable[Card], target: str, budget_ms: float) -> Card:
    """Returns the best network within a budget, by the images that choose."""
    return max((card for card in cards if card.ms[target] <= budget_ms), key=lambda card: card.select_accuracy)


def search(name: str, seed: int, how: Sequence[str], options: argparse.Namespace) -> Run:
    """Runs a search to its end and returns its directory; goes on where an earlier call stopped."""
    place = options.work / f"{name.replace(' ', '')}-{seed}"
    given = {"--data-dir": options.data_dir, "--limit": options.limit, "--size": options.size}
    images = [word for flag, value in given.items() if value is not None for word in (flag, str(value))]
    nas(place.with_suffix(".log"), "search", "--space", options.space, "--width", f"{options.width:g}", "--target",
        options.target, "--data", options.data, *images, "--seed", str(seed), "--threads", "1", "--run", str(place),
        "baselines=0", *how)
    return Run.existing(place)


def line_of(name: str, seed: int, run: Run) -> dict[str, Any]:
    """Returns the line of a finished search."""
    config = settings_of(run)
    return {"part": name, "seed": seed, **figures(run.read("front.json", Front)), "seconds": timeline.spent(run),
            "amounts": asdict(Amounts.of(config)), "epoch_images": config.train.epoch_images,
            "budget_ms": config.budget_ms}


def table(lines: Sequence[Line]) -> str:
    """Markdown, a row a change: means over seeds of what it changes against the baseline of the same seed."""
    base = {line["seed"]: line for line in lines if line["part"] == BASELINE}
    heads = ["change", "n", "minutes", "accuracy at the budgets, points", "by test images", "points in ten minutes",
             "hypervolume"]
    rows = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for part in dict.fromkeys(line["part"] for line in lines if line["part"] != BASELINE):
        pairs = [(line, base[line["seed"]]) for line in lines if line["part"] == part and line["seed"] in base]
        minutes = statistics.fmean((line["seconds"]["total"] - to["seconds"]["total"]) / 60 for line, to in pairs)
        points = [100 * (line["accuracy"] - to["accuracy"]) for line, to in pairs]
        noise = math.sqrt(sum(variance(line) + variance(to) for line, to in pairs)) / len(pairs)
        pace = f"{10 * statistics.fmean(points) / minutes:+.1f}" if minutes else "-"
        area = [line["hypervolume"] - to["hypervolume"] for line, to in pairs]
        cells = [part, str(len(pairs)), f"{minutes:+.1f}", spread(points, ".1f"), f"+- {100 * noise:.1f}", pace,
                 spread(area, ".4f")]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def variance(line: Line) -> float:
    """Returns the variance of a mean accuracy over the budgets, as of one network: all see the same test images."""
    return float(line["accuracy"] * (1 - line["accuracy"]) / line["test_images"])


def spread(values: Sequence[float], form: str) -> str:
    """Returns the mean with the standard error over seeds, where there are several."""
    mean = f"{statistics.fmean(values):+{form}}"
    return mean if len(values) < 2 else f"{mean} +- {statistics.stdev(values) / math.sqrt(len(values)):{form}}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="cluttered")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--size", type=int)
    parser.add_argument("--space", default="ghost")
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--target", default="gpu-v100")
    parser.add_argument("--minutes", type=float, default=15.0, help="of the search that is taken apart")
    parser.add_argument("--change", type=float, default=5.0, help="minutes more and less of a phase")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--phases", nargs="*", choices=PHASES, default=PHASES)
    parser.add_argument("--work", type=Path, default=Path("runs/apart"), help="holds the run directories")
    parser.add_argument("--out", type=Path, default=Path("apart.jsonl"))
    options = parser.parse_args()
    settings = {key: str(value) for key, value in vars(options).items()
                if key not in ("seeds", "phases", "work", "out", "data_dir")}
    with told():
        options.work.mkdir(parents=True, exist_ok=True)
        lines = standing(options.out, settings)

        def have(name: str, seed: int, how: Sequence[str]) -> Line:
            """Returns the line of a search, which is run where it does not stand."""
            for line in lines:
                if (line["part"], line["seed"]) == (name, seed):
                    return line
            lines.append({**line_of(name, seed, search(name, seed, how, options)), "settings": settings})
            keep(options.out, lines)
            print(f"{name}, seed {seed}: {100 * lines[-1]['accuracy']:.1f} %", file=sys.stderr, flush=True)
            return lines[-1]

        first = options.seeds[0]
        base = have(BASELINE, first, ["--minutes", f"{options.minutes:g}"])
        amounts = Amounts(**base["amounts"])
        fixed = [word for ms in base["budget_ms"] for word in ("--budget-ms", repr(ms))]
        fixed += [f"train.epoch_images={base['epoch_images']}"] if base["epoch_images"] else []
        each_s = seconds_each(Run.existing(options.work / f"{BASELINE}-{first}"), amounts)
        made = {name: part for name, part in changes(amounts, each_s, options.change).items()
                if name.split()[0] in options.phases}
        for seed in options.seeds:
            for name, part in {BASELINE: amounts, **made}.items():
                have(name, seed, [*fixed, *part.settings()])
        print(table(lines))


if __name__ == "__main__":
    main()
