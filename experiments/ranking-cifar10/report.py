"""Table and figure of ``results.jsonl``: Kendall's tau of what predicts the accuracy of a network trained alone.

    python experiments/ranking-cifar10/report.py

With ``--again FILE``, results of the same networks with another ``--train-seed``: the tau that the noise of training
leaves.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nas.files import write_atomic

HERE = Path(__file__).resolve().parent
Array = NDArray[np.float64]
OURS = {"inherited accuracy": ("inherited_accuracy", 1), "inherited loss": ("inherited_loss", -1),
        "inherited loss, 500 images": ("judged_loss", -1)}  # key of a line, and the sign of what is better
PROXIES = {"MACs": ("macs", 1), "params": ("params", 1), "predicted ms": ("ms", 1)}
RESAMPLES = 10_000


def tau(x: Array, y: Array, counts: Array, groups: Array | None = None) -> Array:
    """Kendall's tau-b [b] of x and y [n] in samples that hold network j ``counts[i, j]`` times ([b, n]).

    ``groups`` [n]: instead the mean of tau within groups, of those that have one. With counts of 1 it is what
    ``scipy.stats.kendalltau`` gives; resampled networks tie with themselves, which tau-b allows for.
    """
    if groups is not None:
        each = [tau(x[chosen], y[chosen], counts[:, chosen]) for chosen in (groups == g for g in np.unique(groups))]
        taus = np.array(each)  # [groups, b], NaN where a group has no two different networks
        known = np.isfinite(taus)
        return _ratio(np.where(known, taus, 0).sum(0), known.sum(0))
    signs = [np.sign(v[:, None] - v[None, :]) for v in (x, y)]
    agree, x_apart, y_apart = (((counts @ m) * counts).sum(1)
                               for m in (signs[0] * signs[1], np.abs(signs[0]), np.abs(signs[1])))
    return _ratio(agree, np.sqrt(x_apart * y_apart))


def _ratio(a: Array, b: Array) -> Array:
    ratio: Array = np.divide(a, b, out=np.full(np.shape(a), np.nan), where=b > 0)
    return ratio


def resampled(n: int, seed: int = 0) -> Array:
    """How often each of n networks is drawn in each bootstrap sample, [RESAMPLES, n]."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(float)


def interval(values: Array) -> tuple[float, float]:
    low, high = np.nanpercentile(values, (2.5, 97.5))
    return float(low), float(high)


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown: a row a predictor, tau with its bootstrap 95 % interval; then ours against the best proxy."""
    n = len(lines)
    one, many, groups = np.ones((1, n)), resampled(n), _column(lines, "group")
    truths = {"test accuracy": _column(lines, "test_accuracy"), "test loss": -_column(lines, "test_loss")}
    columns = [("test accuracy", None), ("test accuracy", groups), ("test loss", None), ("test loss", groups)]
    rows = ["| predictor | tau, test accuracy | within groups | tau, test loss | within groups |",
            "|---|---|---|---|---|"]
    points: dict[str, float] = {}
    samples: dict[str, Array] = {}
    for name, (key, sign) in {**OURS, **PROXIES}.items():
        x, cells = sign * _column(lines, key), []
        for truth, within in columns:
            y = truths[truth]
            point, drawn = float(tau(x, y, one, within)[0]), tau(x, y, many, within)
            cells.append(f"{point:.2f} [{interval(drawn)[0]:.2f}, {interval(drawn)[1]:.2f}]")
            if len(cells) == 1:
                points[name], samples[name] = point, drawn
        rows.append(f"| {name} | {' | '.join(cells)} |")
    best = max(PROXIES, key=points.__getitem__)
    rows += ["", f"Tau minus that of the best proxy ({best}), paired over the same resamples:", ""]
    for name in OURS:
        low, high = interval(samples[name] - samples[best])
        rows.append(f"- {name}: {points[name] - points[best]:+.2f} [{low:+.2f}, {high:+.2f}]")
    return "\n".join(rows)


def ceiling(lines: list[dict[str, Any]], again: list[dict[str, Any]]) -> str:
    """One line: tau of two trainings of the same networks, those that are in both."""
    other = {line["id"]: line["test_accuracy"] for line in again}
    both = [line for line in lines if line["id"] in other]
    x, y = _column(both, "test_accuracy"), np.array([other[line["id"]] for line in both])
    n, groups, cells = len(both), _column(both, "group"), []
    for within in (None, groups):
        low, high = interval(tau(x, y, resampled(n), within))
        cells.append(f"{tau(x, y, np.ones((1, n)), within)[0]:.2f} [{low:.2f}, {high:.2f}]")
    return (f"Trained alone twice, {n} networks: tau {cells[0]}, within groups {cells[1]}; accuracies differ by "
            f"{100 * float(np.std(x - y) / np.sqrt(2)):.2f} points (standard deviation of one training)")


def spread(lines: list[dict[str, Any]]) -> str:
    """Markdown: each group's latencies and accuracies, to see what there was to be ranked."""
    rows = ["| group | n | predicted ms | inherited % | alone, test % (standard error) | seconds of training |",
            "|---|---|---|---|---|---|"]
    for group in np.unique(_column(lines, "group")):
        some = [line for line in lines if line["group"] == group]
        ms, inherited, alone, seconds = (sorted(line[key] for line in some) for key in
                                         ("ms", "inherited_accuracy", "test_accuracy", "trained_s"))
        error = 100 * max(line["test_accuracy_se"] for line in some)
        rows.append(f"| {group:g} | {len(some)} | {ms[0]:.3f} .. {ms[-1]:.3f} | {100 * inherited[0]:.1f} .. "
                    f"{100 * inherited[-1]:.1f} | {100 * alone[0]:.1f} .. {100 * alone[-1]:.1f} (+- {error:.1f}) | "
                    f"{seconds[0]:.0f} .. {seconds[-1]:.0f} |")
    return "\n".join(rows)


