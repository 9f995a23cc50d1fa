"""Reads, writes and interpolates a latency table: measured rows of one device, runtime, precision and batch.

Hidden widths are measured at knots and interpolated linearly between, after isotonic smoothing. Vector units make the
cost a saw-tooth in the width (64 channels can be faster than 56), so widths are interpolated only among those of the
same alignment, ``gcd(hidden, align)``; ``align`` is in the table's meta. Heads are interpolated in the classes.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError
from scipy.optimize import isotonic_regression

from nas.arch import Op
from nas.errors import UserError, call, setting
from nas.files import folder, parse_json, write_text
from nas.latency.base import Costs
from nas.latency.meta import Meta, checked_meta
from nas.ops.user_files import hashes
from nas.plan import OpKey
from nas.record import Record
from nas.space import first_mistake

CLASSES = (2, 10, 100, 1000)  # numbers of classes at which heads are measured
HEADS = ("head", "exit_head")  # families whose output channels are classes
Group = tuple[Op, int, int, int, int, int]
Axis = tuple[Group, int]


class Row(Record):
    """Holds one operator at one shape: ``ms`` after the correction, ``raw_ms`` and percentiles before it."""

    op: str
    in_ch: int = Field(ge=1)
    out_ch: int = Field(ge=1)
    stride: int = Field(ge=1)
    size: int = Field(ge=1)
    hidden: int | None = Field(ge=0)
    ms: float = Field(gt=0)
    raw_ms: float = Field(gt=0)
    p10_ms: float = Field(ge=0)
    p90_ms: float = Field(ge=0)
    n: int = Field(ge=1)
    how: Literal["measured", "solved", "flagged", "compiled"]

    @staticmethod
    def of(key: OpKey, **measured: Any) -> Row:
        hidden = key.op.get("hidden")
        return Row(op=str(key.op.without("hidden")), in_ch=key.in_ch, out_ch=key.out_ch, stride=key.stride,
                   size=key.size, hidden=hidden if isinstance(hidden, int) else None, **measured)

    @property
    def key(self) -> OpKey:
        op = Op.parse(self.op)
        full = op if self.hidden is None else op.with_knobs(hidden=self.hidden)
        return OpKey(full, self.in_ch, self.out_ch, self.stride, self.size)

    @property
    def order(self) -> tuple[str, int, int, int, int, int]:
        return self.op, self.in_ch, self.out_ch, self.stride, self.size, self.hidden or 0


class LatencyTable(Costs):
    """Holds measured or compiled milliseconds; ``rows`` is by operator and shape: change it through ``add``."""

    kind = "table"
    grows = True

    def __init__(self, name: str, meta: Meta, rows: Iterable[Row] = (), path: Path | None = None) -> None:
        self.name, self.meta, self.path = name, meta, path
        self.rows: dict[OpKey, Row] = {row.key: row for row in rows}
        self._curves: dict[Group, tuple[np.ndarray, np.ndarray]] | None = None

    @property
    def align(self) -> int:
        return self.meta.align

    @property
    def row_count(self) -> int:
        return len(self.rows)

    @staticmethod
    def load(path: Path) -> LatencyTable:
        """Reads a table. Raises UserError, one line with file and row, for anything but a whole and sound table."""
        return LatencyTable.checked(read_json(path), path)

    @staticmethod
    def checked(file: Any, path: Path) -> LatencyTable:
        """Returns the table that a file's content is. Raises UserError as ``load``."""
        value = check_format(file, path)
        if not isinstance(value, dict) or set(value) != {"kind", "meta", "name", "rows"} or value["kind"] != "table":
            raise UserError(f"{path}: not a latency table: expected the keys kind (\"table\"), name, meta and rows")
        name, rows = value["name"], value["rows"]
        if not isinstance(name, str) or not isinstance(rows, list):
            raise UserError(f"{path}: name must be a text and rows a list")
        table = LatencyTable(name, checked_meta(value["meta"], path), path=path)
        for number, item in enumerate(rows, 1):
            row = _row(item, f"{path}: row {number}")
            if row.key in table.rows:
                raise UserError(f"{path}: row {number}: {row.key} is there twice")
            table.rows[row.key] = row
        table.remove(table.outdated())
        return table

    def save(self, path: Path) -> None:
        """Writes the table atomically; keys and rows sorted, one row a line."""
        rows = sorted(self.rows.values(), key=lambda row: row.order)
        lines = ",\n".join(json.dumps(row.model_dump(), sort_keys=True, allow_nan=False) for row in rows)
        meta = json.dumps(self.meta.to_json(), sort_keys=True, indent=1, allow_nan=False)
        head = f'{{"kind": "table",\n"meta": {meta},\n"name": {json.dumps(self.name)},\n"rows": ['
        write_text(path, f"{head}\n{lines}\n]}}\n")

    def add(self, rows: Iterable[Row]) -> None:
        """Adds rows, in place of those with the same key."""
        self.rows.update((row.key, row) for row in rows)
        self._curves = None

    def remove(self, keys: Iterable[OpKey]) -> None:
        """Removes the rows of these keys, where there are any."""
        for key in keys:
            self.rows.pop(key, None)
        self._curves = None

    def outdated(self) -> list[OpKey]:
        """Lists rows of operators of the user that were measured with other code than is loaded: they are useless."""
        measured, now = self.meta.own_operators, hashes(key.op.name for key in self.rows)
        return [key for key in self.rows if key.op.name in now and measured.get(key.op.name) != now[key.op.name]]

    def ms(self, key: OpKey) -> float:
        """Returns the ms of an operator, interpolated between rows.

        Raises UserError for an operator, shape or width that the table does not cover: it guesses nothing.
        """
        group, position = axis(key, self.align)
        curve = self._all_curves().get(group)
        if curve is None or not curve[0][0] <= position <= curve[0][-1]:
            raise self.unknown(key, "SPACE", "SIZE")
        return float(np.interp(position, *curve))

    def unknown(self, key: OpKey, space: str, size: int | str) -> UserError:
        group, _ = axis(key, self.align)
        curve = self._all_curves().get(group)
        between = "" if curve is None else f" (measured from {curve[0][0]} to {curve[0][-1]} only)"
        return UserError(f"{key}: not in the table {self.path or self.name}{between}; "
                         f"{self.advice(space, size, key.is_exit)}")

    def advice(self, space: str | list[str], size: int | str, exits: bool = False, here: bool = False) -> str:
        """Returns the command that adds rows: a measured table grows on the machine that it was measured on."""
        processor = self.meta.processor
        command = f"run: {self.command(space, size, exits)}"
        if here or processor is None or not self._is_timed or self.path is None:
            return command
        return (f"where it was measured, on {processor}, {command}; to measure this machine, for "
                f"{setting('target', self._usual_path.stem)}: {self._profiling(space, size, exits)}")

    def command(self, space: str | list[str], size: int | str, exits: bool = False) -> str:
        """Returns the command that measures the rows that spaces lack, under the conditions of those that are there."""
        path = self.path.resolve() if self.path else self._usual_path.resolve()
        shipped = path.parent == folder("latency_tables").resolve()
        out = Path("latency_tables", path.name) if shipped else self.path
        usual = path.name == self._usual_path.name if shipped else path == self._usual_path.resolve()
        return self._profiling(space, size, exits, None if usual else str(out))

    @property
    def _is_timed(self) -> bool:
        """Tells whether the rows are timed on a CPU or GPU, as this machine may have one."""
        return self.meta.device.startswith(("cpu", "gpu"))

    @property
    def _chosen(self) -> tuple[str | None, int, int]:
        """Returns precision, threads and batch of ``nas profile`` for rows like these; None: its usual precision."""
        asked = self._is_timed and self.meta.precision != "fp32"  # an NPU has one precision, so it is not asked for
        precision = self.meta.precision if asked else None
        return precision, self.meta.threads or 1, self.meta.batch or 1

    @property
    def _usual_path(self) -> Path:
        """Returns the file that ``nas profile`` fills under these conditions."""
        return Path("latency_tables", file_name(self.meta.device, *self._chosen))

    def _profiling(self, space: str | list[str], size: int | str, exits: bool, out: str | None = None) -> str:
        board = ".ini" if self.meta.vela_ini else ""  # a board is named by its file
        precision, threads, batch = self._chosen
        return call("profile", device=f"{self.meta.device}{board}", precision=precision,
                    threads=None if threads == 1 else threads, batch=None if batch == 1 else batch,
                    space=space, size=size, out=out, exits=exits or None)

    def covers(self, key: OpKey) -> bool:
        group, position = axis(key, self.align)
        curve = self._all_curves().get(group)
        return curve is not None and bool(curve[0][0] <= position <= curve[0][-1])

    def missing(self, keys: Iterable[OpKey]) -> list[OpKey]:
        """Lists the knots that have no row and are needed to cover every key, in the order of the keys."""
        groups: dict[OpKey, list[OpKey]] = defaultdict(list)
        for key in keys:
            groups[_branch(key)].append(key)
        return [knot for group in groups.values() for knot in knots(group, self.align) if knot not in self.rows]

    def _all_curves(self) -> dict[Group, tuple[np.ndarray, np.ndarray]]:
        if self._curves is None:
            points: dict[Group, list[tuple[int, float]]] = defaultdict(list)
            for key, row in self.rows.items():
                group, position = axis(key, self.align)
                points[group].append((position, row.ms))
            self._curves = {group: _curve(sorted(p)) for group, p in points.items()}
        return self._curves


