"""Pictures in which names are text: no formula, no glyph that cannot be drawn stops or talks."""

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
    """Makes ``$`` and ``_`` characters like others, and a missing glyph no warning."""
    with mpl.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


@contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """Makes a figure of so many inches, in ``drawing_text``."""
    with drawing_text():
        figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def label(name: str, longest: int = LONGEST) -> str:
    """A name as it is drawn: one line, its middle left out if it is long. A legend skips what begins with ``_``."""
    shown = printable(name)
    if len(shown) > longest:
        shown = f"{shown[:longest // 2 - 2]}...{shown[-(longest // 2 - 1):]}"
    return f" {shown}" if shown.startswith("_") else shown


def legend(figure: Figure, axes: Any, columns: int = 2) -> None:
    """Below the axes, where no point is: one for all, each label once."""
    handles = {text: handle for part in axes for handle, text in zip(*part.get_legend_handles_labels(), strict=True)}
    if handles:
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns, fontsize=8)
