"""Compares the predicted milliseconds of ``nas sample`` with measurements that were made elsewhere."""

from __future__ import annotations

import csv
import datetime
import io
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nas.errors import UserError
from nas.latency import costs
from nas.latency.agreement import Agreement, agreement
from nas.latency.meta import Validation
from nas.latency.table import read_json

COLUMNS = ("id", "ms")


@dataclass(frozen=True)
class Validated(Agreement):
    """Says how well a target's predictions agree with measurements that were made elsewhere.

    ``not_measured`` is the number of networks that have none; ``table`` the file that this was noted in, if any.
    """

    not_measured: int
    table: Path | None = None


def validate(target: str, samples: Path, measured: Path, write: bool = False) -> Validated:
    """Compares predicted with measured milliseconds of networks by ``nas sample``.

    With ``write`` the figures become the newest validation in the table's meta (of a copy under ./latency_tables where
    the table is a shipped one). Raises UserError for every mistake in the files.
    """
    path = costs.find(target)
    predicted = _samples(samples)
    measurements = _measurements(measured, predicted, samples)
    pairs = np.array([(predicted[name], ms) for name, ms in measurements.items()])
    agreed = agreement(pairs[:, 0], pairs[:, 1])
    result = Validated(**vars(agreed), not_measured=len(predicted) - len(measurements))
    if not write:
        return result
    here = path if target.endswith(".json") or path.parent == costs.LOCAL else costs.LOCAL / path.name
    model = costs.read(path)
    model.meta.add_validation(Validation(**vars(agreed), not_measured=result.not_measured, measured=measured.name,
                                         date=datetime.date.today().isoformat()))
    model.save(here)
    return replace(result, table=here)


def _samples(path: Path) -> dict[str, float]:
    """Reads the predicted ms of ``nas sample`` by id."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; nas sample writes it")
    items = read_json(path, "nas sample")
    if not isinstance(items, list) or not items:
        raise UserError(f"{path}: expected the list that nas sample writes")
    predicted: dict[str, float] = {}
    for number, item in enumerate(items, 1):
        name, ms = (item.get("id"), item.get("ms")) if isinstance(item, dict) else (None, 0)
        if not isinstance(name, str):
            raise UserError(f"{path}: sample {number}: id {name!r} is no text")
        if name in predicted:
            raise UserError(f"{path}: sample {number}: id {name!r} is there twice")
        if isinstance(ms, bool) or not isinstance(ms, int | float) or not ms > 0:
            raise UserError(f"{path}: sample {number}: ms {ms!r} is not a number above 0")
        predicted[name] = float(ms)
    return predicted


def _measurements(path: Path, known: dict[str, float], samples: Path) -> dict[str, float]:
    """Reads measured ms by id; further columns are ignored."""
    rows = _rows(path)
    _, header = rows[0]
    for column in COLUMNS:
        if header.count(column) != 1:
            raise UserError(f"{path}: line 1: {','.join(header)!r}: expected the columns id and ms, each once")
    at = {column: header.index(column) for column in COLUMNS}
    measured: dict[str, float] = {}
    for line, row in rows[1:]:
        where = f"{path}: line {line}"
        if len(row) != len(header):
            raise UserError(f"{where}: {','.join(row)!r} has {len(row)} fields, line 1 has {len(header)}")
        name, text = row[at["id"]].strip(), row[at["ms"]].strip()
        if name not in known:
            raise UserError(f"{where}: id {name!r} is not in {samples}")
        if name in measured:
            raise UserError(f"{where}: id {name!r} is there twice")
        measured[name] = _ms(where, text)
    if not measured:
        raise UserError(f"{path}: no measurements below line 1")
    return measured


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Reads the lines of a CSV file that are not empty, with their numbers, the header first."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        reader = csv.reader(io.StringIO(text), strict=True)
        rows = [(reader.line_num, row) for row in reader if any(map(str.strip, row))]
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a CSV file in UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: {error}") from None
    if not rows:
        raise UserError(f"{path}: the file is empty")
    return [(rows[0][0], [name.strip() for name in rows[0][1]]), *rows[1:]]


def _ms(where: str, text: str) -> float:
    try:
        ms = float(text)
    except ValueError:
        ms = math.nan
    if not (0 < ms < math.inf):
        raise UserError(f"{where}: ms {text!r} is not a number above 0")
    return ms
