"""Ethos-U rows: what of a compiled network is an operator's own, and that the sum of the rows is the whole."""

import csv
import importlib.util
import random
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
from every import every
from torch import nn

from nas import sampling
from nas.arch import Op
from nas.errors import UserError
from nas.files import folder, shipped
from nas.latency import profile as profile_module
from nas.latency.devices import ethos_u
from nas.latency.devices.ethos_u import TARGETS, EthosU, own_cycles
from nas.latency.devices.vela import Report
from nas.latency.meta import Meta
from nas.latency.predict import predict
from nas.latency.profile import profile
from nas.latency.table import LatencyTable
from nas.lower.onnx import export
from nas.lower.tflite import lower
from nas.ops.layers import ConvBN
from nas.plan import Layout, OpKey, Task, candidates, layout, plan
from nas.space import Space
from nas.subnet import Subnet

MISSING = not all(importlib.util.find_spec(package) for package in ("ethosu", "tflite"))
needs_vela = pytest.mark.skipif(MISSING, reason="needs the extra: pip install '.[npu]'")
REPORT = Report(100, ((1, "Conv2D", 10), (3, "MemoryCopy", 7), (2, "Conv2D", 30), (2, "Relu", 0), (4, "Conv2D", 53)),
                0, (), 640, 4096)


def test_own_cycles_leave_out_the_convolutions_around() -> None:
    assert own_cycles(REPORT, first=False, last=False, what="x") == 30 + 7
    assert own_cycles(REPORT, first=True, last=False, what="x") == 10 + 30 + 7
    assert own_cycles(REPORT, first=False, last=True, what="x") == 30 + 7 + 53


def test_a_convolution_around_that_is_none_is_no_row() -> None:
    joined = Report(100, ((1, "Conv2D", 10), (2, "Conv2D", 30), (3, "Add", 53)), 0, (), 1, 1)
    with pytest.raises(UserError, match=r"^stem: Vela joins it"):
        own_cycles(joined, first=False, last=False, what="stem")
    free = Report(2, ((1, "Conv2D", 1), (2, "Relu", 0), (3, "Conv2D", 1)), 0, (), 1, 1)
    with pytest.raises(UserError, match=r"^stem: Vela counts no cycles"):
        own_cycles(free, first=False, last=False, what="stem")


def test_without_the_extra_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(ethos_u, "version", missing)
    with pytest.raises(UserError, match=r"pip install '\.\[npu\]'"):
        EthosU("ethos-u55-128")
    monkeypatch.setattr(ethos_u, "version", lambda name: "5.1.0")
    with pytest.raises(UserError, match=r"ethos-u-vela 5\.1\.0 is installed, 5\.2\.\* is needed"):
        EthosU("ethos-u55-128")


@pytest.mark.parametrize("options", [{"batch": 2}, {"threads": 2}])
def test_an_npu_runs_one_image(options: dict[str, int]) -> None:
    with pytest.raises(UserError, match="one image at a time"):
        EthosU("ethos-u55-128", **options)


def test_an_unknown_npu_is_named(tiny: Layout, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="device=ethos-u55-129: did you mean 'ethos-u55-128'"):
        profile(tiny, tmp_path / "t.json", device="ethos-u55-129")


