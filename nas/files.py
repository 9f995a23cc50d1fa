"""Finds shipped files, writes so that no reader sees half of one, reads strict JSON, and locks."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import fcntl
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from nas.errors import UserError, setting

SETTING = {"search_spaces": "space"}  # kind of file -> the setting that names one
_PACKAGE = Path(__file__).resolve().parent


def folder(kind: str) -> Path:
    """Returns the folder ``search_spaces`` or ``latency_tables``: in ``nas/`` once installed, beside it in a checkout.
    """
    inside = _PACKAGE / kind
    return inside if inside.is_dir() else _PACKAGE.parent / kind


def shipped(kind: str, suffix: str) -> list[str]:
    """Lists the names (stems) of the shipped files of a kind, sorted."""
    return sorted(p.stem for p in folder(kind).glob(f"*{suffix}"))


def nearest(name: str, known: Iterable[str]) -> str:
    """Writes the end of an error message about an unknown name: the nearest known one and all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    guess = f"did you mean {close[0]!r}? " if close else ""
    return f"{guess}known: {', '.join(names) or 'none'}"


def resolve(kind: str, name: str, suffix: str) -> Path:
    """Returns the path of a file by name: a bare name is shipped (of the kind or its ``presets``), else it is a path.

    Raises UserError for a name that is not shipped and for a path that does not exist.
    """
    if name != Path(name).stem:
        if not Path(name).is_file():
            raise UserError(f"{name}: no such file")
        return Path(name)
    places = {stem: part for part in (f"{kind}/presets", kind) for stem in shipped(part, suffix)}
    if name not in places:
        raise UserError(f"{setting(SETTING.get(kind, kind))}: no {name!r}; {nearest(name, places)}")
    return folder(places[name]) / f"{name}{suffix}"


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Calls ``write(file)`` on a temporary neighbour, then renames it: readers see the old file or the new one."""
    with _errors_name(path):
        _write(path, write)


def _write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    """Makes OSErrors name ``path``: a full disk names no file, and an unwritable directory the temporary one."""
    try:
        yield
    except OSError as error:
        if error.filename is None or Path(error.filename).parent == path.parent:
            error.filename = str(path)
        raise


def copy(source: Path, path: Path) -> None:
    """Copies a file atomically; one onto itself changes nothing."""
    content = source.read_bytes()
    write_atomic(path, lambda file: file.write(content))


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically, in UTF-8."""
    write_atomic(path, lambda file: file.write(text.encode()))


def plain(record: Any) -> Any:
    """Returns what JSON writes for an object that it has no word for: a record's fields, a path as text.

    Raises TypeError for what is neither.
    """
    if isinstance(record, Path):
        return str(record)
    if hasattr(record, "to_json"):
        return record.to_json()
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON atomically, keys as given; raises ValueError for NaN and infinities (they are not JSON)."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False, default=plain) + "\n")


def parse_json(text: str | bytes) -> Any:
    """Returns the value of a JSON text. Raises ValueError for what is not JSON, as NaN and infinities are not."""
    def refuse(number: str) -> float:
        raise ValueError(f"{number} is not a number")

    def finite(number: str) -> float:
        return float(number) if math.isfinite(float(number)) else refuse(number)

    return json.loads(text, parse_constant=refuse, parse_float=finite)


class Locked(Exception):
    """Is raised where another process holds a lock; its text says which."""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock file, which names this process, to the end of the block or of the process. Raises ``Locked``."""
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise Locked(f"process {file.read().strip() or 'unknown'}") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
