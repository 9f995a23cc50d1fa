"""Tables and figure of what ``replay.py`` and ``run.py`` wrote: hypervolume of every method, agreement of every score.

    python experiments/selection-cifar10/report.py
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from replay import EVALUATIONS, METHODS, Bench
from rivals import Oracle
from scipy.stats import kendalltau
from stored import FULL, HERE, Array, Judged, Pick, Stored, column_of, judged, read_lines

from nas.files import write_atomic
from nas.select import score_models
from nas.select.problem import Problem, budgets
from nas.select.scores import ridge, totals

OURS = "ilp, 12 budgets"
RESAMPLES = 2000
HELD_OUT = 200  # of the restricted space
FAMILIES = ("pymoo NSGA-II", "Optuna NSGA-II", "OFA evolution")  # of several populations the best is shown
Lines = list[dict[str, Any]]


def values(lines: Lines, method: str, n: int, key: str = "hypervolume") -> dict[int, float]:
    """By seed."""
    return {line["seed"]: line[key][str(n)] for line in lines if line["method"] == method}


def shown(lines: Lines, n: int) -> dict[str, str]:
    """Row -> method: of a family the population that did best at this number, chosen afterwards, in its favour."""
    methods = list(dict.fromkeys(line["method"] for line in lines))
    rows = {name: name for name in methods if not name.startswith(FAMILIES)}
    for family in FAMILIES:
        own = [name for name in methods if name.startswith(family)]
        if own:
            rows[family] = max(own, key=lambda name: statistics.fmean(values(lines, name, n).values()))
    return rows


def table(lines: Lines, best: float) -> str:
    """Markdown: a row a method, per number of evaluations the share of ``best`` and the difference to ours."""
    heads = [f"{n}: % of the best | minus ours" for n in EVALUATIONS]
    rows = [f"| method | {' | '.join(heads)} |", f"|{'---|' * (1 + 2 * len(EVALUATIONS))}"]
    cells: dict[str, list[str]] = {}
    for n in EVALUATIONS:
        ours = values(lines, OURS, n)
        for row, method in shown(lines, n).items():
            found = values(lines, method, n)
            population = method.removeprefix(row)
            share = spread([100 * value / best for value in found.values()], "{:.2f}") + population.replace(",", " at")
            gaps = [100 * (found[seed] - ours[seed]) / best for seed in found if seed in ours]
            cells.setdefault(row, []).extend([share, spread(gaps, "{:+.2f}") if method != OURS else "-"])
    if "random" in cells:
        cells["random, by accuracy"] = [cell for n in EVALUATIONS for cell in _by_accuracy(lines, n, best)]
    return "\n".join([*rows, *(f"| {row} | {' | '.join(own)} |" for row, own in cells.items())])


def _by_accuracy(lines: Lines, n: int, best: float) -> list[str]:
    found, ours = values(lines, "random", n, "by_accuracy"), values(lines, OURS, n)
    return [spread([100 * value / best for value in found.values()], "{:.2f}"),
            spread([100 * (found[seed] - ours[seed]) / best for seed in found if seed in ours], "{:+.2f}")]


def spread(numbers: Sequence[float], form: str) -> str:
    """Mean with standard deviation (of a sample) in the same number of places."""
    mean = form.format(statistics.fmean(numbers))
    return f"{mean} +- {form.replace('+', '').format(statistics.stdev(numbers))}" if len(numbers) > 1 else mean


def agreement(stored: Stored, lines: Lines) -> str:
    """Markdown: Kendall's tau of scores and of plain costs with inherited accuracy and loss of held-out networks."""
    held = [line for line in lines if line["part"].startswith("held-out")]
    picks = [pick for line in held for pick in line["picks"]]
    seen, unseen = (held[0]["settings"][key] for key in ("seen", "unseen"))

    def column(key: str) -> Array:
        return np.array([value for line in held for value in line[key]], float)

    accuracy = (column("right") + column("unseen_right")) / (seen + unseen)
    loss = (seen * column("loss") + unseen * column("unseen_loss")) / (seen + unseen)
    bounds = budgets(stored.full)
    gates = stored.gates({"ms": bounds[len(bounds) // 2]}, restricted=False)
    predictors = {name: column_of(stored, name, picks) for name in ("macs", "params", "ms")}
    predictors["loss on the images seen"] = -column("loss")
    predictors["gates"] = totals(gates, picks)
    for line in lines:
        if line["part"].startswith("ilp"):
            archs, losses = [stored.full.arch(pick) for pick in line["picks"]], [one / 1e5 for one in line["loss"]]
            for name, fit in score_models.candidates(stored.full, {score_models.GATES: gates}).items():
                if name != score_models.GATES:
                    predictors[f"{name}, {len(archs)} judged"] = totals(fit(archs, losses), picks)
    if random := [line for line in lines if line["part"].startswith("fitted")]:
        known = Judged(*(np.array([value for line in random for value in line[key]], float) / unit for key, unit in (
            ("loss", 1e5), ("right", seen), ("unseen_loss", 1e5), ("unseen_right", unseen))))
        predictors |= on_random(stored.full, [pick for line in random for pick in line["picks"]], known, picks)
    heading = (f"{len(picks)} random networks of the full space, {seen + unseen} images; accuracy "
               f"{100 * accuracy.min():.1f} .. {100 * accuracy.max():.1f} %, standard deviation "
               f"{100 * accuracy.std():.1f} points")
    return "\n".join([heading, "", *taus(predictors, accuracy, loss)])


def on_random(problem: Problem, fitted: Sequence[Pick], known: Judged, held: Sequence[Pick]) -> dict[str, Array]:
    """Scores of the networks ``held`` by fits on random ones: to loss and accuracy, on the images seen and the others.

    The others are four times as many, and those that the truth is about.
    """
    targets = {"loss": known.loss, "loss on the unseen": known.unseen_loss, "accuracy": -known.accuracy,
               "accuracy on the unseen": -known.unseen_accuracy}
    archs = [problem.arch(pick) for pick in fitted]
    return {f"fit to {name}, {len(archs)} random": totals(ridge(problem, archs, list(own)), held)
            for name, own in targets.items()}


def on_whole(lines: Lines) -> str:
    """Markdown: hypervolume of every method on the whole space, and the difference to ours, paired by seed."""
    found = {name: {line["seed"]: line["hypervolume"] for line in lines if line["method"] == name}
             for name in dict.fromkeys(line["method"] for line in lines)}
    found["random, by accuracy"] = {line["seed"]: line["by_accuracy"] for line in lines if line["method"] == "random"}
    rows = ["| method | n | hypervolume | minus ours | by seed |", "|---|---|---|---|---|"]
    for name, own in found.items():
        gaps = {seed: value - found[OURS][seed] for seed, value in own.items() if seed in found.get(OURS, {})}
        if own:
            rows.append(f"| {name} | {len(own)} | {spread(list(own.values()), '{:.4f}')} | "
                        f"{spread(list(gaps.values()), '{:+.4f}') if gaps and name != OURS else '-'} | "
                        f"{', '.join(f'{seed}: {gap:+.4f}' for seed, gap in gaps.items()) if name != OURS else '-'} |")
    return "\n".join(rows)


def taus(predictors: dict[str, Array], accuracy: Array, loss: Array) -> list[str]:
    """Rows of Markdown: Kendall's tau of each with accuracy and negative loss, and its bootstrap 95 % interval."""
    drawn = np.random.default_rng(0).integers(0, len(loss), (RESAMPLES, len(loss)))
    rows = ["| score | tau, accuracy | tau, loss |", "|---|---|---|"]
    for name, score in predictors.items():
        cells = []
        for truth in (accuracy, -loss):
            low, high = np.nanpercentile([kendalltau(score[i], truth[i]).statistic for i in drawn], (2.5, 97.5))
            cells.append(f"{kendalltau(score, truth).statistic:.2f} [{low:.2f}, {high:.2f}]")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def agreement_restricted(bench: Bench) -> str:
    """As ``agreement``, over random networks of the restricted space that none of the fits has seen; seed 0."""
    problem, stored, figures, asked = bench.problem, bench.stored, bench.judged, {}
    for n in EVALUATIONS:
        oracle = Oracle(problem, bench.losses, n)
        METHODS[OURS](bench)(oracle, [], 0)
        asked[n] = list(oracle.asked)
    known = {pick for picks in asked.values() for pick in picks}
    unknown = [pick for pick in bench.row if pick not in known]
    chosen = [unknown[i] for i in np.random.default_rng(0).permutation(len(unknown))]
    picks, fitted = chosen[:HELD_OUT], chosen[HELD_OUT:HELD_OUT + max(EVALUATIONS)]
    rows = np.array([bench.row[pick] for pick in picks])
    whole = [[own[i] for own, i in zip(stored.choices, pick, strict=True)] for pick in picks]
    predictors = {name: column_of(stored, name, whole) for name in ("macs", "params", "ms")}
    predictors["loss on the images seen"] = -figures.loss[rows]
    bounds = budgets(problem)
    gates = stored.gates({"ms": bounds[len(bounds) // 2]}, restricted=True)
    predictors["gates"] = totals(gates, picks)
    for n, own in asked.items():
        archs, losses = [problem.arch(pick) for pick in own], [bench.losses[pick] for pick in own]
        for name, fit in score_models.candidates(problem, {score_models.GATES: gates}).items():
            if name != score_models.GATES:
                predictors[f"{name}, {n} judged"] = totals(fit(archs, losses), picks)
    predictors |= on_random(problem, fitted, figures.of([bench.row[pick] for pick in fitted]), picks)
    accuracy, loss = figures.unseen_accuracy[rows], figures.unseen_loss[rows]
    heading = (f"{len(picks)} random networks of the restricted space that no fit has seen, on the unseen images; "
               f"accuracy {100 * accuracy.min():.1f} .. {100 * accuracy.max():.1f} %")
    return "\n".join([heading, "", *taus(predictors, accuracy, loss)])


def draw(bench: Bench, lines: Lines, path: Path) -> None:
    """PNG: the networks judged with the best front, and the methods' hypervolume over evaluations."""
    figure = Figure(figsize=(13, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(1, 2, 1)
    axes.scatter(bench.ms, 100 * bench.judged.unseen_accuracy, s=3, alpha=0.4)
    axes.set_xlabel("predicted latency (ms)")
    axes.set_ylabel("inherited accuracy, unseen images (%)")
    axes.set_title(f"{len(bench.ms):,} networks")
    axes.grid(alpha=0.3)
    axes = figure.add_subplot(1, 2, 2)
    best = bench.value(range(len(bench.ms)), bench.judged.unseen_accuracy)
    for number, row in enumerate(shown(lines, EVALUATIONS[0])):
        found = [[100 * v / best for v in values(lines, shown(lines, n)[row], n).values()] for n in EVALUATIONS]
        axes.errorbar([x * 1.02 ** (number - 5) for x in EVALUATIONS], [statistics.fmean(v) for v in found],
                      yerr=[statistics.stdev(v) if len(v) > 1 else 0.0 for v in found], capsize=2,
                      lw=2.5 if row == OURS else 1, marker="osD^v<>ph*"[number % 10], ms=5, label=row,
                      zorder=3 if row == OURS else 2)
    axes.set_xscale("log")
    axes.set_xticks(EVALUATIONS, [str(n) for n in EVALUATIONS])
    axes.minorticks_off()
    axes.set_xlabel("networks judged")
    axes.set_ylabel("hypervolume, % of the best front")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    write_atomic(path, lambda file: figure.savefig(file, format="png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "replay.jsonl")
    parser.add_argument("--figure", type=Path, default=HERE / "selection.png")
    options = parser.parse_args()
    stored, lines, full = Stored.read(), read_lines(options.results), read_lines(FULL)
    if lines:
        bench = Bench(*judged())
        every = range(len(bench.ms))
        best = bench.value(every, bench.judged.unseen_accuracy)
        draw(bench, lines, options.figure)
        ms, accuracy = bench.reference
        print(f"{len(bench.ms):,} networks. Hypervolume of the front found, chosen by loss on the images seen, in "
              f"accuracy on the unseen ones over predicted ms; reference {ms:.4g} ms, {100 * accuracy:.1f} %; in % of "
              f"the best front there is ({best:.5f}), mean +- standard deviation over seeds. All networks judged: "
              f"{100 * bench.value(every, -bench.judged.loss) / best:.2f} %. Figure: {options.figure}\n")
        print(table(lines, best), "\n")
        print(agreement_restricted(bench), "\n")
    if any(line["part"].startswith("held-out") for line in full):
        print(agreement(stored, full), "\n")
    if whole := read_lines(HERE / "whole.jsonl"):
        print(on_whole(whole))


if __name__ == "__main__":
    main()
