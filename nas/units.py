"""Writes costs with their units: milliseconds on a device, or a count (``macs``, ``params``), the same on any device.

In files, figures of targets are objects keyed by target.
"""

from __future__ import annotations

import math
from pathlib import Path

COUNTS = {"macs": "M multiply-adds", "params": "M parameters"}  # target -> unit; the function of ``nas.plan`` counts it
BUDGETED = ("ms", *COUNTS.values())  # units in which budgets are given


def is_count(target: str) -> bool:
    """Tells whether a target is a count (``macs``, ``params``) and not a device."""
    return target in COUNTS


def unit(target: str) -> str:
    """Returns the unit of a target's costs and budgets, for example ``ms``."""
    return COUNTS.get(target, "ms")


def device(target: str) -> str:
    """Returns the name of a target for a title: the file's stem where the target is the path of a table."""
    return Path(target).stem if target.endswith(".json") else target


def amount(value: float, target: str) -> str:
    """Writes a cost with its unit: ``0.8 ms on cpu``, ``30 M multiply-adds``."""
    return f"{value:.4g} {unit(target)}" + ("" if is_count(target) else f" on {target}")


def axis(target: str, what: str = "predicted latency") -> str:
    """Writes the label of a plot's axis: ``predicted latency on cpu (ms)``, ``multiply-adds (M)``."""
    if not is_count(target):
        return f"{what} on {device(target)} (ms)"
    scale, _, counts = unit(target).partition(" ")
    return f"{'budget: ' if what == 'budget' else ''}{counts} ({scale})"


def column(what: str, target: str, several: bool) -> str:
    """Writes the title of a column of ``predicted``, ``measured`` or ``worst`` costs; names one of several targets."""
    if is_count(target):
        return unit(target) if what == "predicted" else f"{what} {unit(target)}"
    return f"{what} ms {device(target)}" if several else f"{what} ms"


def rounded_up(value: float, digits: int = 4) -> str:
    """Writes a number rounded up to ``digits``, so that a budget of what is shown can be met."""
    if value <= 0:
        return "0"
    step = 10.0 ** (math.floor(math.log10(value)) + 1 - digits)
    return f"{math.ceil(value / step) * step:.{digits}g}" if value < 10**digits else str(math.ceil(value))


def amount_rounded_up(value: float, target: str) -> str:
    """Writes a cost with its unit as ``amount`` does, rounded up, so that a budget of what is shown can be met."""
    return f"{rounded_up(value)} {unit(target)}" + ("" if is_count(target) else f" on {target}")


def power_of_ten(count: int) -> str:
    """Writes a count that may have hundreds of digits as ``10^12.3``."""
    return f"10^{math.log10(count):.1f}"


def millions(count: float | None) -> str:
    """Writes a count as ``12.3 M``, and a dash for None."""
    return "-" if count is None else f"{count / 1e6:.4g} M"