def file_name(device: str, precision: str | None = None, threads: int = 1, batch: int = 1) -> str:
    """Returns a table's file name: ``cpu.json`` for fp32, batch 1 and one thread, else such as ``cpu-int8-b8-t2.json``.
    """
    name = device if precision in (None, "fp32") else f"{device}-{precision}"
    return f"{name}.json" if (threads, batch) == (1, 1) else f"{name}-b{batch}-t{threads}.json"


def axis(key: OpKey, align: int) -> Axis:
    """Returns the curve on which a key is interpolated, and its position: classes of a head, hidden width of a branch.
    """
    if key.op.name in HEADS:
        return (key.op, key.in_ch, 0, key.stride, key.size, 0), key.out_ch
    hidden = key.op.get("hidden")
    if not isinstance(hidden, int):
        return (key.op, key.in_ch, key.out_ch, key.stride, key.size, 0), 0
    lane = math.gcd(hidden, align)
    return (key.op.without("hidden"), key.in_ch, key.out_ch, key.stride, key.size, lane), hidden


def knots(keys: list[OpKey], align: int) -> list[OpKey]:
    """Chooses which keys of one branch and shape are measured (for a head: numbers of classes that span them)."""
    first = keys[0]
    if first.op.name in HEADS:
        classes = sorted({*CLASSES, *(key.out_ch for key in keys if not 2 <= key.out_ch <= CLASSES[-1])})
        return [OpKey(first.op, first.in_ch, n, first.stride, first.size) for n in classes]
    by_width = {width: key for key in keys if isinstance(width := key.op.get("hidden"), int)}
    return [by_width[width] for width in knot_widths(list(by_width), align)] or [first]


