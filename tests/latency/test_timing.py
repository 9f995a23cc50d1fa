"""Rounds, yardsticks and slow machines: what is timed, how often, and what counts."""

import random
from pathlib import Path
from typing import Any

import pytest
from clockwork import Clockwork
from torch import nn

from nas.latency import bench as bench_module
from nas.latency import profile as profile_module
from nas.latency.load import Load
from nas.latency.profile import profile
from nas.latency.table import LatencyTable
from nas.latency.timing import Steady, interleaved, summary
from nas.plan import Layout
from nas.subnet import Subnet


class Slowed(Clockwork):
    """Slow while so many rows have been prepared, and not alike for everything."""

    def __init__(self, rows: range) -> None:
        super().__init__()
        self.rows = rows

    def prepare(self, module: nn.Module, *, in_ch: int, size: int) -> Any:
        yardstick = not self.has_yardstick
        run = super().prepare(module, in_ch=in_ch, size=size)
        return lambda: run() * ((1.5 if yardstick else 1.2) if len(self.measured) in self.rows else 1.0)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module, "SECONDS_A_GRAPH", 0.001)


def test_an_unstable_row_is_tried_again_and_then_flagged(tiny: Layout, tmp_path: Path) -> None:
    class Shaky(Clockwork):
        def prepare(self, module: nn.Module, *, in_ch: int, size: int) -> Any:
            run, rng = super().prepare(module, in_ch=in_ch, size=size), random.Random(0)
            shaky = not isinstance(module, Subnet) and any(type(part).__name__ == "Stem" for part in module.children())
            return (lambda: run() * rng.uniform(1, 9)) if shaky else run

    device = Shaky()
    profile(tiny, tmp_path / "t.json", device=device)
    table = LatencyTable.load(tmp_path / "t.json")
    assert table.rows[tiny.stem].how == "flagged"
    assert sum(type(block).__name__ == "Stem" for block in device.measured) == profile_module.ATTEMPTS
    assert sum(row.how == "flagged" for row in table.rows.values()) == 1


def test_rounds_are_interleaved_and_the_first_runs_of_a_burst_are_not_counted() -> None:
    calls: list[str] = []

    def run(name: str, ms: float) -> Any:
        return lambda: calls.append(name) or ms

    timings = interleaved({"a": run("a", 1.0), "b": run("b", 3.0)}, seconds=0.0, rng=random.Random(0), min_rounds=8)
    assert (timings["a"].ms, timings["b"].ms) == (1.0, 3.0)
    assert timings["a"].n == 8 * 2
    rounds = ["".join(calls[4 + i:12 + i]) for i in range(0, 64, 8)]
    assert {*rounds} == {"aaaabbbb", "bbbbaaaa"}


def test_the_yardstick_comes_back_within_a_round() -> None:
    calls: list[str] = []
    runs = {name: (lambda name=name: calls.append(name) or 1.0) for name in "abcdefg!"}
    timings = interleaved(runs, seconds=0.0, rng=random.Random(0), min_rounds=8, recurring=["!"])
    assert timings["!"].n == 2 * timings["a"].n == 8 * 2 * 2
    for start in range(0, 8 * 36, 36):  # 7 graphs and twice the yardstick
        one = calls[16 + start : 52 + start]
        assert "".join(one)[::4].count("!") == 2 and one[0] == one[28] == "!"


def test_the_yardstick_takes_out_what_slows_down_everything() -> None:
    load = [1.0]
    steady = Steady(lambda: [lambda: 2.0 * load[0]], None, random.Random(0))
    for load[0] in (1.0, 1.5):
        assert steady.time(lambda: {"a": lambda: 4.0 * load[0]}, 0.0)["a"].ms == pytest.approx(4.0)
    assert (steady.reference_ms, steady.drift) == ([2.0], 1.5)


def test_yardsticks_take_turns_and_their_mean_counts() -> None:
    calls: list[str] = []
    loads = {"a": 1.0, "b": 1.0}
    yardsticks = [lambda name=name: calls.append(name) or loads[name] for name in loads]
    steady = Steady(lambda: yardsticks, None, random.Random(0))
    runs = {str(i): (lambda: 1.0) for i in range(12)}  # two visits a round
    steady.time(lambda: runs, 0.0)
    assert steady.reference_ms == [1.0, 1.0] and "".join(calls[4:]) == 8 * "aaaabbbb"
    loads |= {"a": 1.21, "b": 1.0}
    assert steady.time(lambda: runs, 0.0, again=0)["0"].ms == pytest.approx(1 / 1.1)
    assert steady.drift == pytest.approx(1.1)


