"""The protocol on a device whose clock is arithmetic; then, briefly, on this machine."""

import fcntl
import io
import random
from pathlib import Path
from typing import Any

import pytest
from every import every
from rich.console import Console
from torch import nn

from nas import sampling
from nas.arch import Op
from nas.cli.progress import TerminalProgress
from nas.errors import UserError
from nas.latency import bench as bench_module
from nas.latency import estimate
from nas.latency import profile as profile_module
from nas.latency.bench import Clocked
from nas.latency.context import Context, Map
from nas.latency.profile import profile
from nas.latency.table import LatencyTable
from nas.latency.timing import Steady, interleaved, summary
from nas.ops.layers import ConvBN
from nas.ops.registry import Block
from nas.plan import Layout, OpKey, Task, candidates, layout, plan
from nas.space import Space
from nas.subnet import Subnet

CALL_MS = 0.5


def known_ms(block: Block) -> float:
    """Stem and head 1 ms; the others 0.1 ms, 0.01 ms a hidden channel and 0.05 ms for attention."""
    if type(block).__name__ in ("Stem", "Head"):
        return 1.0
    return 0.1 + 0.01 * block.max_hidden + (0.05 if getattr(block, "se", None) is not None else 0)


class Clockwork:
    """A call costs 0.5 ms, a 1x1 convolution around an operator 0.02 ms a channel, an operator ``known_ms``."""

    name = "clockwork"
    align = 32
    fresh = False

    def __init__(self, processor: str = "gears", stop_after: int | None = None, slack: float = 0.0,
                 slower: float = 1.0) -> None:
        self.processor, self.stop_after, self.slack, self.slower = processor, stop_after, slack, slower
        self.measured: list[Block] = []
        self.has_yardstick = False  # the first that is prepared

    def prepare(self, module: nn.Module, *, in_ch: int, size: int) -> Any:
        if isinstance(module, Subnet):
            parts: list[nn.Module] = [module.stem, *module.blocks, module.head]
        else:
            parts = list(module) if isinstance(module, nn.Sequential) else [module]
            self.measured += [part for part in parts if isinstance(part, Block)] if self.has_yardstick else []
        self.has_yardstick = True
        if self.stop_after is not None and len(self.measured) > self.stop_after:
            raise KeyboardInterrupt
        ms = CALL_MS + sum(known_ms(p) - self.slack if isinstance(p, Block) else 0.02 * p.conv.in_channels
                           for p in parts if isinstance(p, Block | ConvBN))
        return lambda: ms * self.slower

    def conditions(self) -> dict[str, Any]:
        return {"device": "clockwork", "processor": self.processor, "runtime": "spring", "runtime_version": "1",
                "precision": "fp32", "threads": 1, "batch": 1}


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


def bench(tiny: Layout) -> Clocked:
    return Clocked(tiny, Clockwork(), *(Steady(lambda: [lambda: 2.0], None, random.Random(0)) for _ in range(2)))


def test_a_finished_network_is_as_fast_as_the_device_was(tiny: Layout, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_module, "CHECKED_S", 0.001)
    profile(tiny, tmp_path / "t.json", device=Clockwork())
    table = LatencyTable.load(tmp_path / "t.json")
    slow = Clockwork(slower=1.3)
    assert profile_module.check(lambda: lambda: 2.6, tiny, table, slow) == pytest.approx((2.0, 1.3))
    table.meta["yardsticks"] = {}  # as for a layout that was not profiled
    assert profile_module.check(lambda: lambda: 2.6, tiny, table, slow) == (2.6, None)


def test_five_rows_come_out_exactly(tiny: Layout) -> None:
    slot = tiny.slots[2]
    ops = ["ghost(cheap=3, hidden=8, kernel=3, se=0)", "ghost(cheap=3, hidden=24, kernel=3, se=1)", "mbconv(hidden=16)"]
    keys = [tiny.stem, *(OpKey(Op.parse(op), slot.in_ch, slot.out_ch, slot.stride, slot.size) for op in ops), tiny.head]
    rows = bench(tiny).rows(keys)
    # stem and head: 1 ms and half a call; 0.1 + 0.08, 0.1 + 0.24 + 0.05, 0.1 + 0.16
    expected = [1.25, 0.18, 0.39, 0.26, 1.25]
    assert [rows[key].ms for key in keys] == pytest.approx(expected)


