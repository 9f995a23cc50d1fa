"""Table and figure of ``results.jsonl`` and ``latency.json``: accuracy over measured milliseconds.

    python experiments/cifar10-head-to-head/report.py
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nas.errors import UserError
from nas.files import write_atomic

sys.path.append(str(Path(__file__).resolve().parents[1]))
from results import told

HERE = Path(__file__).resolve().parent
MARKERS = "sD^v<>ph*"


Front = list[tuple[float, float]]  # (measured ms, mean accuracy in %), fastest first


def table(lines: list[dict[str, Any]], latency: dict[str, Any]) -> str:
    """Markdown, fastest first; accuracies in %, mean +- standard deviation over seeds."""
    heads = ["network", "measured ms", "second session", "predicted ms", "MACs (M)", "params (M)", "n",
             "from scratch, %", "minutes", "minus picks at its ms", "delivered, %", "minutes with the search"]
    rows = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    picks = front(lines, latency, list(latency["delivered"]))
    for (ms, mean), name in zip(front(lines, latency, list(latency["ms"])), by_ms(latency), strict=True):
        own, said = [line for line in lines if line["network"] == name], latency["delivered"].get(name)
        cells = [f"**pick** {name}" if said else name, f"{ms:.3f}",
                 f"{100 * latency['second_over_first'][name] - 100:+.1f} %", f"{said['ms']:.3f}" if said else "-",
                 f"{own[0]['macs'] / 1e6:.1f}", f"{own[0]['params'] / 1e6:.2f}", f"{len(own)}",
                 spread([100 * line["accuracy"] for line in own]),
                 f"{min(line['seconds'] for line in own) / 60:.1f}"]  # other processes only ever add
        gap = None if said else between(picks, ms)
        cells += ["-" if gap is None else f"{mean - gap:+.1f}", "-", "-"]
        if said:
            cells[-2:] = [f"{100 * said['accuracy']:.1f}", f"{(said['search_s'] + said['finetune_s']) / 60:.0f}"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def by_ms(latency: dict[str, Any]) -> list[str]:
    return sorted(latency["ms"], key=latency["ms"].__getitem__)


def front(lines: list[dict[str, Any]], latency: dict[str, Any], names: list[str]) -> Front:
    """Of those networks, trained from scratch."""
    return [(latency["ms"][name], statistics.fmean(100 * one["accuracy"] for one in lines if one["network"] == name))
            for name in by_ms(latency) if name in names]


def between(picks: Front, ms: float) -> float | None:
    """Accuracy of the picks at ``ms``, linear between two; the slowest's for slower ones, None for faster than all."""
    for (left, low), (right, high) in itertools.pairwise(picks):
        if left <= ms <= right:
            return low + (high - low) * (ms - left) / (right - left)
    return picks[-1][1] if ms > picks[-1][0] else None


def spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.1f}" + (f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def draw(lines: list[dict[str, Any]], latency: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    picks = front(lines, latency, list(latency["delivered"]))
    axes.plot(*zip(*picks, strict=True), "o-", color="C0", label="picks of the search, from scratch", zorder=3)
    delivered = sorted((latency["ms"][name], 100 * said["accuracy"]) for name, said in latency["delivered"].items())
    axes.plot(*zip(*delivered, strict=True), "o--", color="C0", mfc="none", label="picks: inherited, fine-tuned")
    known = [name for name in by_ms(latency) if name not in latency["delivered"]]
    families = sorted({name.partition("@")[0] for name in known})
    for number, (family, marker) in enumerate(zip(families, itertools.cycle(MARKERS), strict=False), 1):
        names = [name for name in known if name.partition("@")[0] == family]
        points = front(lines, latency, names)
        axes.plot(*zip(*points, strict=True), marker=marker, ls=":", color=f"C{number}", label=family)
        for name, point in zip(names, points, strict=True):
            axes.annotate(name.partition("@")[2], point, textcoords="offset points", xytext=(5, -9), fontsize=8,
                          color=f"C{number}")
    for name, ms in latency["ms"].items():  # every seed
        own = [100 * line["accuracy"] for line in lines if line["network"] == name]
        axes.plot([ms] * len(own), own, ".", color="0.6", ms=3, zorder=1)
    axes.set(xlabel="measured ms (ONNX Runtime, 1 thread, batch 1)", ylabel="CIFAR-10 test accuracy, %")
    axes.grid(alpha=0.3)
    axes.margins(x=0.08)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    write_atomic(path, lambda file: figure.savefig(file, format="png", dpi=150))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    parser.add_argument("--latency", type=Path, default=HERE / "latency.json")
    parser.add_argument("--figure", type=Path, default=HERE / "head-to-head.png")
    options = parser.parse_args()
    with told():
        for file in (options.results, options.latency):
            if not file.is_file():
                raise UserError(f"{file}: no such file; run.py writes it, results.jsonl without and latency.json with "
                                "--measure")
        lines = [json.loads(text) for text in options.results.read_text().splitlines()]
        latency = json.loads(options.latency.read_text())
        if not latency["delivered"]:
            raise UserError(f"{options.latency}: has no picks; run.py --measure with --search writes them")
        if lacking := set(latency["ms"]) - {line["network"] for line in lines}:
            raise UserError(f"{options.results}: no line of {', '.join(sorted(lacking))}; run.py trains them")
        print(table(lines, latency))
        draw(lines, latency, options.figure)


if __name__ == "__main__":
    main()
