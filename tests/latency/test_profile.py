"""The protocol on a device whose clock is arithmetic; then, briefly, on this machine."""

import fcntl
import io
import random
from pathlib import Path
from typing import Any

import pytest
from clockwork import CALL_MS, Clockwork, known_ms
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
from nas.latency.meta import Correction, Meta
from nas.latency.profile import profile
from nas.latency.table import LatencyTable
from nas.latency.timing import Steady
from nas.plan import Layout, OpKey, Task, candidates, layout, plan, restrict
from nas.space import Space
from nas.subnet import Subnet


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

    def timed() -> tuple[dict[str, float], float | None]:
        return profile_module.time_networks(lambda: {"a": lambda: 2.6, "b": lambda: 3.9}, 2, tiny, table, slow)

    ms, drift = timed()
    assert ms == pytest.approx({"a": 2.0, "b": 3.0}) and drift == pytest.approx(1.3)
    table.meta.yardsticks = {}  # as for a layout that was not profiled
    assert timed() == ({"a": 2.6, "b": 3.9}, None)


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
    assert result.rows == result.measured == len(table.rows) and result.flagged == 0
    said = [line.partition(", took")[0] for line in text.getvalue().splitlines()]
    assert said == [f"rows: {result.rows}/{result.rows}",
                    f"correction: {profile_module.FITTED_ON}/{profile_module.FITTED_ON}", "validation: 12/12"]
    validation = result.validation
    assert validation.n == 12 and validation.noise_mape == 0
    assert validation.kendall > 0.98  # two of equal cost may differ in the last digit
    assert validation.mape == pytest.approx(0, abs=1e-9) == abs(validation.bias)
    assert table.meta.validation == validation and table.meta.method == "measured"
    assert result.correction.scale == pytest.approx(1)
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


def test_the_correction_of_a_known_network_is_fitted_on_a_few_copies_of_it(tiny: Layout, tmp_path: Path) -> None:
    at = restrict(tiny, [slot.ops[:1] for slot in tiny.slots])
    keys = plan(at, sampling.smallest(at))
    result = profile(at, tmp_path / "t.json", device=Clockwork())
    assert result.correction and result.correction.n == profile_module.COPIES == 4
    table = LatencyTable.load(tmp_path / "t.json")
    network = Subnet(keys)
    whole = CALL_MS + sum(map(known_ms, [network.stem, *network.blocks, network.head]))
    assert sum(table.ms_many(keys)) == pytest.approx(whole)


def test_in_processes_of_its_own_a_profile_finds_the_same(tiny: Layout, tmp_path: Path) -> None:
    apart = Clockwork()
    apart.fresh = True
    results = [profile(tiny, tmp_path / f"{name}.json", device=device, validate=3)
               for name, device in (("here", Clockwork()), ("apart", apart))]
    here, there = (LatencyTable.load(tmp_path / f"{name}.json") for name in ("here", "apart"))
    rows = [{key: row.ms for key, row in table.rows.items()} for table in (here, there)]
    assert rows[1] == pytest.approx(rows[0])
    assert there.meta.yardsticks == here.meta.yardsticks
    assert results[0].validation.mape == results[1].validation.mape == pytest.approx(0, abs=1e-9)
    assert len(apart.measured) < 5  # all but a few were prepared in other processes