def draw(lines: list[dict[str, Any]], path: Path) -> None:
    """PNG: accuracy alone over inherited accuracy, inherited loss and predicted ms, coloured by group of latency."""
    figure = Figure(figsize=(13, 4.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    groups = [int(g) for g in np.unique(_column(lines, "group"))]
    colours = [f"C{i}" for i in range(10)]
    panels = (("inherited_accuracy", 100, "inherited accuracy, selection split (%)"),
              ("inherited_loss", 1, "inherited loss, selection split (better to the right)"),
              ("ms", 1, "predicted latency (ms)"))
    for number, (key, scale, label) in enumerate(panels):
        axes = figure.add_subplot(1, 3, number + 1)
        for group in groups:
            some = [line for line in lines if line["group"] == group]
            ms = _column(some, "ms")
            axes.errorbar(scale * _column(some, key), 100 * _column(some, "test_accuracy"),
                          yerr=100 * _column(some, "test_accuracy_se"), fmt="o", ms=5, capsize=2,
                          color=colours[group % 10], label=f"{ms.min():.2f} to {ms.max():.2f} ms")
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
        if key == "inherited_loss":
            axes.invert_xaxis()
        if key == "ms":
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("{x:g}")
            axes.tick_params(axis="x", which="minor", labelsize=7, rotation=45)
            axes.legend(loc="lower right", fontsize=8, title="group")
    figure.axes[0].set_ylabel("trained alone, test accuracy (%), with standard error")
    figure.suptitle(f"{len(lines)} networks of {lines[0]['arch']['space']}: inherited against trained alone")
    write_atomic(path, lambda file: figure.savefig(file, format="png"))


def _column(lines: list[dict[str, Any]], key: str) -> Array:
    return np.array([line[key] for line in lines], float)


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of results, in the order of the networks."""
    texts = path.read_text().splitlines() if path.is_file() else []
    if len(texts) < 2:
        raise SystemExit(f"{path}: {len(texts)} networks; run.py makes them, and two are the least to rank")
    return sorted((json.loads(text) for text in texts), key=lambda line: line["part"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    parser.add_argument("--figure", type=Path, help="default: ranking.png beside the results")
    parser.add_argument("--again", type=Path, help="results of the same networks, trained with another seed")
    options = parser.parse_args()
    lines = read(options.results)
    figure = options.figure or options.results.with_name("ranking.png")
    draw(lines, figure)
    print(f"{len(lines)} networks, bootstrap over networks, {RESAMPLES:,} resamples; figure: {figure}\n")
    print(f"{table(lines)}\n\n{spread(lines)}")
    if options.again:
        print(f"\n{ceiling(lines, read(options.again))}")


if __name__ == "__main__":
    main()
