"""Shipped files (search spaces, latency tables) and atomic writes."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from nas.errors import UserError

SETTING = {"search_spaces": "space"}  # what names a file of a kind
_PACKAGE = Path(__file__).resolve().parent


def folder(kind: str) -> Path:
    """``search_spaces`` or ``latency_tables``: inside ``nas/`` once installed, beside it in a checkout."""
    inside = _PACKAGE / kind
    return inside if inside.is_dir() else _PACKAGE.parent / kind


def shipped(kind: str, suffix: str) -> list[str]:
    """Names (stems) of the shipped files of a kind, sorted."""
    return sorted(p.stem for p in folder(kind).glob(f"*{suffix}"))


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the nearest known one and all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    guess = f"did you mean {close[0]!r}? " if close else ""
    return f"{guess}known: {', '.join(names) or 'none'}"


def resolve(kind: str, name: str, suffix: str) -> Path:
    """A bare name is a shipped file (of the kind, or of ``presets`` in it), anything else is a path as it stands.

    Raises UserError for a name that is not shipped and for a path that does not exist.
    """
    if name != Path(name).stem:
        if not Path(name).is_file():
            raise UserError(f"{name}: no such file")
        return Path(name)
    places = {found: part for part in (f"{kind}/presets", kind) for found in shipped(part, suffix)}
    if name not in places:
        raise UserError(f"no {name!r}; {nearest(name, places)}", key=SETTING.get(kind, kind))
    return folder(places[name]) / f"{name}{suffix}"


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Calls ``write(file)`` on a temporary neighbour, then renames it: readers see the old file or the new one."""
    with _of(path):
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
def _of(path: Path) -> Iterator[None]:
    """A full disk says nothing of the file, and a directory that may not be written names the temporary one."""
    try:
        yield
    except OSError as error:
        if error.filename is None or Path(error.filename).parent == path.parent:
            error.filename = str(path)
        raise


def copy(source: Path, path: Path) -> None:
    """Atomic ``shutil.copy``; one onto itself changes nothing."""
    content = source.read_bytes()
    write_atomic(path, lambda file: file.write(content))


def write_text(path: Path, text: str) -> None:
    """Atomic ``Path.write_text``."""
    write_atomic(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """Atomic, indented, keys as given; NaN and infinities are refused (they are not JSON)."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")
