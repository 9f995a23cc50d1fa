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
    """Draws the networks of one target: dominated ones in grey, the front in blue, with exits with a green rim.

    Known networks are squares with their names.
    """
    cards = front.cards
    on_front = [card for card in cards if front.standing(card.id, target).startswith("front")]
    behind = [card for card in cards if card not in on_front]
    _draw_points(axes, [card for card in behind if not card.known], target,
                 "picks dominated on the selection split", "o", "0.7", "none")
    _draw_points(axes, [card for card in behind if card.known], target, "known networks, dominated", "s", "0.7", "none")
    _draw_points(axes, [card for card in on_front if not card.known], target, "front", "o", "tab:blue", "tab:blue")
    _draw_points(axes, [card for card in on_front if card.known], target, "front: known networks", "s", "tab:blue",
                 "tab:blue")
    _draw_line(axes, on_front, target)
    _draw_points(axes, [card for card in cards if card.exits], target, "with early exits: mean latency", "D",
                 "tab:green", "none")
    if front.sizes:
        _write_beside(axes, [(card, str(card.size)) for card in cards], target)
    _write_beside(axes, [(card, label(card.known)) for card in cards if card.known], target)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="x", which="both", labelsize=7, rotation=45)
    axes.set_ylabel("test accuracy (%)")
    axes.grid(alpha=0.3)


def _draw_points(axes: Any, cards: Sequence[Card], target: str, name: str, marker: str, colour: str,
                 fill: str) -> None:
    """Draws test accuracy over predicted cost, with standard errors."""
    if cards:
        axes.errorbar(*_places(cards, target), yerr=[100 * card.accuracy_se for card in cards], fmt=marker,
                      color=colour, mfc=fill, capsize=2, label=name)


def _draw_line(axes: Any, cards: Sequence[Card], target: str) -> None:
    """Joins networks by a line, from the fastest to the slowest."""
    axes.plot(*_places(sorted(cards, key=lambda card: card.ms[target]), target), color="tab:blue", alpha=0.4)


def _places(cards: Sequence[Card], target: str) -> tuple[list[float], list[float]]:
    """Returns predicted cost and test accuracy (%) of networks."""
    return [card.ms[target] for card in cards], [100 * card.accuracy for card in cards]


def _write_beside(axes: Any, words: Sequence[tuple[Card, str]], target: str) -> None:
    """Writes words beside the points of networks."""
    for card, text in words:
        axes.annotate(text, (card.ms[target], 100 * card.accuracy), xytext=(5, -10), textcoords="offset points",
                      fontsize=7, color="0.3")