def knot_widths(widths: list[int], align: int) -> list[int]:
    """Chooses hidden widths to measure: both ends of each alignment, one or two between, at least 5 (or all)."""
    lanes: dict[int, list[int]] = defaultdict(list)
    for width in sorted(widths):
        lanes[math.gcd(width, align)].append(width)
    chosen = {width for lane in lanes.values() for width in _spread(lane, min(4, 2 + len(lane) // 8))}
    rest = [width for width in sorted(widths) if width not in chosen]
    return sorted(chosen | set(_spread(rest, 5 - len(chosen))))


def read_json(path: Path, maker: str = "nas profile") -> Any:
    """Reads JSON without NaN and infinities, as the command ``maker`` writes it.

    Raises UserError naming the file and what is wrong with it.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if not text.strip():
            raise ValueError("the file is empty")
        return parse_json(text)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read: {reason}; delete it and run {maker} to make it anew") from None


def check_format(value: Any, path: Path) -> Any:
    """Returns the content of a table or kernel model unchanged. Raises UserError if it states a format: ours do not."""
    if isinstance(value, dict) and "format" in value:
        raise UserError(f"{path}: format {value['format']!r}, of another version of nas: use that, or make it anew")
    return value


def _row(value: Any, where: str) -> Row:
    try:
        row = Row.model_validate(value)
        if str(row.key.op.without("hidden")) != row.op:
            raise UserError(f"op {row.op!r}: write it as {str(row.key.op.without('hidden'))!r}")
        return row
    except ValidationError as error:
        raise UserError(f"{where}: {first_mistake(error)}") from None
    except UserError as error:
        raise UserError(f"{where}: {' '.join(str(error).split())}") from None


def _branch(key: OpKey) -> OpKey:
    if key.op.name in HEADS:
        return OpKey(key.op, key.in_ch, 0, key.stride, key.size)
    return OpKey(key.op.without("hidden"), key.in_ch, key.out_ch, key.stride, key.size)


def _curve(points: list[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    positions, values = zip(*points, strict=True)
    return np.array(positions), np.asarray(isotonic_regression(np.array(values)).x)


def _spread(values: list[int], n: int) -> list[int]:
    """Returns ``n`` of the values, evenly spread, ends included."""
    if n <= 0 or not values:
        return []
    return [values[round(i)] for i in np.linspace(0, len(values) - 1, min(n, len(values)))]
