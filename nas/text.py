"""Text of the user's - names of classes, nodes, files - on its way to a reader: never markup, never a control code."""

from __future__ import annotations

import re

_MARKDOWN = re.compile(r"[\\`*\[\]<>|~&#]|(?<!\w)_|_(?!\w)")


def printable(text: str, encoding: str | None = "utf-8") -> str:
    """Writes as ``\\xNN`` or ``\\uNNNN`` what is no visible character, or none of the encoding's.

    So a name can neither begin a line of its own, nor move a terminal's cursor, nor hide.
    """
    try:
        "".encode(encoding or "utf-8")
    except LookupError:
        encoding = "ascii"
    return "".join(char if char.isprintable() and _fits(char, encoding or "utf-8")
                   else char.encode("unicode_escape").decode() for char in text)


def markdown(text: str) -> str:
    """Escapes what a Markdown table would read as its own signs."""
    return _MARKDOWN.sub(lambda sign: f"\\{sign[0]}", printable(text))


def _fits(char: str, encoding: str) -> bool:
    if char.isascii():
        return True
    try:
        char.encode(encoding)
    except UnicodeError:
        return False
    return True
