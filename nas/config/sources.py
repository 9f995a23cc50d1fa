"""Reads settings as a user writes them, in flags, ``key=value`` texts and a file, into dotted keys and values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from nas.config.yaml import parsed
from nas.errors import UserError, setting
from nas.files import nearest


def from_flags(flags: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """Yields (key, value, what the user calls the setting) of every flag that was given; None means it was not."""
    for key, value in flags.items():
        if value is not None:
            yield key, value, setting(key)


def from_overrides(overrides: Sequence[str], kind: type[BaseModel]) -> Iterator[tuple[str, Any, str]]:
    """Yields (dotted key, value, the text) of each ``key=value`` text. Raises UserError naming it."""
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UserError(f"{text!r}: write key=value, for example train.lr=0.1")
        nested = parsed(value, text)
        for part in reversed(key.strip().split(".")):
            nested = {part: nested}
        yield from ((name, leaf, text) for name, leaf in _leaves(nested, kind, text))


def from_file(path: Path, kind: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) of every setting in a YAML file. Raises UserError naming file and key."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"{setting('config', path)}: cannot be read: {reason}") from None
    value = parsed(text, str(path))
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{path}: expected keys and values, got {type(value).__name__}")
    yield from _leaves(value or {}, kind, str(path))


def _leaves(value: dict[Any, Any], model: type[BaseModel], where: str, above: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) of every nested setting; raises UserError for a key that the models do not have."""
    for name, part in value.items():
        key = f"{above}{name}"
        field = model.model_fields.get(str(name))
        if field is None:
            known = [f"{above}{known}" for known in model.model_fields]
            raise UserError(f"{where}: {key}: unknown key; {nearest(key, known)}")
        inner = field.annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            yield key, part
        elif isinstance(part, dict):
            yield from _leaves(part, inner, where, f"{key}.")
        else:
            raise UserError(f"{where}: {key}: expected {', '.join(inner.model_fields)}, got {part!r}")
