"""Finds, reads and lists the cost models of targets."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from nas.errors import UserError, call, setting
from nas.files import folder, nearest
from nas.latency.base import Costs
from nas.latency.counts import Count
from nas.latency.kernel_model import KernelModel
from nas.latency.table import LatencyTable, check_format, read_json
from nas.record import Record
from nas.units import COUNTS, is_count

LOCAL = Path("latency_tables")  # tables of the user, which come before the shipped ones


class KnownTarget(Record):
    """Describes a target: what it is, how its figures came about, and how far off they were when they were checked."""

    name: str
    kind: str | None = None
    device: str | None = None
    processor: str | None = None
    runtime: str | None = None
    runtime_version: str | None = None
    precision: str | None = None
    batch: int | None = None
    threads: int | None = None
    method: str | None = None
    date: str | None = None
    rows: int | None = None
    checked: str | None = None
    busy: str | None = Field(default=None, description="where it was made on a busy machine")
    unit: str | None = Field(default=None, description="of a count")
    file: str | None = None
    error: str | None = Field(default=None, description="why the file cannot be used")


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
    if is_count(target):
        return Count(target)
    return read(find(target))


def read(path: Path) -> LatencyTable | KernelModel:
    """Reads a file of costs. Raises UserError, one line with file and key, for one that is not sound."""
    file = check_format(read_json(path), path)
    kind = file.get("kind") if isinstance(file, dict) else None
    if kind == LatencyTable.kind:
        return LatencyTable.checked(file, path)
    if kind == KernelModel.kind:
        return KernelModel.load(path)
    raise UserError(f"{path}: kind: expected \"table\" or \"kernel-model\", got {kind!r}")


def targets() -> list[KnownTarget]:
    """Describes every target, for ``nas targets``; a file that cannot be used has ``error`` instead of the figures."""
    counts = [KnownTarget(name=name, kind=Count.kind, device="any", unit=unit, method=f"{unit}, counted")
              for name, unit in COUNTS.items()]
    return [*(_describe(name, path) for name, path in sorted(known().items())), *counts]


def known() -> dict[str, Path]:
    """Returns the files of all targets by name; those of the user hide shipped ones of the same name."""
    return {path.stem: path for place in (folder("latency_tables"), LOCAL) for path in sorted(place.glob("*.json"))}


def _describe(name: str, path: Path) -> KnownTarget:
    try:
        costs = load(str(path))
    except UserError as error:
        return KnownTarget(name=name, file=str(path), error=str(error))
    meta = costs.meta
    return KnownTarget(
        name=name, kind=costs.kind, device=meta.device, processor=meta.processor, runtime=meta.runtime,
        runtime_version=meta.runtime_version, precision=meta.precision, batch=meta.batch, threads=meta.threads,
        method=meta.method, date=meta.date, rows=costs.row_count, checked=meta.checked, busy=meta.busy, file=str(path))
