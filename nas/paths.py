"""Paths that settings name, made absolute where they are typed: a run is used from other folders later."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

BUILT_IN = ("digits", "cifar10")  # images by name; a folder of that name is written ./digits


def absolute(text: str) -> str:
    """Where a path leads from here, ``~`` and symbolic links followed; what is no path stays as it is."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # a loop of links, ~ of nobody, a NUL
        return str(Path(text).expanduser().resolve())
    return text


def images(name: str) -> str:
    """Of ``--data``: a built-in name, or the absolute path of a folder; what is neither is refused where it is read."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        if name and name not in BUILT_IN and (Path(name).expanduser().exists() or len(Path(name).parts) > 1):
            return absolute(name)
    return name


def target(name: str) -> str:
    """Of ``--target``: a device's name, or the absolute path of a table."""
    return absolute(name) if name.endswith(".json") else name


def space(name: str) -> str:
    """Of ``--space``: a shipped name, or the absolute path of a file, either with its ``@WIDTH``."""
    base, width = space_parts(name)
    shipped = base == Path(base).stem and not Path(base).is_file()
    return name if shipped else absolute(base) + (f"@{width}" if width else "")


def space_parts(name: str) -> tuple[str, str]:
    """``ghost@0.5`` -> (``ghost``, ``0.5``); folders and files may have an @ in their names, too."""
    base, _, width = name.rpartition("@")
    return (name, "") if not base or "/" in width or _is_file(name) else (base, width)


def located(key: str, value: Any) -> Any:
    """A setting whose paths lead where they led from the folder that they were typed in, one or a list of them."""
    if isinstance(value, list | tuple):
        return [_located(key, part) for part in value]
    return _located(key, value)


def _located(key: str, value: Any) -> Any:
    return _SETTINGS[key](value) if key in _SETTINGS and isinstance(value, str) and value else value


_SETTINGS: dict[str, Callable[[str], str]] = {
    "space": space, "target": target, "data": images, "data_dir": absolute, "init": absolute}


def _is_file(name: str) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return Path(name).is_file()
    return False
