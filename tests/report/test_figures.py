"""The picture of a front: its points are test accuracies in percent with their errors over predicted milliseconds."""

from __future__ import annotations

import io
from typing import Any

import pytest
from cards import card, front
from matplotlib.figure import Figure

from nas.report import figures
from nas.run.records import Card, Front


def point(ms: float, accuracy: float) -> Card:
    return card(f"{ms}", {"gpu": ms}, accuracy=accuracy, select_accuracy=accuracy / 2)


def drawn(shown: Front, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, list[tuple[float, float]]]]:
    """The points of each panel, by what the legend calls them."""
    kept: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *given, **named: (kept.append(self),
                                                                         save(self, *given, **named)))
    file = io.BytesIO()
    figures.draw_front(shown, file)
    assert file.getvalue()[:4] == b"\x89PNG"
    panels: list[Any] = kept[0].axes
    return [{str(group.get_label()): list(map(tuple, group.lines[0].get_xydata().tolist()))
             for group in axes.containers} for axes in panels]


def test_points_are_milliseconds_and_test_accuracy_in_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    (panel,) = drawn(front([point(1.0, 0.5), point(2.0, 0.75)], dominated=[point(3.0, 0.6)]), monkeypatch)
    by_name = {name.split()[0]: points for name, points in panel.items()}
    assert by_name["front"] == [(1.0, 50.0), (2.0, 75.0)] and by_name["picks"] == [(3.0, 60.0)]


def test_each_target_has_a_panel_with_its_own_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = front([card(ms={"a": 1.0, "b": 4.0}, accuracy=0.5)])
    assert [panel["front"] for panel in drawn(shown, monkeypatch)] == [[(1.0, 50.0)], [(4.0, 50.0)]]
