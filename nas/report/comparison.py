"""The figure of a comparison of spaces, drawn with matplotlib."""

from __future__ import annotations

from typing import Any, BinaryIO

from nas.report.drawing import drawing, label, legend
from nas.run.records import ComparedSpace, Comparison
from nas.units import axis


def draw_comparison(result: Comparison, file: BinaryIO) -> None:
    """Writes the figure of a comparison as PNG.

    Left are all networks and each space's front, right mean and standard deviation at each budget.
    """
    (target,) = result.target
    with drawing(11, 4.8) as figure:
        networks, spread = figure.subplots(1, 2, sharey=True)
        for number, part in enumerate(result.spaces):
            colour = f"C{number}"
            _draw_networks(networks, part, target, colour)
            _draw_spread(spread, part, target, colour, number - (len(result.spaces) - 1) / 2)
        networks.set_title(f"random networks and their fronts, {result.networks} a budget", fontsize=10)
        networks.set_xlabel(label(axis(target), 80))
        networks.set_ylabel("test accuracy (%)")
        spread.set_title("mean and standard deviation over the networks of a budget", fontsize=10)
        spread.set_xlabel(label(axis(target, "budget"), 80))
        for axes in (networks, spread):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("{x:.3g}")
            axes.tick_params(axis="x", which="both", labelsize=7, rotation=45)
            axes.grid(alpha=0.3)
        legend(figure, (networks, spread))
        figure.savefig(file, format="png")


def _draw_networks(axes: Any, part: ComparedSpace, target: str, colour: str) -> None:
    """Draws accuracy over cost of a space's networks: filled and joined by a line those of its front."""
    for cards, fill in ((part.dominated, "none"), (part.front, colour)):
        axes.plot([card.ms[target] for card in cards], [100 * card.accuracy for card in cards], "o",
                  color=colour, mfc=fill,
                  label=f"{label(part.space)}: front (on the selection split)" if fill == colour else None)
    axes.plot([card.ms[target] for card in part.front], [100 * card.accuracy for card in part.front],
              color=colour, alpha=0.5)


def _draw_spread(axes: Any, part: ComparedSpace, target: str, colour: str, shift: float) -> None:
    """Draws mean and standard deviation of a space's accuracies at each budget.

    ``shift`` moves them sideways, so that those of several spaces do not hide each other.
    """
    rows = [row for row in part.budgets if row.mean is not None]
    axes.errorbar([row.budget_ms[target] * 1.015**shift for row in rows], [100 * (row.mean or 0.0) for row in rows],
                  yerr=[100 * (row.sd or 0.0) for row in rows], fmt="o-", color=colour, capsize=3,
                  label=label(part.space))
