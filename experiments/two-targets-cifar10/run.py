"""What a front for device B loses where the supernet was pruned for device A alone, not for A and B together.

    python experiments/two-targets-cifar10/run.py --pruned DIR --data-dir DIR --budget-ms 0.25 0.35 0.5 0.7 1.0

``--pruned`` holds the searches for A alone, ``ours-seed0`` and so on: what ``experiments/worth-cifar10/run.py`` leaves
under its ``--work``. Each is searched once more for A and B together, with its own settings, under ``--work``; then
``nas select --target B`` picks from either at the same budgets. Every pruning with every seed appends its line to
``results.jsonl``. The same command goes on with what was stopped, inside a search too; at the end the table is printed.
Picks of B are judged with inherited weights, on the test split.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from scipy.stats import ttest_rel

from nas.cli.progress import TerminalProgress
from nas.errors import UserError
from nas.files import write_json
from nas.latency import costs
from nas.run import timeline
from nas.run.directory import Run
from nas.run.settings import searched
from nas.select.pareto import Point, hypervolume

sys.path.append(str(Path(__file__).resolve().parents[1]))
from results import keep, nas, standing, told

HERE = Path(__file__).resolve().parent
ALONE, TOGETHER = "A", "A and B"
BEYOND, CHANCE = 1.2, 0.1  # reference of the hypervolume: ms in largest budgets, and the accuracy of guessing


def part(pruned: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The line of one supernet, trained first if it is that for both, and its selection for B."""
    alone, log = Run.existing(options.pruned / f"ours-seed{seed}"), options.work / f"seed{seed}.log"
    run = Run(options.work / f"{'ab' if pruned == TOGETHER else 'a'}-seed{seed}")
    if pruned == TOGETHER:
        settings = options.work / f"ab-seed{seed}.json"
        write_json(settings, searched(alone).to_json())
        targets = [word for target in (*alone.config["target"], options.b) for word in ("--target", target)]
        data = ["--data-dir", str(options.data_dir)] if options.data_dir else []
        nas(log, "search", "--config", str(settings), *targets, *data, "--run", str(run.path),
            "train.finetune_epochs=0", "baselines=0")
    elif not run.path.exists():  # what is judged for B is none of the other experiment's
        shutil.copytree(alone.path, run.path.with_suffix(".part"), dirs_exist_ok=True)
        run.path.with_suffix(".part").rename(run.path)
    asked = [word for ms in options.budget_ms for word in ("--budget-ms", f"{ms:g}")]
    front = json.loads(nas(log, "select", str(run.path), "--target", options.b, *asked, "--json"))
    cards = {card["id"]: card for card in [*front["front"], *front["dominated"]]}
    picks = [{"budget_ms": one["budget_ms"][options.b], "id": one["id"], "ms": round(one["ms"][options.b], 6),
              "accuracy": cards[one["id"]]["accuracy"]} for one in front["budgets"]]
    reference = BEYOND * max(options.budget_ms), CHANCE
    points = [Point(pick["id"], pick["ms"], pick["accuracy"]) for pick in picks]
    alive = [epoch.pruning.branches for epoch in timeline.epochs(run) if epoch.pruning]
    return {"pruned_for": pruned, "seed": seed, "hypervolume": round(hypervolume(points, *reference), 6),
            "picks": picks, "branches": alive[-1] if alive else None}


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """All that a line depends on but for pruning and seed: what the searches for A share, B and its budgets."""
    configs = [searched(Run.existing(options.pruned / f"ours-seed{seed}")).to_json() for seed in range(options.seeds)]
    shared = [{key: value for key, value in config.items() if key not in ("seed", "target", "data_dir")}
              for config in configs]
    tables = {hashlib.sha256(costs.find(target).read_bytes()).hexdigest()[:12]
              for config in configs for target in config["target"]}
    if len(tables) > 1 or any(one != shared[0] for one in shared):
        raise UserError(f"--pruned {options.pruned}: its searches differ in more than their seed")
    b = hashlib.sha256(costs.find(options.b).read_bytes()).hexdigest()[:12]
    return {"a": tables.pop(), "b": [options.b, b], "budget_ms": sorted(options.budget_ms),
            "search": hashlib.sha256(json.dumps(shared[0], sort_keys=True).encode()).hexdigest()[:12]}


def show(lines: list[dict[str, Any]]) -> None:
    """Markdown: a row a seed, what pruning for A alone lost of B's hypervolume, and the paired test over seeds."""
    found = {(line["pruned_for"], line["seed"]): line for line in lines}
    seeds = [seed for pruned, seed in found if pruned == ALONE and (TOGETHER, seed) in found]
    print("| seed | pruned for A and B | pruned for A | lost | mean accuracies, % | branches left |", f"|{'---|' * 6}",
          sep="\n")
    pairs = [(found[TOGETHER, seed], found[ALONE, seed]) for seed in seeds]
    for both, alone in pairs:
        lost = (both["hypervolume"] - alone["hypervolume"]) / max(both["hypervolume"], 1e-9)
        means = [100 * sum(pick["accuracy"] for pick in one["picks"]) / len(one["picks"]) for one in (both, alone)]
        print(f"| {both['seed']} | {both['hypervolume']:.4f} | {alone['hypervolume']:.4f} | {100 * lost:+.1f} % "
              f"| {means[0]:.1f} and {means[1]:.1f} | {both['branches']} and {alone['branches']} |")
    if len(pairs) > 1:
        volumes = zip(*[(both["hypervolume"], alone["hypervolume"]) for both, alone in pairs], strict=True)
        print(f"\npaired t-test over {len(pairs)} seeds: p = {ttest_rel(*volumes).pvalue:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pruned", type=Path, required=True, help="holds finished searches for A alone, ours-seedN")
    parser.add_argument("--b", default="gpu-v100", help="device B")
    parser.add_argument("--data-dir", type=Path, help="where CIFAR-10 lies, if not where it did")
    parser.add_argument("--work", type=Path, default=Path("runs/two-targets-cifar10"), help="holds the run directories")
    parser.add_argument("--out", type=Path, default=HERE / "results.jsonl")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget-ms", type=float, nargs="+", required=True, help="of device B, for all parts")
    options = parser.parse_args()
    with told():
        settings = settings_of(options)
        lines = standing(options.out, settings)
        stand = {(line["pruned_for"], line["seed"]) for line in lines}
        left = [(pruned, seed) for seed in range(options.seeds) for pruned in (ALONE, TOGETHER)
                if (pruned, seed) not in stand]
        options.work.mkdir(parents=True, exist_ok=True)
        with TerminalProgress().task("supernets", len(left)) as task:
            for pruned, seed in left:
                lines.append(part(pruned, seed, options) | {"settings": settings})
                keep(options.out, lines)
                task.advance(hypervolume=lines[-1]["hypervolume"])
        show(lines)


if __name__ == "__main__":
    main()