@needs_vela
@pytest.mark.parametrize("target", TARGETS)
def test_rows_add_up_to_whole_networks(target: str, tiny: Layout, tmp_path: Path,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """In milliseconds of that system: with another clock or memory the two sides would not agree with each other."""
    monkeypatch.setattr(profile_module, "HELD_OUT", 2)
    path = tmp_path / f"{target}.json"
    result = profile(tiny, path, device=target, validate=4)
    table = LatencyTable.load(path)
    assert result.rows == result.measured == len(table.rows) and result.correction is None
    assert {row.how for row in table.rows.values()} == {"compiled"}
    assert every(row.ms == row.raw_ms == row.p10_ms == row.p90_ms for row in table.rows.values())
    validation = result.validation
    assert (validation.noise_mape, validation.noise_kendall, validation.drift) == (0, 1, 1)
    assert 0 < validation.mape < 0.05  # 0 would be the same figure twice
    meta = table.meta
    assert meta.device == target and "not a measurement" in meta.method and meta.runtime_version[:4] == "5.2."
    assert (meta.system_config, meta.memory_mode) == (TARGETS[target].system_config, TARGETS[target].memory_mode)


@needs_vela
def test_a_second_profile_compiles_nothing_and_other_conditions_are_refused(
        tiny: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, device = tmp_path / "npu.json", EthosU("ethos-u55-128")
    small = Layout(tiny.space, tiny.task, tiny.stem, tiny.slots[:1], OpKey(tiny.head.op, 8, 4, 1, 16))
    first = profile(small, path, device=device)
    before = path.read_text()
    monkeypatch.setattr(device, "compile", lambda *args: pytest.fail("compiled again"))
    assert profile(small, path, device=device).measured == 0 and path.read_text() == before
    with pytest.raises(UserError, match=r"npu\.json: device was 'ethos-u55-128' and is 'ethos-u85-256' now"):
        profile(small, path, device="ethos-u85-256")
    assert first.measured == len(LatencyTable.load(path).rows)


@needs_vela
def test_rows_are_the_same_in_another_process_and_whatever_was_drawn_before(tiny: Layout) -> None:
    key = OpKey(Op.parse("ghost(cheap=3, hidden=16, se=1)"), 8, 8, 1, 16)
    torch.manual_seed(1)
    first = EthosU("ethos-u85-256").bench(tiny).alone(key)
    torch.manual_seed(2)
    assert EthosU("ethos-u85-256").bench(tiny).alone(key) == first


@needs_vela
def test_what_falls_to_the_cpu_is_an_error_that_names_the_row() -> None:
    far = nn.Sequential(ConvBN(8, 8), ConvBN(8, 8, 3, 4, depthwise=True), ConvBN(8, 8))
    with pytest.raises(UserError, match=r"^some row: Vela leaves DepthwiseConv2D to the CPU.*not for ethos-u55-128"):
        EthosU("ethos-u55-128").report(far, "some row", in_ch=8, size=16)
    assert EthosU("ethos-u85-256").report(far, "some row", in_ch=8, size=16).cycles > 0  # which can do it


@needs_vela
@pytest.mark.parametrize("damage", [lambda model: b"", lambda model: b"garbage" * 99, lambda model: model[:300]])
def test_a_file_that_kills_the_compiler_is_an_error_and_the_next_one_compiles(damage: Any) -> None:
    device = EthosU("ethos-u55-128")
    model = lower(ConvBN(3, 8), in_ch=3, size=8)
    expected = device.compile(model, "sound")
    with pytest.raises(UserError, match=r"^row 7: Vela"):
        device.compile(damage(model), "row 7")
    assert device.compile(model, "sound") == expected


@needs_vela
@pytest.mark.parametrize("target", ["ethos-u55-128", "ethos-u85-256"])
def test_velas_own_command_line_says_the_same(target: str, tmp_path: Path) -> None:
    file = tmp_path / "net.tflite"
    file.write_bytes(lower(nn.Sequential(ConvBN(8, 24), ConvBN(24, 24, 3, depthwise=True)), in_ch=8, size=16))
    told = ["--accelerator-config", target, "--system-config", TARGETS[target].system_config, "--memory-mode",
            TARGETS[target].memory_mode, "--config", "Arm/vela.ini", "--output-dir", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "ethosu.vela", str(file), *told], check=True, capture_output=True)
    with next(tmp_path.glob("*_summary_*.csv")).open(newline="") as summary:
        expected = next(csv.DictReader(summary))
    device = EthosU(target)
    report = device.compile(file.read_bytes(), "net")
    assert report.cycles == int(float(expected["cycles_total"]))
    assert device.ms(report.cycles) == pytest.approx(1e3 * float(expected["inference_time"]))
    assert report.sram_bytes / 1024 == pytest.approx(float(expected["sram_memory_used"]))
    (compiled,) = tmp_path.glob("*_vela.tflite")
    assert report.flash_bytes == compiled.stat().st_size > 1024 * float(expected["off_chip_flash_memory_used"])


def shipped_table(target: str) -> LatencyTable:
    return LatencyTable.load(folder("latency_tables") / f"{target}.json")


@pytest.mark.parametrize("target", TARGETS)
def test_shipped_tables_cover_the_shipped_spaces_in_whole_cycles(target: str) -> None:
    table = shipped_table(target)
    for space in shipped("search_spaces", ".yaml"):
        for size in (224, 32):
            keys = candidates(layout(Space.load(space), Task(size, 3, 10), exits=True))
            assert table.missing(keys) == [], (space, size)
    for preset in shipped("search_spaces/presets", ".yaml"):
        for size, classes in ((224, 1000), (32, 10)):
            assert table.missing(candidates(layout(Space.load(preset), Task(size, 3, classes)))) == [], (preset, size)
    cycles = [row.ms * table.meta.core_clock_mhz * 1e3 for row in table.rows.values()]
    assert max(abs(value - round(value)) for value in cycles) < 1e-6 and min(cycles) > 100
    assert (table.meta.system_config, table.meta.memory_mode) == (TARGETS[target].system_config, "Shared_Sram")


@needs_vela
@pytest.mark.parametrize("target", TARGETS)
def test_shipped_rows_are_what_is_compiled_today(target: str) -> None:
    table, device = shipped_table(target), EthosU(target)
    if table.meta.runtime_version != device.version:
        pytest.skip(f"the table is of Vela {table.meta.runtime_version}, here is {device.version}")
    plan = layout(Space.load("ghost"), Task(32, 3, 10))
    small = [key for key in candidates(plan) if key in table.rows and key.in_ch < 50]
    keys = random.Random(0).sample(small, 4)
    assert device.bench(plan).rows(keys) == {key: table.rows[key] for key in keys}


@needs_vela
def test_a_file_costs_what_vela_counts_for_the_network(tmp_path: Path, tiny: Layout) -> None:
    costs = LatencyTable("npu", Meta(device="ethos-u55-128"))
    device = EthosU("ethos-u55-128")
    network = Subnet(plan(tiny, sampling.sample(tiny, random.Random(1))))
    export(network, tmp_path / "m.onnx", in_ch=3, size=16, metadata={})
    noise = torch.randn((1, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    whole = device.ms(device.compile(lower(network, in_ch=3, size=16, calibration=[noise]), "whole").cycles)
    result = predict(tmp_path / "m.onnx", costs)
    assert result.ms == pytest.approx(whole) == pytest.approx(sum(operator.ms for operator in result.operators))
    assert result.operators[0].op in ("CONV_2D", "PAD") and "estimate" in result.method


@needs_vela
def test_a_file_with_an_operator_without_a_rule_is_one_line(tmp_path: Path) -> None:
    from nas.lower.onnx import through_torch

    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AvgPool2d(2))
    (tmp_path / "m.onnx").write_bytes(through_torch(module, in_ch=3, size=16).SerializeToString())
    with pytest.raises(UserError, match=r"m\.onnx: int8 TFLite: no rule for the operator AveragePool"):
        predict(tmp_path / "m.onnx", LatencyTable("npu", Meta(device="ethos-u55-128")))
