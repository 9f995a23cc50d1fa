"""The page of a run: one HTML file that holds its data, its style and its script, and asks the network for nothing."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

from nas.text import printable

HERE = Path(__file__).parent


def page(story: dict[str, Any]) -> str:
    """HTML of ``nas.report.run_data.story``. Text of the run is escaped; the policy forbids anything from outside.

    Raises ValueError for NaN, which is not JSON.
    """
    parts = {"title": html.escape(printable(f"{Path(story['run']).resolve().name} · nas")), "css": _own("page.css"),
             "plot": _own("plot.js"), "js": _own("page.js"),
             "story": json.dumps(_visible(story), allow_nan=False).replace("<", "\\u003c")}  # no </script> inside
    template, *rest = _own("page.html").split("{{")
    pieces = (piece.split("}}", 1) for piece in rest)
    return template + "".join(parts[name] + after for name, after in pieces)


def _visible(value: Any) -> Any:
    """With every text, keys as well, in printable characters: a name can neither begin a line nor turn one round."""
    if isinstance(value, dict):
        return {_visible(key): _visible(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_visible(part) for part in value]
    return printable(value) if isinstance(value, str) else value


def _own(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")