def test_what_was_timed_on_a_slow_machine_is_timed_again() -> None:
    load, calls = [1.0], 0
    steady = Steady(lambda: [lambda: 2.0 * load[0]], [2.0], random.Random(0))

    def run() -> float:  # slows down by another factor than the yardstick, and only for the first attempt
        nonlocal calls
        calls += 1
        load[0] = 1.5 if calls <= 2 + 8 * 4 else 1.0
        return 4.0 * load[0] ** 2

    assert steady.time(lambda: {"a": run}, 0.0)["a"].ms == 4.0 and steady.drift == 1.0
    assert calls == 2 * (2 + 8 * 4)


def test_patience_with_a_machine_that_stays_slow_has_an_end() -> None:
    load, calls = [1.0], [0]
    steady = Steady(lambda: [lambda: 2.0 * load[0]], [2.0], random.Random(0))
    load[0] = 1.2

    def attempts(**limit: int) -> int:
        calls[0] = 0
        steady.time(lambda: {"a": lambda: calls.__setitem__(0, calls[0] + 1) or 1.0}, 0.0, **limit)
        return calls[0] // (2 + 8 * 4)

    assert [attempts(again=0), attempts(again=1)] == [1, 2]
    assert [attempts() for _ in range(4)] == [4, 3, 1, 1] and steady.drift == pytest.approx(1.2)
    load[0] = 1.0
    attempts()
    load[0] = 1.2
    assert attempts() == 2  # a fast moment gives it back


def test_rows_of_a_slow_while_are_measured_again_at_the_end(tiny: Layout, tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_module, "CHUNK", 4)
    fast, napping = Clockwork(), Slowed(range(5, 13))
    for name, device in (("fast", fast), ("napping", napping)):
        profile(tiny, tmp_path / f"{name}.json", device=device)
    assert len(napping.measured) == len(fast.measured) + 8
    rows = [{key: row.ms for key, row in LatencyTable.load(tmp_path / f"{name}.json").rows.items()}
            for name in ("fast", "napping")]
    assert rows[1] == pytest.approx(rows[0])


def test_a_machine_that_stays_slow_gives_a_table_all_the_same(tiny: Layout, tmp_path: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_module, "CHUNK", 4)
    path, device = tmp_path / "t.json", Clockwork(stop_after=8)
    with pytest.raises(KeyboardInterrupt):
        profile(tiny, path, device=device)
    first = dict(LatencyTable.load(path).rows)
    slow = Clockwork(slower=1.3)
    profile(tiny, path, device=slow)
    table = LatencyTable.load(path)
    left = len(table.rows) - len(first)
    again = len(slow.measured) - left
    assert 0 < len(first) < left and profile_module.SPARE * left <= again < profile_module.SPARE * left + 4
    assert {key: row.raw_ms for key, row in table.rows.items()} == pytest.approx(
        {key: row.raw_ms for key, row in _fast(tiny, tmp_path).rows.items()})


def _fast(tiny: Layout, tmp_path: Path) -> LatencyTable:
    profile(tiny, tmp_path / "fast.json", device=Clockwork())
    return LatencyTable.load(tmp_path / "fast.json")


def test_a_table_begun_on_a_slow_machine_is_begun_anew(tiny: Layout, tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_module, "CHUNK", 4)
    for name, device in (("fast", Clockwork()), ("waking", Slowed(range(7)))):
        profile(tiny, tmp_path / f"{name}.json", device=device)
    fast, waking = (LatencyTable.load(tmp_path / f"{name}.json") for name in ("fast", "waking"))
    (known,), (other,) = (table.meta.yardsticks.values() for table in (fast, waking))
    assert known.op == other.op and known.op_ms and known.network_ms
    assert known.op_ms == pytest.approx(other.op_ms) and known.network_ms == pytest.approx(other.network_ms)
    assert {key: row.ms for key, row in waking.rows.items()} == pytest.approx(
        {key: row.ms for key, row in fast.rows.items()})


def test_a_summary_is_a_low_percentile() -> None:
    timing = summary([float(i) for i in range(1, 102)])
    assert (timing.ms, timing.p10_ms, timing.p90_ms, timing.n) == (6.0, 11.0, 91.0, 101)
    assert timing.unstable and not summary([1.0] * 5 + [9.0]).unstable


def test_a_profile_notes_how_busy_the_machine_was(tiny: Layout, tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_module, "CHUNK", 4)
    monkeypatch.setattr("os.getloadavg", lambda: (2.5, 0.0, 0.0))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    profile(tiny, tmp_path / "t.json", device=Clockwork())
    load = LatencyTable.load(tmp_path / "t.json").meta.load
    assert load == Load(others=1.5, cores=2, drift=1.0, spread=1.0)
    monkeypatch.setattr("os.getloadavg", lambda: (1.0, 0.0, 0.0))
    profile(tiny, tmp_path / "t.json", device=Clockwork())  # nothing is measured
    assert LatencyTable.load(tmp_path / "t.json").meta.load == load
    profile(tiny, tmp_path / "t.json", device=Clockwork(), remeasure=True)
    assert LatencyTable.load(tmp_path / "t.json").meta.load.others == 0.0
