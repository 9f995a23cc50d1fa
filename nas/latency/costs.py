"""Finds, reads and lists the cost models of targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nas.errors import UserError, call, setting
from nas.files import folder, nearest
from nas.latency.base import Costs
from nas.latency.counts import Count
from nas.latency.kernel_model import KernelModel
from nas.latency.load import busy_text
from nas.latency.table import LatencyTable, of_this_format, read_json
from nas.units import COUNTS, counted

LOCAL = Path("latency_tables")  # tables of the user, which come before the shipped ones
FIELDS = ("device", "processor", "runtime", "runtime_version", "precision", "batch", "threads", "method", "date")


def find(target: str) -> Path:
    """Returns the file of a target: a path as it stands, else ``./latency_tables/TARGET.json``, else the shipped one.

    Raises UserError that lists the known targets and the command that makes a new one.
    """
    if target.endswith(".json"):
        if not Path(target).is_file():
            raise UserError(f"{setting('target', target)}: no such file")
        return Path(target)
    files = known()
    if target not in files:
        from nas.latency.devices.board import TARGETS

        if target in TARGETS:
            how = f"to compile for it: {call('profile', device=target, space='SPACE')}"
        else:
            device, precision = "gpu" if target.startswith("gpu") else "cpu", "int8" if "int8" in target else None
            how = f"to measure this machine: {call('profile', device=device, precision=precision, space='SPACE')}"
        raise UserError(f"{setting('target', target)}: {nearest(target, (*files, *COUNTS))}; {how}")
    return files[target]


def load(target: str) -> Costs:
    """Reads the costs of a target. Raises UserError for an unknown target and for a file that is not sound."""
    if counted(target):
        return Count(target)
    path = find(target)
    value = of_this_format(read_json(path), path)
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind == LatencyTable.kind:
        return LatencyTable.load(path)
    if kind == KernelModel.kind:
        return KernelModel.load(path)
    raise UserError(f"{path}: kind: expected \"table\" or \"kernel-model\", got {kind!r}")


def targets() -> list[dict[str, Any]]:
    """Describes every target, for ``nas targets``; a file that cannot be used has ``error`` instead of the figures."""
    counts = [{"name": name, "kind": "count", "device": "any", "unit": unit, "method": f"{unit}, counted"}
              for name, unit in COUNTS.items()]
    return [*(_describe(name, path) for name, path in sorted(known().items())), *counts]


def known() -> dict[str, Path]:
    """Returns the files of all targets by name; those of the user hide shipped ones of the same name."""
    return {path.stem: path for place in (folder("latency_tables"), LOCAL) for path in sorted(place.glob("*.json"))}


def _describe(name: str, path: Path) -> dict[str, Any]:
    try:
        costs = load(str(path))
    except UserError as error:
        return {"name": name, "file": str(path), "error": str(error)}
    return {"name": name, "kind": costs.kind, **{key: costs.meta.get(key) for key in FIELDS}, "rows": costs.row_count,
            "checked": _checked(costs.meta), "busy": busy_text(costs.meta), "file": str(path)}


def _checked(meta: dict[str, Any]) -> str | None:
    """Says how far predictions were off when they were last compared with measurements; None where that is unknown."""
    try:
        if last := meta.get("validation"):
            noise = f", noise {last['noise_mape']:.1%}" if "noise_mape" in last else ""
            where = f" ({last['space']} at {last['size']})" if "space" in last else ""
            return f"{last['mape']:.1%} off over {last['n']} networks{where}{noise}"
        return f"{meta['held_out']['groups']['mape_%']:.1f}% off over held-out kernels"
    except (KeyError, TypeError, ValueError):
        return None
