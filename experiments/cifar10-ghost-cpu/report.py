"""Draws the README's figure from ``front.json``: test accuracy over measured milliseconds.

    python experiments/cifar10-ghost-cpu/report.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from nas.files import write_atomic
from nas.report.drawing import drawing

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE.parents[1] / "docs" / "front.png")
    out: Path = parser.parse_args().out
    picks = sorted(json.loads((HERE / "front.json").read_text())["front"], key=lambda pick: pick["measured_ms"]["cpu"])
    milliseconds = [pick["measured_ms"]["cpu"] for pick in picks]
    accuracies = [100 * pick["accuracy"] for pick in picks]
    with drawing(6.4, 3.6) as figure:
        axes = figure.subplots()
        errors = [100 * pick["accuracy_se"] for pick in picks]
        axes.errorbar(milliseconds, accuracies, yerr=errors, marker="o", capsize=3)
        for x, y, pick in zip(milliseconds, accuracies, picks, strict=True):
            axes.annotate(f"{y:.1f} %, {x:.2f} ms\n{pick['macs'] / 1e6:.1f} M MACs", (x, y), xytext=(8, -24),
                          textcoords="offset points", fontsize=8)
        axes.set(xlabel="measured latency (ms): ONNX Runtime, fp32, batch 1, one thread",
                 ylabel="CIFAR-10 test accuracy (%)", xlim=(0.2, 0.78), ylim=(77.5, 87))
        axes.grid(alpha=0.3)
        write_atomic(out, lambda file: figure.savefig(file, format="png", dpi=120))


if __name__ == "__main__":
    main()
