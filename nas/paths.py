"""Makes the paths in settings absolute when they are typed, because a run is used from other folders later."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

BUILT_IN = ("cluttered", "digits", "cifar10")  # images by name; a folder of that name is written ./digits


def absolute(text: str) -> str:
    """Returns the absolute path, ``~`` and symbolic links followed; what is no path stays as it is."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # a loop of links, ~ of nobody, a NUL
        return str(Path(text).expanduser().resolve())
    return text


def images(name: str) -> str:
    """Makes the path of a folder of images absolute; built-in names, and what is neither, stay as they are."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        if name and name not in BUILT_IN and (Path(name).expanduser().exists() or len(Path(name).parts) > 1):
            return absolute(name)
    return name


def target(name: str) -> str:
    """Makes a target that is the path of a table (``.json``) absolute; other names stay as they are."""
    return absolute(name) if name.endswith(".json") else name


def space(name: str) -> str:
    """Makes a space that is the path of a file absolute; shipped names stay as they are, ``@WIDTH`` stays behind both.
    """
    base, width = space_parts(name)
    shipped = base == Path(base).stem and not Path(base).is_file()
    return name if shipped else absolute(base) + (f"@{width}" if width else "")


def space_parts(name: str) -> tuple[str, str]:
    """Splits ``ghost@0.5`` into (``ghost``, ``0.5``); an @ in the name of an existing file does not count."""
    base, _, width = name.rpartition("@")
    return (name, "") if not base or "/" in width or _is_file(name) else (base, width)


def located(key: str, value: Any) -> Any:
    """Makes the path, or each of the list of paths, that the setting ``key`` holds absolute; other settings stay."""
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
