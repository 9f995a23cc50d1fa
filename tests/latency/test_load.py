"""A table says when it was made on a busy machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from every import every

from nas.latency import costs
from nas.latency.load import LOAD, Watch, busy_text
from nas.latency.table import LatencyTable


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the machine says of the last minute, one after the other, on 4 cores."""
    values: list[float] = []
    monkeypatch.setattr(os, "getloadavg", lambda: (values.pop(0), 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    return values


def test_a_session_is_its_medians_without_the_measuring_itself(loads: list[float]) -> None:
    loads += [1.5, 3.0, 0.4]
    watch, meta = Watch(1, {}), dict[str, Any]()
    watch.note(meta)
    assert meta == {}  # nothing was measured
    for drift, spread in ((1.0, 1.1), (1.2, 1.3), (0.8, 1.2)):
        watch.sample(drift, spread)
    watch.note(meta)
    # others 0.5, 2.0, 0 (never below); drift 1.0 over the fastest 0.8
    assert meta == {LOAD: {"others": 0.5, "cores": 4, "drift": 1.25, "spread": 1.2}}


def test_of_several_sessions_the_busiest_counts(loads: list[float]) -> None:
    loads += [4.0, 1.0, 1.0]
    meta: dict[str, Any] = {}
    for drift in (1.0, 1.3):
        watch = Watch(1, meta)
        watch.sample(drift, 1.0)
        watch.note(meta)
    assert meta[LOAD] == {"others": 3.0, "cores": 4, "drift": 1.3, "spread": 1.0}
    first = Watch(1, {})
    first.sample(1.0, 1.0)
    first.note(meta)
    assert meta[LOAD]["others"] == 0.0  # a table that is measured anew


@pytest.mark.parametrize(("load", "said"), [
    ({"others": 1.0, "cores": 4, "drift": 1.1, "spread": 1.5}, None),
    ({"others": 1.7, "cores": 4, "drift": 1.0, "spread": 1.0}, "other work kept 1.7 of 4 cores busy"),
    ({"others": 0.0, "cores": 4, "drift": 1.25, "spread": 1.0}, "the yardstick mostly took 1.2 times its fastest"),
    ({"others": 0.0, "cores": 4, "drift": 1.0, "spread": 1.8}, "its runs differed by 1.8 times"),
    ({"others": 3, "cores": 4, "drift": 1.0, "spread": 1.6},
     "other work kept 3 of 4 cores busy, its runs differed by 1.6 times"),
    ({"others": 3}, None), ("busy", None), (None, None)])
def test_what_counts_as_busy(load: Any, said: str | None) -> None:
    text = busy_text({"device": "cpu", **({LOAD: load} if load is not None else {})})
    assert text == (f"made on a busy machine ({said})" if said else None)


def test_targets_say_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    meta = {"device": "cpu", LOAD: {"others": 2, "cores": 2, "drift": 1.0, "spread": 1.0}}
    (tmp_path / "latency_tables").mkdir()
    LatencyTable("mine", meta).save(tmp_path / "latency_tables" / "mine.json")
    (mine,) = (target for target in costs.targets() if target["name"] == "mine")
    assert mine["busy"] == "made on a busy machine (other work kept 2 of 2 cores busy)"
    assert every(target.get("busy") is None for target in costs.targets() if target["name"] != "mine")