def test_a_context_takes_off_half_a_pair_on_each_map() -> None:
    key = OpKey(Op.parse("mbconv(hidden=16)"), 8, 16, 2, 15)
    assert Context(key).maps == (Map(8, 15), Map(16, 8))
    assert Context(key).difference(5.0, {Map(8, 15): 2.0, Map(16, 8): 4.0}) == 2.0
    assert Context(key, first=True).maps == (Map(16, 8),) and Context(key, last=True).maps == (Map(8, 15),)


def test_a_profile_prices_whole_networks_exactly(tiny: Layout, tmp_path: Path) -> None:
    text = io.StringIO()
    path = tmp_path / "clockwork.json"
    progress = TerminalProgress(Console(file=text, width=200))
    result = profile(tiny, path, device=Clockwork(), validate=12, progress=progress)
    table = LatencyTable.load(path)
    assert result["rows"] == result["measured"] == len(table.rows) and result["flagged"] == 0
    said = [line.partition(", took")[0] for line in text.getvalue().splitlines()]
    assert said == [f"rows: {result['rows']}/{result['rows']}",
                    f"correction: {profile_module.FITTED_ON}/{profile_module.FITTED_ON}", "validation: 12/12"]
    validation = result["validation"]
    assert validation["n"] == 12 and validation["noise_mape"] == 0
    assert validation["kendall"] > 0.98  # two of equal cost may differ in the last digit
    assert validation["mape"] == pytest.approx(0, abs=1e-9) == abs(validation["bias"])
    assert table.meta["validation"] == validation and table.meta["method"] == "measured"
    assert result["correction"]["scale"] == pytest.approx(1)
    keys = plan(tiny, sampling.sample(tiny, random.Random(5)))
    network = Subnet(keys)
    blocks = [network.stem, *network.blocks, network.head]
    whole = CALL_MS + sum(map(known_ms, blocks))
    assert sum(table.ms_many(keys)) == pytest.approx(whole)


