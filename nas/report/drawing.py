"""Makes figures in which the names of a user's files are plain text: none is read as a formula or warned of."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nas.text import printable

LONGEST = 48  # characters of a name in a picture


@contextmanager
def drawing_text() -> Iterator[None]:
    """Lets matplotlib draw ``$`` and ``_`` as they are meanwhile, and say nothing of characters that its font lacks."""
    with mpl.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


@contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """Makes an empty figure of ``width`` by ``height`` inches, inside of ``drawing_text``."""
    with drawing_text():
        figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def label(name: str, longest: int = LONGEST) -> str:
    """Shortens a name to one line of ``longest`` characters at most; what is left out is its middle.

    A name that begins with ``_`` gets a space before it: a legend of matplotlib would skip it.
    """
    text = printable(name)
    if len(text) > longest:
        text = f"{text[:longest // 2 - 2]}...{text[-(longest // 2 - 1):]}"
    return f" {text}" if text.startswith("_") else text


def legend(figure: Figure, axes: Any, columns: int = 2) -> None:
    """Adds one legend for all axes below them, where it hides no point; a label that several have is there once."""
    handles = {text: handle for panel in axes for handle, text in zip(*panel.get_legend_handles_labels(), strict=True)}
    if handles:
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns, fontsize=8)
