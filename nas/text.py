"""Makes text from files (names of classes, nodes, paths) safe to show: no markup, no control codes. Writes durations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_MARKDOWN = re.compile(r"[\\`*\[\]<>|~&#]|(?<!\w)_|_(?!\w)")


def printable(text: str, encoding: str | None = "utf-8") -> str:
    """Escapes, as ``\\xNN`` or ``\\uNNNN``, characters that are not visible or that the encoding lacks.

    So a name can neither begin a new line, nor move a terminal's cursor, nor hide.
    """
    try:
        "".encode(encoding or "utf-8")
    except LookupError:
        encoding = "ascii"
    return "".join(char if char.isprintable() and _fits(char, encoding or "utf-8")
                   else char.encode("unicode_escape").decode() for char in text)


def markdown(text: str) -> str:
    """Escapes what a Markdown table would read as markup."""
    return _MARKDOWN.sub(lambda sign: f"\\{sign[0]}", printable(text))


def _fits(char: str, encoding: str) -> bool:
    if char.isascii():
        return True
    try:
        char.encode(encoding)
    except UnicodeError:
        return False
    return True


def duration(seconds: float) -> str:
    """Writes a time as ``8 s``, ``3 min`` or ``2 h 05 min``."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def took(seconds: Mapping[str, float]) -> str:
    """Writes where time went: ``took 12 min in all: supernet warmup 3 min, selection 60 s, ...``.

    ``seconds`` are those of ``nas.run.timeline.spent``: by phase, and in ``total``.
    """
    parts = [f"{name} {duration(value)}" for name, value in seconds.items() if name != "total" and value >= 0.5]
    return f"took {duration(seconds['total'])} in all" + (f": {', '.join(parts)}" if parts else "")