def test_the_correction_and_the_validation_see_other_networks(tiny: Layout, tmp_path: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    measured, networks = list[list[list[OpKey]]](), Clocked.networks

    def spy(self: Clocked, plans: list[list[OpKey]], *others: Any) -> Any:
        measured.append(plans)
        return networks(self, plans, *others)

    monkeypatch.setattr(Clocked, "networks", spy)
    profile(tiny, tmp_path / "t.json", device=Clockwork(), validate=12)
    fitted_on, checked_on = measured
    assert len(fitted_on) == profile_module.FITTED_ON and len(checked_on) == 12
    assert not {tuple(keys) for keys in fitted_on} & {tuple(keys) for keys in checked_on}


def test_in_processes_of_its_own_a_profile_finds_the_same(tiny: Layout, tmp_path: Path) -> None:
    apart = Clockwork()
    apart.fresh = True
    results = [profile(tiny, tmp_path / f"{name}.json", device=device, validate=3)
               for name, device in (("here", Clockwork()), ("apart", apart))]
    here, there = (LatencyTable.load(tmp_path / f"{name}.json") for name in ("here", "apart"))
    rows = [{key: row.ms for key, row in table.rows.items()} for table in (here, there)]
    assert rows[1] == pytest.approx(rows[0])
    assert there.meta["yardsticks"] == here.meta["yardsticks"]
    assert results[0]["validation"]["mape"] == results[1]["validation"]["mape"] == pytest.approx(0, abs=1e-9)
    assert len(apart.measured) < 5  # all but a few were prepared in other processes


def test_a_second_profile_measures_nothing_and_remeasure_everything(tiny: Layout, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    rows = profile(tiny, path, device=Clockwork())["measured"]
    before = path.read_text()
    again = Clockwork()
    assert profile(tiny, path, device=again)["measured"] == 0
    assert again.measured == [] and path.read_text() == before
    assert profile(tiny, path, device=Clockwork(), remeasure=True)["measured"] == rows


def test_a_killed_profile_continues_with_the_missing_rows(tiny: Layout, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_module, "CHUNK", 4)
    path, keys = tmp_path / "t.json", candidates(tiny)
    with pytest.raises(KeyboardInterrupt):
        profile(tiny, path, device=Clockwork(stop_after=10))
    assert len(LatencyTable.load(path).rows) == 8
    wanted = len(LatencyTable("t", {"align": 32}).missing(keys))
    assert profile(tiny, path, device=Clockwork())["measured"] == wanted - 8
    assert LatencyTable.load(path).missing(keys) == []


def test_a_second_layout_keeps_the_rows_of_the_first(tiny: Layout, tiny_space: Space, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    first = profile(tiny, path, device=Clockwork())
    second = profile(layout(tiny_space, Task(32, 3, 4)), path, device=Clockwork())
    assert second["rows"] == first["rows"] + second["measured"]
    labels = LatencyTable.load(path).meta["corrections"]
    assert sorted(label.partition(" (")[0] for label in labels) == ["tiny at 16", "tiny at 32"]


def test_rows_of_two_machines_never_share_a_table(tiny: Layout, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    profile(tiny, path, device=Clockwork())
    with pytest.raises(UserError, match=r"t\.json: processor was 'gears' and is 'cogs' now: .*out.*remeasure"):
        profile(tiny, path, device=Clockwork("cogs"))
    profile(tiny, path, device=Clockwork("cogs"), remeasure=True)
    assert LatencyTable.load(path).meta["processor"] == "cogs"


def test_a_table_is_filled_by_one_process_at_a_time(tiny: Layout, tmp_path: Path) -> None:
    with (tmp_path / ".t.json.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("4711\n")
        file.flush()
        with pytest.raises(UserError, match=r"t\.json: is being filled by process 4711; wait for it, or .* out"):
            profile(tiny, tmp_path / "t.json", device=Clockwork())
    assert profile(tiny, tmp_path / "t.json", device=Clockwork())["measured"]


def test_a_table_that_hides_a_shipped_one_begins_with_its_rows(tiny: Layout, tiny_space: Space, tmp_path: Path,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    shipped, own = tmp_path / "shipped", Path("latency_tables") / "clockwork.json"
    monkeypatch.setattr(profile_module, "folder", lambda kind: shipped)
    monkeypatch.chdir(tmp_path)
    there = profile(tiny, shipped / own.name, device=Clockwork())["rows"]
    before = (shipped / own.name).read_bytes()
    other = layout(tiny_space, Task(32, 3, 4))
    assert profile(other, own, device=Clockwork())["rows"] > there  # at another size: none is measured twice
    assert LatencyTable.load(own).missing(candidates(tiny)) == [] and (shipped / own.name).read_bytes() == before
    elsewhere = profile(other, tmp_path / own.name, device=Clockwork())
    assert elsewhere["rows"] == elsewhere["measured"]  # with a path of its own it hides nothing
    own.unlink()
    fresh = profile(other, own, device=Clockwork("cogs"))
    assert fresh["rows"] == fresh["measured"]  # rows of two machines never share a table


def test_a_difference_below_zero_becomes_the_operator_alone_and_is_flagged(tiny: Layout, tmp_path: Path) -> None:
    result = profile(tiny, tmp_path / "t.json", device=Clockwork(slack=0.19))
    table = LatencyTable.load(tmp_path / "t.json")
    flagged = [row for row in table.rows.values() if row.how == "flagged"]
    assert result["flagged"] == len(flagged) > 0
    assert {(row.hidden, round(row.raw_ms, 6)) for row in flagged} == {(8, round(0.18 - 0.19 + CALL_MS, 6))}
    assert every(row.ms > 0 for row in table.rows.values())


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
    assert steady.time(lambda: runs, 0.0, again=False)["0"].ms == pytest.approx(1 / 1.1)
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

    def attempts() -> int:
        calls[0] = 0
        steady.time(lambda: {"a": lambda: calls.__setitem__(0, calls[0] + 1) or 1.0}, 0.0)
        return calls[0] // (2 + 8 * 4)

    assert [attempts() for _ in range(4)] == [4, 4, 1, 1] and steady.drift == pytest.approx(1.2)
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
    (one,), (other,) = (table.meta["yardsticks"].values() for table in (fast, waking))
    assert one == {"op": other["op"], **{name: pytest.approx(other[name]) for name in ("op_ms", "network_ms")}}
    assert {key: row.ms for key, row in waking.rows.items()} == pytest.approx(
        {key: row.ms for key, row in fast.rows.items()})


def test_a_summary_is_a_low_percentile() -> None:
    timing = summary([float(i) for i in range(1, 102)])
    assert (timing.ms, timing.p10_ms, timing.p90_ms, timing.n) == (6.0, 11.0, 91.0, 101)
    assert timing.unstable and not summary([1.0] * 5 + [9.0]).unstable


def test_an_unknown_device_is_named(tiny: Layout, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="device=abacus"):
        profile(tiny, tmp_path / "t.json", device="abacus")


def test_a_precision_that_a_device_has_not_is_named(tiny: Layout, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="precision=int4: fp32 or int8 on the CPU"):
        profile(tiny, tmp_path / "t.json", precision="int4")
    with pytest.raises(UserError, match="device=ethos-u55-128: an NPU runs int8 only: leave out precision"):
        profile(tiny, tmp_path / "t.json", device="ethos-u55-128", precision="fp32")


def test_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_module, "FITTED_ON", 2)
    monkeypatch.setattr(bench_module, "SECONDS_A_NETWORK", 0.01)
    space = Space.parse({"name": "one", "stem": {"op": "stem", "out": 8, "stride": 1},
                         "stages": [{"out": 8, "depth": 1, "stride": 1}],
                         "ops": {"mbconv": {"kernel": [3], "hidden": {"min": 1, "max": 2, "step": 8}}},
                         "head": {"op": "head"}})
    result = profile(layout(space, Task(8, 3, 4)), tmp_path / "cpu.json", validate=2)
    table = LatencyTable.load(tmp_path / "cpu.json")
    assert result["rows"] == len(table.rows) == 1 + 2 + 4  # stem, two widths, a head at four numbers of classes
    assert every(0 < row.ms < 1000 and row.n > 0 for row in table.rows.values())
    assert table.meta["runtime"] == "onnxruntime" and table.meta["processor"]


def test_a_profile_notes_how_busy_the_machine_was(tiny: Layout, tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_module, "CHUNK", 4)
    monkeypatch.setattr("os.getloadavg", lambda: (2.5, 0.0, 0.0))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    profile(tiny, tmp_path / "t.json", device=Clockwork())
    load = LatencyTable.load(tmp_path / "t.json").meta["load"]
    assert load == {"others": 1.5, "cores": 2, "drift": 1.0, "spread": pytest.approx(1.0)}
    monkeypatch.setattr("os.getloadavg", lambda: (1.0, 0.0, 0.0))
    profile(tiny, tmp_path / "t.json", device=Clockwork())  # nothing is measured
    assert LatencyTable.load(tmp_path / "t.json").meta["load"] == load
    profile(tiny, tmp_path / "t.json", device=Clockwork(), remeasure=True)
    assert LatencyTable.load(tmp_path / "t.json").meta["load"]["others"] == 0.0


class Networks(Clockwork):
    """Counts whole networks, and stops at one of them."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.networks, self.stop_at = 0, stop_at

    def prepare(self, module: nn.Module, *, in_ch: int, size: int) -> Any:
        self.networks += isinstance(module, Subnet)
        if self.networks == self.stop_at:
            raise KeyboardInterrupt
        return super().prepare(module, in_ch=in_ch, size=size)


def test_rows_of_exits_take_the_correction_of_their_layout(tiny: Layout, tiny_exits: Layout, tmp_path: Path) -> None:
    """It was fitted on networks without exits: those are not measured for them again."""
    path, device = tmp_path / "t.json", Networks()
    profile(tiny, path, device=device)
    table = LatencyTable.load(path)
    (label,) = table.meta["corrections"]
    known = {**table.meta["corrections"][label], "scale": 1.5, "per_op_ms": 0.25}
    table.meta["corrections"][label] = known
    table.save(path)
    device = Networks()
    assert profile(tiny_exits, path, device=device)["measured"] == 4  # a head at four numbers of classes
    table = LatencyTable.load(path)
    exits = [row for key, row in table.rows.items() if key.is_exit]
    assert device.networks == 0 and table.meta["corrections"] == {label: known} and len(exits) == 4
    assert every(row.ms == 1.5 * row.raw_ms + 0.25 for row in exits)
    device = Networks()
    assert profile(tiny_exits, path, device=device)["measured"] == 0 and device.networks == len(device.measured) == 0


@pytest.mark.parametrize("stop_at", [1, 20])
def test_interrupted_in_the_correction_a_profile_corrects_its_rows_later(tiny: Layout, tmp_path: Path,
                                                                         stop_at: int) -> None:
    whole, path = Networks(), tmp_path / "t.json"
    profile(tiny, tmp_path / "whole.json", device=whole)
    with pytest.raises(KeyboardInterrupt):
        profile(tiny, path, device=Networks(stop_at))
    table = LatencyTable.load(path)
    assert table.missing(candidates(tiny)) == [] and profile_module.unfinished(tiny, table)
    assert table.meta["corrections"] == {}
    rest = Networks()
    assert profile(tiny, path, device=rest)["measured"] == 0
    done, expected = (LatencyTable.load(tmp_path / f"{name}.json") for name in ("t", "whole"))
    assert not profile_module.unfinished(tiny, done) and "begun" not in done.meta and "uncorrected" not in done.meta
    assert {key: row.ms for key, row in done.rows.items()} == pytest.approx(
        {key: row.ms for key, row in expected.rows.items()})
    # 3 yardsticks, prepared once by each; 24 networks in parts of 8: what was kept is not prepared again
    assert (whole.networks, rest.networks) == (3 + 24, 3 + 24 - (16 if stop_at == 20 else 0))


def test_interrupted_in_the_validation_a_profile_goes_on_with_it(tiny: Layout, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    profile(tiny, path, device=Networks())
    with pytest.raises(KeyboardInterrupt):
        profile(tiny, path, device=Networks(stop_at=3 + 8 + 4), validate=20)
    rest = Networks()
    validation = profile(tiny, path, device=rest, validate=20)["validation"]
    assert rest.networks == 3 + 12 and validation["n"] == 20
    assert validation["mape"] == pytest.approx(0, abs=1e-9)


def test_measuring_anew_measures_networks_anew_that_were_begun(tiny: Layout, tmp_path: Path) -> None:
    whole, path = Networks(), tmp_path / "t.json"
    profile(tiny, tmp_path / "whole.json", device=whole)
    with pytest.raises(KeyboardInterrupt):
        profile(tiny, path, device=Networks(20))
    assert LatencyTable.load(path).meta["begun"]
    device = Networks()
    profile(tiny, path, device=device, remeasure=True)
    assert device.networks == whole.networks


def test_how_long_a_profile_takes_is_said_before(tiny: Layout, tiny_exits: Layout, tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SECONDS_A_GRAPH": 0.0, "SECONDS_A_NETWORK": 0.0, "PREPARED_S": 1.0}.items():
        monkeypatch.setattr(estimate, name, value)
    empty = LatencyTable("t", {"align": 32, "corrections": {}})
    rows = len(empty.missing(candidates(tiny)))
    # a second a graph: the rows, pairs on the maps of 8 channels and of 16; then 24 networks twice
    assert profile_module.estimate_s(tiny, empty, Clockwork()) == rows + 2 + 2 * 24
    path = tmp_path / "t.json"
    profile(tiny, path, device=Clockwork())
    table = LatencyTable.load(path)
    assert profile_module.estimate_s(tiny, table, Clockwork()) == 0.0
    assert profile_module.estimate_s(tiny_exits, table, Clockwork()) == 4 + 1  # four heads behind one map
