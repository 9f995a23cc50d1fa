"""What a target's costs are counted in: milliseconds of a device, or a count that a network has on any device.

In files, figures of targets are objects keyed by target.
"""

from __future__ import annotations

import math
from pathlib import Path

COUNTS = {"macs": "M multiply-adds", "params": "M parameters"}  # target -> unit; the function of ``nas.plan`` counts it
BUDGETED = ("ms", *COUNTS.values())  # units of what budgets are of


def counted(target: str) -> bool:
    """Whether a target is a count, which nothing measures."""
    return target in COUNTS


def unit(target: str) -> str:
    """Of the costs and of the budgets of a target."""
    return COUNTS.get(target, "ms")


def device(target: str) -> str:
    """What a target is called in a title: a table of the user's own is named by its path."""
    return Path(target).stem if target.endswith(".json") else target


def amount(value: float, target: str) -> str:
    """``0.8 ms on cpu``, ``30 M multiply-adds``."""
    return f"{value:.4g} {unit(target)}" + ("" if counted(target) else f" on {target}")


def axis(target: str, what: str = "predicted latency") -> str:
    """The label of an axis: ``predicted latency on cpu (ms)``, ``multiply-adds (M)``."""
    if not counted(target):
        return f"{what} on {device(target)} (ms)"
    scale, _, counts = unit(target).partition(" ")
    return f"{'budget: ' if what == 'budget' else ''}{counts} ({scale})"


def column(what: str, target: str, several: bool) -> str:
    """The title of a column of ``predicted``, ``measured`` or ``worst`` costs, with the target where there are several.
    """
    if counted(target):
        return unit(target) if what == "predicted" else f"{what} {unit(target)}"
    return f"{what} ms {device(target)}" if several else f"{what} ms"


def at_least(value: float, digits: int = 4) -> str:
    """Rounded up, so that the number shown can be met."""
    if value <= 0:
        return "0"
    step = 10.0 ** (math.floor(math.log10(value)) + 1 - digits)
    return f"{math.ceil(value / step) * step:.{digits}g}" if value < 10**digits else str(math.ceil(value))


def least(value: float, target: str) -> str:
    """As ``amount``, rounded up."""
    return f"{at_least(value)} {unit(target)}" + ("" if counted(target) else f" on {target}")


def millions(count: float | None) -> str:
    """A count as ``12.3 M``; nothing known is a dash."""
    return "-" if count is None else f"{count / 1e6:.4g} M"