def test_a_second_profile_measures_nothing_and_remeasure_everything(tiny: Layout, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    rows = profile(tiny, path, device=Clockwork()).measured
    before = path.read_text()
    again = Clockwork()
    assert profile(tiny, path, device=again).measured == 0
    assert again.measured == [] and path.read_text() == before
    assert profile(tiny, path, device=Clockwork(), remeasure=True).measured == rows


def test_a_killed_profile_continues_with_the_missing_rows(tiny: Layout, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_module, "CHUNK", 4)
    path, keys = tmp_path / "t.json", candidates(tiny)
    with pytest.raises(KeyboardInterrupt):
        profile(tiny, path, device=Clockwork(stop_after=10))
    assert len(LatencyTable.load(path).rows) == 8
    wanted = len(LatencyTable("t", Meta(device="clockwork", align=32)).missing(keys))
    assert profile(tiny, path, device=Clockwork()).measured == wanted - 8
    assert LatencyTable.load(path).missing(keys) == []


def test_a_second_layout_keeps_the_rows_of_the_first(tiny: Layout, tiny_space: Space, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    first = profile(tiny, path, device=Clockwork())
    second = profile(layout(tiny_space, Task(32, 3, 4)), path, device=Clockwork())
    assert second.rows == first.rows + second.measured
    labels = LatencyTable.load(path).meta.corrections
    assert sorted(label.partition(" (")[0] for label in labels) == ["tiny at 16", "tiny at 32"]


def test_rows_of_two_machines_never_share_a_table(tiny: Layout, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    profile(tiny, path, device=Clockwork())
    with pytest.raises(UserError, match=r"t\.json: processor was 'gears' and is 'cogs' now: .*out.*remeasure"):
        profile(tiny, path, device=Clockwork("cogs"))
    profile(tiny, path, device=Clockwork("cogs"), remeasure=True)
    assert LatencyTable.load(path).meta.processor == "cogs"


def test_a_table_is_filled_by_one_process_at_a_time(tiny: Layout, tmp_path: Path) -> None:
    with (tmp_path / ".t.json.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("4711\n")
        file.flush()
        with pytest.raises(UserError, match=r"t\.json: is being filled by process 4711; wait for it, or .* out"):
            profile(tiny, tmp_path / "t.json", device=Clockwork())
    assert profile(tiny, tmp_path / "t.json", device=Clockwork()).measured


def test_a_table_that_hides_a_shipped_one_begins_with_its_rows(tiny: Layout, tiny_space: Space, tmp_path: Path,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    shipped, own = tmp_path / "shipped", Path("latency_tables") / "clockwork.json"
    monkeypatch.setattr(profile_module, "folder", lambda kind: shipped)
    monkeypatch.chdir(tmp_path)
    there = profile(tiny, shipped / own.name, device=Clockwork()).rows
    before = (shipped / own.name).read_bytes()
    other = layout(tiny_space, Task(32, 3, 4))
    assert profile(other, own, device=Clockwork()).rows > there  # at another size: none is measured twice
    assert LatencyTable.load(own).missing(candidates(tiny)) == [] and (shipped / own.name).read_bytes() == before
    elsewhere = profile(other, tmp_path / own.name, device=Clockwork())
    assert elsewhere.rows == elsewhere.measured  # with a path of its own it hides nothing
    own.unlink()
    fresh = profile(other, own, device=Clockwork("cogs"))
    assert fresh.rows == fresh.measured  # rows of two machines never share a table


def test_a_difference_below_zero_becomes_the_operator_alone_and_is_flagged(tiny: Layout, tmp_path: Path) -> None:
    result = profile(tiny, tmp_path / "t.json", device=Clockwork(slack=0.19))
    table = LatencyTable.load(tmp_path / "t.json")
    flagged = [row for row in table.rows.values() if row.how == "flagged"]
    assert result.flagged == len(flagged) > 0
    assert {(row.hidden, round(row.raw_ms, 6)) for row in flagged} == {(8, round(0.18 - 0.19 + CALL_MS, 6))}
    assert every(row.ms > 0 for row in table.rows.values())


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
    assert result.rows == len(table.rows) == 1 + 2 + 4  # stem, two widths, a head at four numbers of classes
    assert every(0 < row.ms < 1000 and row.n > 0 for row in table.rows.values())
    assert table.meta.runtime == "onnxruntime" and table.meta.processor


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
    (label,) = table.meta.corrections
    known = Correction(scale=1.5, per_op_ms=0.25, n=24)
    table.meta.corrections[label] = known
    table.save(path)
    device = Networks()
    assert profile(tiny_exits, path, device=device).measured == 4  # a head at four numbers of classes
    table = LatencyTable.load(path)
    exits = [row for key, row in table.rows.items() if key.is_exit]
    assert device.networks == 0 and table.meta.corrections == {label: known} and len(exits) == 4
    assert every(row.ms == 1.5 * row.raw_ms + 0.25 for row in exits)
    device = Networks()
    assert profile(tiny_exits, path, device=device).measured == 0 and device.networks == len(device.measured) == 0


@pytest.mark.parametrize("stop_at", [1, 20])
def test_interrupted_in_the_correction_a_profile_corrects_its_rows_later(tiny: Layout, tmp_path: Path,
                                                                         stop_at: int) -> None:
    whole, path = Networks(), tmp_path / "t.json"
    profile(tiny, tmp_path / "whole.json", device=whole)
    with pytest.raises(KeyboardInterrupt):
        profile(tiny, path, device=Networks(stop_at))
    table = LatencyTable.load(path)
    assert table.missing(candidates(tiny)) == [] and profile_module.unfinished(tiny, table)
    assert table.meta.corrections == {}
    rest = Networks()
    assert profile(tiny, path, device=rest).measured == 0
    done, expected = (LatencyTable.load(tmp_path / f"{name}.json") for name in ("t", "whole"))
    assert not profile_module.unfinished(tiny, done) and done.meta.begun == {} and done.meta.uncorrected == []
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
    validation = profile(tiny, path, device=rest, validate=20).validation
    assert rest.networks == 3 + 12 and validation.n == 20
    assert validation.mape == pytest.approx(0, abs=1e-9)


def test_measuring_anew_measures_networks_anew_that_were_begun(tiny: Layout, tmp_path: Path) -> None:
    whole, path = Networks(), tmp_path / "t.json"
    profile(tiny, tmp_path / "whole.json", device=whole)
    with pytest.raises(KeyboardInterrupt):
        profile(tiny, path, device=Networks(20))
    assert LatencyTable.load(path).meta.begun
    device = Networks()
    profile(tiny, path, device=device, remeasure=True)
    assert device.networks == whole.networks


def test_how_long_a_profile_takes_is_said_before(tiny: Layout, tiny_exits: Layout, tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SECONDS_A_GRAPH": 0.0, "SECONDS_A_NETWORK": 0.0, "PREPARED_S": 1.0}.items():
        monkeypatch.setattr(estimate, name, value)
    empty = LatencyTable("t", Meta(device="clockwork", align=32))
    rows = len(empty.missing(candidates(tiny)))
    # a second a graph: the rows, pairs on the maps of 8 channels and of 16; then 24 networks twice
    assert profile_module.estimate_s(tiny, empty, Clockwork()) == rows + 2 + 2 * 24
    path = tmp_path / "t.json"
    profile(tiny, path, device=Clockwork())
    table = LatencyTable.load(path)
    assert profile_module.estimate_s(tiny, table, Clockwork()) == 0.0
    assert profile_module.estimate_s(tiny_exits, table, Clockwork()) == 4 + 1  # four heads behind one map
