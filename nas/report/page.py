"""Writes the page of a run: one HTML file with data, style and script in it, which loads nothing from elsewhere."""

from __future__ import annotations

import html
import json
import math
from pathlib import Path
from typing import Any

from nas.text import printable

HERE = Path(__file__).parent


def page(run_data: dict[str, Any]) -> str:
    """Returns the HTML of what ``nas.report.run_data.collect`` returned.

    Text of the run is escaped, and the page's content policy forbids anything from outside.
    """
    title = printable(f"{Path(run_data['run']).resolve().name} · nas")
    data = json.dumps(_printable(run_data), allow_nan=False).replace("<", "\\u003c")  # no </script> inside
    parts = {"title": html.escape(title), "css": _read("page.css"), "plot": _read("plot.js"), "js": _read("page.js"),
             "data": data}
    template, *rest = _read("page.html").split("{{")
    pieces = (piece.split("}}", 1) for piece in rest)
    return template + "".join(parts[name] + after for name, after in pieces)


def _printable(value: Any) -> Any:
    """Returns a copy of a JSON value with all its texts, keys as well, in printable characters.

    So a name from a file can neither begin a new line nor reverse the direction of the text. NaN and infinities, which
    JSON does not have, become None.
    """
    if isinstance(value, dict):
        return {_printable(key): _printable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return printable(value) if isinstance(value, str) else value


def _read(name: str) -> str:
    """Reads a file of this package."""
    return (HERE / name).read_text(encoding="utf-8")
