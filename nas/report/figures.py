"""Draws the front of a run with matplotlib."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, BinaryIO

from matplotlib.figure import Figure

from nas.report.drawing import drawing, drawing_text, label, legend
from nas.run.records import Card, Front
from nas.units import axis, device, is_count


def draw_front(front: Front, file: BinaryIO) -> None:
    """Writes the figure of a front, ``front_figure``, as PNG."""
    figure = front_figure(front)
    with drawing_text():
        figure.savefig(file, format="png")


def front_figure(front: Front) -> Figure:
    """Draws test accuracy with its standard error over predicted milliseconds, one panel a target."""
    targets = front.target
    with drawing(6.4 * len(targets), 4.8) as figure:
        panels = figure.subplots(1, len(targets), squeeze=False)[0]
        for axes, target in zip(panels, targets, strict=True):
            _draw_panel(axes, front, target)
            axes.set_xlabel(label(axis(target), 80))
            title = label(front.space) + ("" if is_count(target) else f" on {label(device(target))}")
            title += " (numbers: input size)" if front.sizes else ""
            axes.set_title(textwrap.fill(title, 80), fontsize=10)  # matplotlib's own wrapping reads formulas
        legend(figure, panels)
    return figure


def _draw_panel(axes: Any, front: Front, target: str) -> None:
    """Draws the picks of one target: dominated ones in grey, the front in blue, those with exits with a green rim."""
    cards = front.cards
    on_front = [card for card in cards if front.standing(card.id, target).startswith("front")]
    _draw_points(axes, [card for card in cards if card not in on_front], target,
                 "picks dominated on the selection split", "o", "0.7", "none")
    _draw_points(axes, on_front, target, "front", "o", "tab:blue", "tab:blue")
    _draw_points(axes, [card for card in cards if card.exits], target, "with early exits: mean latency", "D",
                 "tab:green", "none")
    if front.sizes:
        _write_sizes(axes, cards, target)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="x", which="both", labelsize=7, rotation=45)
    axes.set_ylabel("test accuracy (%)")
    axes.grid(alpha=0.3)


def _draw_points(axes: Any, cards: Sequence[Card], target: str, name: str, marker: str, colour: str,
                 fill: str) -> None:
    """Draws test accuracy over predicted cost, with standard errors; those named ``front`` are joined by a line."""
    if not cards:
        return
    cards = sorted(cards, key=lambda card: card.ms[target])
    x = [card.ms[target] for card in cards]
    y = [100 * card.accuracy for card in cards]
    axes.errorbar(x, y, yerr=[100 * card.accuracy_se for card in cards], fmt=marker, color=colour, mfc=fill,
                  capsize=2, label=name)
    if name == "front":
        axes.plot(x, y, color=colour, alpha=0.4)


def _write_sizes(axes: Any, cards: Sequence[Card], target: str) -> None:
    """Writes the input size of each network beside its point."""
    for card in cards:
        axes.annotate(str(card.size), (card.ms[target], 100 * card.accuracy), xytext=(5, -10),
                      textcoords="offset points", fontsize=7, color="0.3")
