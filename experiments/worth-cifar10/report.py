"""Table and figure of ``results.jsonl``: hypervolume and accuracy of every method, and what it spent.

    python experiments/worth-cifar10/report.py
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nas.files import write_atomic

HERE = Path(__file__).resolve().parent
OURS = "ours"
MARKERS = "osD^v<>ph*"
Lines = list[dict[str, Any]]


def table(methods: dict[str, Lines]) -> str:
    """Markdown: a row a method; means with standard deviations over seeds, and differences to ours of equal seed."""
    ours = {line["seed"]: line for line in methods.get(OURS, [])}
    budgets = next(iter(methods.values()))[0]["settings"]["budget_ms"]
    heads = ["method", "n", "hypervolume", "minus ours, by seed", "mean minus ours", *(f"{b:g} ms" for b in budgets),
             "all budgets"]
    rows = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for method, lines in methods.items():
        cells = [str(len(lines)), *beside(lines, ours, "hypervolume", "{:.4f}")]
        cells += [spread([100 * picked(line, b)["accuracy"] for line in lines], "{:.1f}") for b in budgets]
        cells.append(spread([100 * line["mean_accuracy"] for line in lines], "{:.2f}"))
        rows.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(rows)


def inherited(methods: dict[str, Lines]) -> str:
    """Markdown: mean over the budgets of accuracy after fine-tuning and of test loss before, and differences to ours.

    Empty for results of before the loss was recorded.
    """
    ours = {line["seed"]: line for line in methods.get(OURS, [])}
    if any("mean_inherited_loss" not in line for lines in methods.values() for line in lines):
        return ""
    rows = ["| method | n | accuracy, % | minus ours, by seed | mean minus ours | inherited loss | minus ours, by seed "
            "| mean minus ours |", f"|{'---|' * 8}"]
    for method, lines in methods.items():
        cells = [str(len(lines)), *beside(lines, ours, "mean_accuracy", "{:.2f}", 100),
                 *beside(lines, ours, "mean_inherited_loss", "{:.4f}")]
        rows.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(rows)


def beside(lines: Lines, ours: dict[int, dict[str, Any]], key: str, form: str, unit: float = 1) -> list[str]:
    """Cells of a method: a figure over its seeds, less ours of each equal seed (of ours: -), and the mean of that."""
    paired = [(line["seed"], unit * (line[key] - ours[line["seed"]][key])) for line in lines
              if line["seed"] in ours and line["method"] != OURS]
    signed = form.replace(":", ":+")
    return [spread([unit * line[key] for line in lines], form),
            ", ".join(f"{seed}: {signed.format(gap)}" for seed, gap in paired) or "-",
            spread([gap for _, gap in paired], signed)]


def spent(methods: dict[str, Lines]) -> str:
    """Markdown: seconds, thousands of image-forwards, networks judged and branches left, means over seeds."""
    rows = ["| method | supernet, s | selection, s | longest search, s | fine-tuning, s | weights, k | gates, k "
            "| judging, k | sum, k | judged | branches left | tau of gates |", f"|{'---|' * 12}"]
    for method, lines in methods.items():
        seconds, forwards = ({key: statistics.fmean(line[part][key] for line in lines) for key in lines[0][part]}
                             for part in ("seconds", "image_forwards"))
        longest = max(line["longest_search_s"] for line in lines)
        cells = [f"{s:.0f}" for s in (seconds["supernet"], seconds["selection"], longest, seconds["finetune"])]
        cells += [f"{f / 1e3:.0f}" for f in (*(forwards[key] for key in ("weights", "gates", "judging")),
                                             sum(forwards.values()))]
        cells.append(f"{statistics.fmean(line['judged'] for line in lines):.0f}")
        gates = lines[0]["own"]["relaxation"] != "single"
        cells += [_known(lines, "branches", "{:.0f}"), _known(lines, "rank_agreement", "{:.2f}") if gates else "-"]
        rows.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(rows)


def draw(methods: dict[str, Lines], path: Path) -> None:
    """PNG: test accuracy over predicted ms, a line a method through the means over seeds, bars of one deviation."""
    figure = Figure(figsize=(10, 6.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    settings = next(iter(methods.values()))[0]["settings"]
    for number, (method, lines) in enumerate(methods.items()):
        at = [[picked(line, b) for line in lines] for b in settings["budget_ms"]]
        y = [[100 * pick["accuracy"] for pick in picks] for picks in at]
        x = [statistics.fmean(pick["ms"] for pick in picks) for picks in at]
        axes.errorbar(x, [statistics.fmean(v) for v in y],
                      yerr=[statistics.stdev(v) if len(v) > 1 else 0.0 for v in y], color=f"C{number % 10}",
                      marker=MARKERS[number % len(MARKERS)], ms=6, capsize=3, lw=2.5 if method == OURS else 1.2,
                      zorder=3 if method == OURS else 2, label=f"{method} (n = {len(lines)})")
    for budget in settings["budget_ms"]:
        axes.axvline(budget, color="0.85", lw=0.8, zorder=1)
    axes.set_xscale("log")
    axes.set_xticks(settings["budget_ms"], [f"{b:g}" for b in settings["budget_ms"]])
    axes.minorticks_off()
    axes.set_xlabel("predicted latency, ms (grey: the budgets)")
    axes.set_ylabel("test accuracy, %, mean over seeds with standard deviation")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="lower right", fontsize=9)
    axes.set_title(f"CIFAR-10, {settings['limit']:,} images: picks after the same fine-tuning")
    write_atomic(path, lambda file: figure.savefig(file, format="png"))


def picked(line: dict[str, Any], budget_ms: float) -> dict[str, Any]:
    """The pick of a budget."""
    return next(pick for pick in line["picks"] if pick["budget_ms"] == budget_ms)


def spread(values: Sequence[float], form: str) -> str:
    """Mean with standard deviation (of a sample) in the same number of places; the value alone where there is one."""
    if not values:
        return "-"
    mean = form.format(statistics.fmean(values))
    return f"{mean} +- {form.replace('+', '').format(statistics.stdev(values))}" if len(values) > 1 else mean


def _known(lines: Lines, key: str, form: str) -> str:
    values = [value for line in lines for value in line[key] if value is not None]
    return form.format(statistics.fmean(values)) if values else "-"


def read(path: Path) -> dict[str, Lines]:
    """The lines of a file of results by method, ours first, seeds in order."""
    texts = path.read_text().splitlines() if path.is_file() else []
    if not texts:
        raise SystemExit(f"{path}: no results; run.py makes them")
    methods: dict[str, Lines] = {}
    for line in sorted(map(json.loads, texts), key=lambda line: (line["method"] != OURS, line["seed"])):
        methods.setdefault(line["method"], []).append(line)
    return methods


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    parser.add_argument("--figure", type=Path, help="default: worth.png beside the results")
    options = parser.parse_args()
    methods = read(options.results)
    figure = options.figure or options.results.with_name("worth.png")
    draw(methods, figure)
    ms, accuracy = next(iter(methods.values()))[0]["settings"]["reference"]
    print(f"Hypervolume in ms x accuracy of the test split, reference {ms:g} ms and {accuracy:g}; mean +- standard "
          f"deviation over n seeds; accuracies in %. Figure: {figure}\n")
    print("\n\n".join(part for part in (table(methods), inherited(methods), spent(methods)) if part))


if __name__ == "__main__":
    main()
