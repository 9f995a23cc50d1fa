"""Tables and figure of what ``run.py`` and ``serve.py`` wrote: accuracy of every head, budgeted batch, what is served.

    python experiments/exits-cifar10/report.py
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nas.files import write_atomic

HERE = Path(__file__).resolve().parent
Lines = list[dict[str, Any]]


def read(path: Path) -> Lines:
    return [json.loads(text) for text in path.read_text().splitlines()] if path.is_file() else []


def by_method(lines: Lines) -> dict[str, Lines]:
    return {name: [line for line in lines if line["method"] == name]
            for name in dict.fromkeys(line["method"] for line in lines)}


def spread(values: Sequence[float], form: str = "{:.1f}") -> str:
    """Mean and, of several, standard deviation."""
    mean = form.format(statistics.fmean(values))
    return f"{mean} +- {form.format(statistics.stdev(values))}" if len(values) > 1 else mean


def trained(lines: Lines) -> str:
    """Markdown: a row a method."""
    heads = max(len(line["accuracy"]) for line in lines)
    names = [*(f"head {k + 1}" for k in range(heads - 1)), "last head"]
    rows = [f"| method | n | {' | '.join(names)} | area | seconds |", f"|{'---|' * (heads + 4)}"]
    for method, own in by_method(lines).items():
        cells = [spread([100 * line["accuracy"][k] for line in own]) for k in range(len(own[0]["accuracy"]))]
        cells = ["-"] * (heads - len(cells)) + cells
        areas = [100 * line["area"] for line in own if "area" in line]
        rows.append(f"| `{method}` | {len(own)} | {' | '.join(cells)} | {spread(areas) if areas else '-'} | "
                    f"{spread([line['seconds'] for line in own], '{:.0f}')} |")
    return "\n".join(rows)


def paired(lines: Lines, one: str, other: str) -> str:
    """Differences by seed: accuracy of every head, and of the area, in points."""
    found = {name: {line["seed"]: line for line in own} for name, own in by_method(lines).items()}
    seeds = sorted(set(found.get(one, {})) & set(found.get(other, {})))
    if not seeds:
        return f"{one} - {other}: no seed has both"
    gaps = np.array([[*(np.array(found[one][seed]["accuracy"]) - found[other][seed]["accuracy"]),
                      found[one][seed]["area"] - found[other][seed]["area"]] for seed in seeds]) * 100
    return (f"{one} - {other}, points, heads in order and area: " + "; ".join(
        f"seed {seed}: {', '.join(f'{gap:+.1f}' for gap in row)}" for seed, row in zip(seeds, gaps, strict=True)))


def served(lines: Lines) -> str:
    """Markdown: a row a network, with the largest differences of the files."""
    rows = ["| method | seed | exits kept | mean ms with, measured | the same file again | predicted | off, % | "
            "without, ms | less, % | accuracy with, % | without, % | late path, % | its noise, % | "
            "largest miss of a budget, % |",
            f"|{'---|' * 14}"]
    for line in lines:
        ms = line["ms"]
        miss = max((one["mean_ms"] / one["budget_ms"] - 1 for one in line["budgets"]), key=abs)
        cells = [f"`{line['method']}`", str(line["seed"]), f"{len(line['kept'])} of {len(line['arch']['exits'])}",
                 f"{ms['with']:.4f}", f"{ms['with again']:.4f}", f"{line['predicted_ms']:.4f}",
                 f"{100 * (line['predicted_ms'] / ms['with'] - 1):+.1f}", f"{ms['without']:.4f}",
                 f"{100 * (1 - ms['with'] / ms['without']):.1f}", f"{100 * line['accuracy']:.2f}",
                 f"{100 * line['accuracy_without']:.2f}", f"{100 * (ms['late'] / ms['all heads'] - 1):+.1f}",
                 f"{100 * (ms['all heads again'] / ms['all heads'] - 1):+.1f}", f"{100 * miss:+.1f}"]
        rows.append(f"| {' | '.join(cells)} |")
    other = sum(line[kind][what] for line in lines for kind in ("If file", "segments") for what in ("exits", "classes"))
    most = max(line[kind]["logits"] for line in lines for kind in ("If file", "segments"))
    return "\n".join([*rows, "", f"File with If, segments and PyTorch on {lines[0]['images']:,} test images each: "
                      f"{other} other exits or classes in all, logits within {most:.1e}."])


def draw(lines: Lines, path: Path) -> None:
    """PNG: accuracy of the heads over the multiply-adds up to them, and budgeted batch; means over the seeds."""
    figure = Figure(figsize=(13, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for place, title in enumerate(("every head alone", "budgeted batch")):
        axes = figure.add_subplot(1, 2, 1 + place)
        for number, (method, own) in enumerate(by_method(lines).items()):
            mmacs, marker, colour = np.array(own[0]["mmacs"]), "os^vD<>p"[number % 8], f"C{number}"
            accuracy = 100 * np.mean([line["accuracy"] for line in own], axis=0)
            if len(accuracy) == 1:
                axes.axhline(accuracy[0], color="0.4", ls="--", lw=1, label="without exits")
            elif not place:
                axes.plot(mmacs, accuracy, marker=marker, color=colour, label=method, ms=5)
            else:
                x, y = np.mean([line["curve"] for line in own], axis=0).T
                axes.plot(x, 100 * y, color=colour, label=method)
        axes.set_xlabel("multiply-adds (M)" if not place else "mean multiply-adds (M)")
        axes.set_ylabel("test accuracy (%)")
        axes.set_title(title)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    write_atomic(path, lambda file: figure.savefig(file, format="png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure", type=Path, default=HERE / "exits.png")
    options = parser.parse_args()
    lines, files = read(HERE / "results.jsonl"), read(HERE / "served.jsonl")
    if lines:
        print(trained(lines), "\n")
        for other in sorted(by_method(lines).keys() - {"plain", "boost"}):
            print(paired(lines, "boost", other))
        draw(lines, options.figure)
        print(f"\nFigure: {options.figure}\n")
    if files:
        print(served(files))


if __name__ == "__main__":
    main()
