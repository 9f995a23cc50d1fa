"""What a target's costs are counted in: milliseconds of a device, or a count that a network has on any device."""

from __future__ import annotations

COUNTS = {"macs": "M multiply-adds", "params": "M parameters"}  # target -> unit; the function of ``nas.plan`` counts it


def counted(target: str) -> bool:
    """Whether a target is a count, which nothing measures."""
    return target in COUNTS


def unit(target: str) -> str:
    """Of the costs and of the budgets of a target."""
    return COUNTS.get(target, "ms")


def amount(value: float, target: str) -> str:
    """``0.8 ms on cpu``, ``30 M multiply-adds``."""
    return f"{value:.4g} {unit(target)}" + ("" if counted(target) else f" on {target}")


def quantity(target: str) -> str:
    """What an axis shows: ``predicted latency on cpu (ms)``, ``multiply-adds (M)``."""
    scale, _, what = unit(target).partition(" ")
    return f"{what} ({scale})" if counted(target) else f"predicted latency on {target} (ms)"
