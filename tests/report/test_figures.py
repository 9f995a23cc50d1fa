"""The picture of a front: its points are test accuracies in percent with their errors over predicted milliseconds."""

from __future__ import annotations

import io
from typing import Any

import pytest
from matplotlib.figure import Figure

from nas.report import figures


def card(ms: float, accuracy: float, **more: Any) -> dict[str, Any]:
    return {"id": f"{ms}", "ms": {"gpu": ms}, "accuracy": accuracy, "accuracy_se": 0.01,
            "select_accuracy": accuracy / 2, "size": 16, **more}


def drawn(front: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[dict[str, list[tuple[float, float]]]]:
    """The points of each panel, by what the legend calls them."""
    kept: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *given, **named: (kept.append(self),
                                                                         save(self, *given, **named)))
    file = io.BytesIO()
    figures.draw_front(front, file)
    assert file.getvalue()[:4] == b"\x89PNG"
    panels: list[Any] = kept[0].axes
    return [{str(group.get_label()): list(map(tuple, group.lines[0].get_xydata().tolist()))
             for group in axes.containers} for axes in panels]


def test_points_are_milliseconds_and_test_accuracy_in_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    front = {"space": "s", "target": ["gpu"], "front": [card(1.0, 0.5), card(2.0, 0.75)], "dominated": [card(3.0, 0.6)]}
    (panel,) = drawn(front, monkeypatch)
    by_name = {name.split()[0]: points for name, points in panel.items()}
    assert by_name["front"] == [(1.0, 50.0), (2.0, 75.0)] and by_name["picks"] == [(3.0, 60.0)]


def test_each_target_has_a_panel_with_its_own_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    front = {"space": "s", "target": ["a", "b"], "dominated": [],
             "front": [{**card(0, 0.5), "ms": {"a": 1.0, "b": 4.0}}]}
    assert [panel["front"] for panel in drawn(front, monkeypatch)] == [[(1.0, 50.0)], [(4.0, 50.0)]]
