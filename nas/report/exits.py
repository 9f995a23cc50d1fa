"""Draws, with matplotlib, what a network with early exits does with held-out images; one function a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.patches import Rectangle

from nas.exits import policy
from nas.exits.thresholds import Point, Policy
from nas.report.drawing import drawing, label, legend

Array = np.ndarray[Any, Any]
EXAMPLES, COLUMNS = 24, 12  # images that leave first, and last, and of them in a row
LINE, GAP = 1.22, 0.04  # height of a row of examples, and the margin of an image in its square of side 1
MOST_CLASSES = 30  # bars of their own


@dataclass(frozen=True)
class HeldOut:
    """Holds what a network with exits answers on held-out images.

    ``confidence`` and ``right`` are [exits, n]: how sure each exit is of each image, by the policy's measure, and
    whether its answer is right. ``labels`` are [n], ``images`` uint8 [n, C, S, S]; ``without`` is the accuracy without
    exits, ``chosen`` accuracy and latency at the thresholds of the policy.
    """

    policy: Policy
    confidence: Array
    right: Array
    labels: Array
    classes: tuple[str, ...]
    images: torch.Tensor
    without: float
    chosen: Point

    @property
    def leaves_at(self) -> Array:
        """Returns the number of the exit at which each image leaves, [n]."""
        return policy.leaving(self.confidence, self.policy.point.thresholds)


def draw_curve(held_out: HeldOut, file: BinaryIO) -> None:
    """Writes, as PNG, the accuracy over the mean latency: as thresholds change, and with every image at one exit.

    The literature calls the first budgeted batch, the second anytime prediction.
    """
    ms, n = np.array(held_out.policy.prefix_ms), len(held_out.labels)
    points = sorted({policy.outcome(held_out.confidence, held_out.right, p.thresholds, ms)
                     for p in held_out.policy.points}, key=lambda point: point.mean_ms)
    with drawing(6.4, 5.0) as figure:
        axes = figure.add_subplot()
        axes.plot([p.mean_ms for p in points], [100 * p.accuracy for p in points], "o-", ms=4, color="tab:blue",
                  label="budgeted batch: thresholds for a mean latency")
        axes.plot(ms, 100 * held_out.right.mean(1), "s--", ms=5, color="tab:orange",
                  label="anytime: all images leave at one exit")
        chosen = held_out.chosen
        axes.plot(chosen.mean_ms, 100 * chosen.accuracy, "*", ms=14, color="tab:green", zorder=3,
                  label=f"as shipped: {chosen.mean_ms:.3g} ms, {100 * chosen.accuracy:.1f} %")
        axes.axhline(100 * held_out.without, color="0.5", lw=1, ls=":",
                     label=f"without exits: {100 * held_out.without:.1f} %")
        axes.set_xlabel("predicted mean latency (ms)")
        axes.set_ylabel(f"accuracy on {n} held-out images (%)")
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
        legend(figure, (axes,), 1)
        figure.savefig(file, format="png")


def draw_shares(held_out: HeldOut, file: BinaryIO) -> None:
    """Writes, as PNG, which share of each class's images leaves at each exit; classes that leave late are below."""
    at, exits = held_out.leaves_at, len(held_out.confidence)
    present = [c for c in range(len(held_out.classes)) if (held_out.labels == c).any()]
    shares = np.array([np.bincount(at[held_out.labels == c], minlength=exits) / (held_out.labels == c).sum()
                       for c in present])
    order = np.argsort(shares @ np.arange(exits), kind="stable")
    if len(order) > MOST_CLASSES:
        order = np.r_[order[:MOST_CLASSES // 2], order[-MOST_CLASSES // 2:]]
    with drawing(6.4, 1.4 + 0.24 * len(order)) as figure:
        axes = figure.add_subplot()
        start = np.zeros(len(order))
        for index in range(exits):
            leaving = shares[order, index]
            name = "head" if index == exits - 1 else f"exit {index}"
            total = float((at == index).mean())
            axes.barh(range(len(order)), 100 * leaving, left=100 * start, height=0.8, color=_colour(index, exits),
                      label=f"{name}: {100 * total:.0f} %")
            start = start + leaving
        axes.set_yticks(range(len(order)), [label(held_out.classes[present[i]], 24) for i in order], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel(f"images of the class (%), {len(at)} held out")
        figure.legend(loc="outside upper center", ncols=min(exits, 5), fontsize=8)
        figure.savefig(file, format="png")


def draw_examples(held_out: HeldOut, file: BinaryIO) -> None:
    """Writes, as PNG, the images that the first exit is surest of, and those that it is least sure of.

    The second are of the images that leave last. A red frame says that the answer is wrong.
    """
    at, sure = held_out.leaves_at, held_out.confidence[0]
    rows = []
    for exit_, sign in ((int(at.min()), -1), (int(at.max()), 1)):
        images = np.flatnonzero(at == exit_)
        rows.append((exit_, images[np.argsort(sign * sure[images], kind="stable")][:EXAMPLES]))
    lines = [-(-len(images) // COLUMNS) for _, images in rows]
    with drawing(COLUMNS * 0.8, 0.98 * sum(lines) + 0.9) as figure:
        parts = figure.subfigures(len(rows), 1, height_ratios=[count + 0.4 for count in lines], squeeze=False)[:, 0]
        for part, (exit_, images), count in zip(parts, rows, lines, strict=True):
            which = "the head" if exit_ == len(held_out.confidence) - 1 else f"exit {exit_}"
            part.suptitle(f"leave at {which} ({100 * (at == exit_).mean():.0f} % of all)", fontsize=10)
            _draw_rows(part.add_subplot(), count, held_out, images, exit_)
        figure.savefig(file, format="png")


def _draw_rows(axes: Any, lines: int, held_out: HeldOut, images: Array, exit_: int) -> None:
    """Draws images in rows, each in a square of side 1 below its class; on one axes, as making one for each is slow.

    Where the answer of ``exit_`` is wrong the class is red and the image has a frame.
    """
    for place, image in enumerate(images):
        left, top = place % COLUMNS, LINE * (place // COLUMNS) + LINE - 1
        pixels, wrong = held_out.images[image].permute(1, 2, 0).numpy(), not held_out.right[exit_, image]
        axes.imshow(pixels, interpolation="nearest", extent=(left + GAP, left + 1 - GAP, top + 1 - GAP, top + GAP))
        axes.text(left + 0.5, top, label(held_out.classes[int(held_out.labels[image])], 12), fontsize=7, ha="center",
                  va="bottom", color="tab:red" if wrong else "black")
        if wrong:
            side = 1 - 2 * GAP
            axes.add_patch(Rectangle((left + GAP, top + GAP), side, side, fill=False, edgecolor="tab:red", lw=3))
    axes.set(xlim=(0, COLUMNS), ylim=(LINE * lines, 0), aspect="equal")
    axes.set_axis_off()


def _colour(index: int, exits: int) -> Any:
    """Returns the colour of an exit, from dark for the first to light for the last."""
    return colormaps["viridis"](0.15 + 0.75 * index / max(1, exits - 1))
