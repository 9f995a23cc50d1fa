"""A table says when it was made on a busy machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from every import every

from nas.latency import costs
from nas.latency.load import Load, Watch
from nas.latency.meta import Meta
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
    watch = Watch(1, None)
    assert watch.load is None  # nothing was measured
    for drift, spread in ((1.0, 1.1), (1.2, 1.3), (0.8, 1.2)):
        watch.sample(drift, spread)
    # others 0.5, 2.0, 0 (never below); drift 1.0 over the fastest 0.8
    assert watch.load == Load(others=0.5, cores=4, drift=1.25, spread=1.2)


def test_of_several_sessions_the_busiest_counts(loads: list[float]) -> None:
    loads += [4.0, 1.0, 1.0]
    load = None
    for drift in (1.0, 1.3):
        watch = Watch(1, load)
        assert watch.load == load
        watch.sample(drift, 1.0)
        load = watch.load
    assert load == Load(others=3.0, cores=4, drift=1.3, spread=1.0)
    anew = Watch(1, None)
    anew.sample(1.0, 1.0)
    assert anew.load == Load(others=0.0, cores=4, drift=1.0, spread=1.0)  # a table that is measured anew


@pytest.mark.parametrize(("load", "said"), [
    (Load(others=1.0, cores=4, drift=1.1, spread=1.5), None),
    (Load(others=1.7, cores=4, drift=1.0, spread=1.0), "other work kept 1.7 of 4 cores busy"),
    (Load(others=0.0, cores=4, drift=1.25, spread=1.0), "the yardstick mostly took 1.2 times its fastest"),
    (Load(others=0.0, cores=4, drift=1.0, spread=1.8), "its runs differed by 1.8 times"),
    (Load(others=3, cores=4, drift=1.0, spread=1.6),
     "other work kept 3 of 4 cores busy, its runs differed by 1.6 times"),
    (None, None)], ids=str)
def test_what_counts_as_busy(load: Load | None, said: str | None) -> None:
    assert Meta(device="cpu", load=load).busy == (f"made on a busy machine ({said})" if said else None)


def test_targets_say_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    meta = Meta(device="cpu", load=Load(others=2, cores=2, drift=1.0, spread=1.0))
    (tmp_path / "latency_tables").mkdir()
    LatencyTable("mine", meta).save(tmp_path / "latency_tables" / "mine.json")
    (mine,) = (target for target in costs.targets() if target.name == "mine")
    assert mine.busy == "made on a busy machine (other work kept 2 of 2 cores busy)"
    assert every(target.busy is None for target in costs.targets() if target.name != "mine")
