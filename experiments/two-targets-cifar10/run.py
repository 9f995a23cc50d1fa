"""What a front for device B loses where the supernet was pruned for device A alone, not for A and B together.

    python experiments/two-targets-cifar10/run.py --a TABLE --data-dir DIR

Every part, one pruning with one seed, is a ``nas search`` in a directory of its own under ``--work``, then ``nas select
--target B`` there at the same budgets for all; it appends its line to ``results.jsonl``. The same command goes on with
what was stopped, inside a search too; at the end the table is printed. Picks of B are judged with inherited weights,
on the test split.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from scipy.stats import ttest_rel

from nas.errors import UserError
from nas.latency import costs
from nas.progress import Progress
from nas.results import keep, nas, standing, told
from nas.run import Run
from nas.select.pareto import Point, hypervolume

HERE = Path(__file__).resolve().parent
ALONE, TOGETHER = "A", "A and B"
BEYOND, CHANCE = 1.2, 0.1  # reference of the hypervolume: ms in largest budgets, and the accuracy of guessing
RECIPE = ("train.batch=64", "train.warmup_epochs=2", "train.largest_first=0.6", "train.blockwise=0.4",
          "train.search_epochs=2", "train.settle_epochs=0", "train.finetune_epochs=1", "train.sandwich_every=4",
          "gates.every=2", "train.distill=none", "evaluations=36", "budgets=1")


def part(pruned: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The line of one search and its selection for B."""
    name = f"{'a' if pruned == ALONE else 'ab'}-seed{seed}"
    run, log = Run(options.work / name), options.work / f"{name}.log"
    targets = ["--target", str(options.a.resolve()), *(["--target", options.b] if pruned == TOGETHER else [])]
    data = ["--data-dir", str(options.data_dir)] if options.data_dir else []
    nas(log, "search", "--space", options.space, "--width", str(options.width), "--data", "cifar10", *data, *targets,
        "--limit", str(options.limit), "--seed", str(seed), "--threads", "1", "--run", str(run.path),
        *RECIPE)
    asked = [word for ms in options.budget_ms for word in ("--budget-ms", f"{ms:g}")]
    front = json.loads(nas(log, "select", str(run.path), "--target", options.b, *asked, "--json"))
    cards = {card["id"]: card for card in [*front["front"], *front["dominated"]]}
    picks = [{"budget_ms": one["budget_ms"], "id": one["id"], "ms": round(one["ms"], 6),
              "accuracy": cards[one["id"]]["accuracy"]} for one in front["budgets"]]
    reference = BEYOND * max(options.budget_ms), CHANCE
    points = [Point(pick["id"], pick["ms"], pick["accuracy"]) for pick in picks]
    alive = [event["branches"] for event in run.events("epoch") if "branches" in event]
    return {"pruned_for": pruned, "seed": seed, "hypervolume": round(hypervolume(points, *reference), 6),
            "picks": picks, "branches": alive[-1] if alive else None}


def show(lines: list[dict[str, Any]]) -> None:
    """Markdown: a row a seed, what pruning for A alone lost of B's hypervolume, and the paired test over seeds."""
    found = {(line["pruned_for"], line["seed"]): line for line in lines}
    seeds = [seed for pruned, seed in found if pruned == ALONE and (TOGETHER, seed) in found]
    print("| seed | pruned for A and B | pruned for A | lost | branches left |\n|---|---|---|---|---|")
    pairs = [(found[TOGETHER, seed], found[ALONE, seed]) for seed in seeds]
    for both, alone in pairs:
        lost = (both["hypervolume"] - alone["hypervolume"]) / max(both["hypervolume"], 1e-9)
        print(f"| {both['seed']} | {both['hypervolume']:.4f} | {alone['hypervolume']:.4f} | {100 * lost:+.1f} % "
              f"| {both['branches']} and {alone['branches']} |")
    if len(pairs) > 1:
        volumes = zip(*[(both["hypervolume"], alone["hypervolume"]) for both, alone in pairs], strict=True)
        print(f"\npaired t-test over {len(pairs)} seeds: p = {ttest_rel(*volumes).pvalue:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--a", type=Path, required=True, help="latency table of device A at 32 pixels")
    parser.add_argument("--b", default="gpu-v100", help="device B")
    parser.add_argument("--data-dir", type=Path, help="where CIFAR-10 lies")
    parser.add_argument("--work", type=Path, default=Path("runs/two-targets-cifar10"), help="holds the run directories")
    parser.add_argument("--out", type=Path, default=HERE / "results.jsonl")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--space", default="ghost")
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--limit", type=int, default=10_000)
    parser.add_argument("--budget-ms", type=float, nargs="+", required=True, help="of device B, for all parts")
    options = parser.parse_args()
    with told():
        if not options.a.is_file():
            raise UserError(f"--a {options.a}: no such file; nas profile makes it")
        tables = [hashlib.sha256(file.read_bytes()).hexdigest()[:12] for file in (options.a, costs.find(options.b))]
        settings = {"a": tables[0], "b": [options.b, tables[1]], "space": options.space, "width": options.width,
                    "limit": options.limit, "budget_ms": sorted(options.budget_ms), "recipe": list(RECIPE)}
        lines = standing(options.out, settings)
        stand = {(line["pruned_for"], line["seed"]) for line in lines}
        left = [(pruned, seed) for seed in range(options.seeds) for pruned in (ALONE, TOGETHER)
                if (pruned, seed) not in stand]
        options.work.mkdir(parents=True, exist_ok=True)
        with Progress().task("searches", len(left)) as task:
            for pruned, seed in left:
                lines.append(part(pruned, seed, options) | {"settings": settings})
                keep(options.out, lines)
                task.advance(hypervolume=lines[-1]["hypervolume"])
        show(lines)


if __name__ == "__main__":
    main()
