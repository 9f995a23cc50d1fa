"""Table and figure of ``results.jsonl`` and ``latency.json``: accuracy over measured milliseconds.

    python experiments/cifar10-head-to-head/report.py
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nas.files import write_atomic

HERE = Path(__file__).resolve().parent
MARKERS = {"ghostnet": "s", "mobilenet_v2": "D", "mobilenet_v3_small": "^", "resnet18": "v"}


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
                 f"{statistics.fmean(line['seconds'] for line in own) / 60:.1f}"]
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
    """Accuracy of the picks at ``ms``, linear between two; None outside of their range."""
    for (left, low), (right, high) in itertools.pairwise(picks):
        if left <= ms <= right:
            return low + (high - low) * (ms - left) / (right - left)
    return None


def spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.1f}" + (f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def draw(lines: list[dict[str, Any]], latency: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    picks = front(lines, latency, list(latency["delivered"]))
    axes.plot(*zip(*picks, strict=True), "o-", color="C0", label="picks of the search, from scratch", zorder=3)
    delivered = sorted((latency["ms"][name], 100 * said["accuracy"]) for name, said in latency["delivered"].items())
    axes.plot(*zip(*delivered, strict=True), "o--", color="C0", mfc="none", label="picks: inherited, fine-tuned")
    for number, (family, marker) in enumerate(MARKERS.items(), 1):
        names = [name for name in by_ms(latency) if name.split("@")[0] == family]
        if not names:
            continue
        points = front(lines, latency, names)
        axes.plot(*zip(*points, strict=True), marker=marker, ls=":", color=f"C{number}", label=family)
        for name, point in zip(names, points, strict=True):
            axes.annotate(name.split("@")[1], point, textcoords="offset points", xytext=(5, -9), fontsize=8,
                          color=f"C{number}")
    for name, ms in latency["ms"].items():  # every seed
        own = [100 * line["accuracy"] for line in lines if line["network"] == name]
        axes.plot([ms] * len(own), own, ".", color="0.6", ms=3, zorder=1)
    axes.set(xlabel="measured ms (ONNX Runtime, 1 thread, batch 1)", ylabel="CIFAR-10 test accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    write_atomic(path, lambda file: figure.savefig(file, format="png", dpi=150))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    parser.add_argument("--latency", type=Path, default=HERE / "latency.json")
    parser.add_argument("--figure", type=Path, default=HERE / "head-to-head.png")
    options = parser.parse_args()
    lines = [json.loads(text) for text in options.results.read_text().splitlines()]
    latency = json.loads(options.latency.read_text())
    print(table(lines, latency))
    draw(lines, latency, options.figure)


if __name__ == "__main__":
    main()
