"""Figures of a run, drawn with matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nas.show import targets_of


def draw_front(front: dict[str, Any], file: BinaryIO) -> None:
    """PNG: test accuracy with its standard error over predicted milliseconds, one panel a target."""
    targets = targets_of(front)
    figure = Figure(figsize=(6.4 * len(targets), 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for number, target in enumerate(targets):
        axes = figure.add_subplot(1, len(targets), number + 1)
        _points(axes, front["dominated"], target, "picks dominated on the selection split", "o", "0.7", "none")
        _points(axes, front["front"], target, "front", "o", "tab:blue", "tab:blue")
        early = [card for card in (*front["front"], *front["dominated"]) if card.get("exits")]
        _points(axes, early, target, "with early exits: mean latency", "D", "tab:green", "none")
        if front.get("sizes"):
            _sizes(axes, [*front["front"], *front["dominated"]], target)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}")
        axes.tick_params(axis="x", which="minor", labelsize=7, rotation=45)
        device = Path(target).name  # a table of the user's is named by its path
        axes.set_xlabel(f"predicted latency on {device} (ms)")
        axes.set_ylabel("test accuracy (%)")
        axes.set_title(f"{front['space']} on {device}" + (" (numbers: input size)" if front.get("sizes") else ""))
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", fontsize=8)
    figure.savefig(file, format="png")


def _points(axes: Any, cards: list[dict[str, Any]], target: str, label: str, marker: str, colour: str,
            fill: str) -> None:
    if not cards:
        return
    x = [_ms(card, target) for card in cards]
    y = [100 * card["accuracy"] for card in cards]
    axes.errorbar(x, y, yerr=[100 * card["accuracy_se"] for card in cards], fmt=marker, color=colour, mfc=fill,
                  capsize=2, label=label)
    if label == "front":
        axes.plot(x, y, color=colour, alpha=0.4)


def _sizes(axes: Any, cards: list[dict[str, Any]], target: str) -> None:
    """The input side beside each point."""
    for card in cards:
        axes.annotate(str(card["size"]), (_ms(card, target), 100 * card["accuracy"]), xytext=(5, -10),
                      textcoords="offset points", fontsize=7, color="0.3")


def _ms(card: dict[str, Any], target: str) -> float:
    return float(card["ms"][target] if isinstance(card["ms"], dict) else card["ms"])
