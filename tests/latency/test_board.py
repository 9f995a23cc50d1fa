"""A user's own board by an .ini file: what is read, what is refused, and what the table keeps of it."""

import hashlib
import importlib.util
from pathlib import Path

import pytest
import yaml
from tiny_space import TINY

from nas.cli import main
from nas.errors import UserError
from nas.latency.devices import board, ethos_u, open_device
from nas.latency.devices.board import ACCELERATORS, TARGETS, Target, read_board, recorded_target
from nas.latency.meta import Conditions
from nas.latency.profile import profile
from nas.latency.table import LatencyTable
from nas.plan import Layout, OpKey

MISSING = not all(importlib.util.find_spec(package) for package in ("ethosu", "tflite"))
needs_vela = pytest.mark.skipif(MISSING, reason="needs the extra: pip install '.[npu]'")
INI = """; a board
[nas]
accelerator=ethos-u55-128
system_config=Slow
memory_mode=Mine

[System_Config.Fast]
core_clock=500e6
axi0_port=Sram
axi1_port=OffChipFlash
Sram_clock_scale=1.0
Sram_burst_length=32
Sram_read_latency=32
Sram_write_latency=32
OffChipFlash_clock_scale=0.125
OffChipFlash_burst_length=128
OffChipFlash_read_latency=64

[System_Config.Slow]
inherit=System_Config.Fast
core_clock=200e6

[Memory_Mode.Mine]
const_mem_area=Axi1
arena_mem_area=Axi0
cache_mem_area=Axi0
"""


def written(folder: Path, text: str = INI, name: str = "mine.ini") -> Path:
    (folder / name).write_text(text)
    return folder / name


def small(tiny: Layout) -> Layout:
    return Layout(tiny.space, tiny.task, tiny.stem, tiny.slots[:1], OpKey(tiny.head.op, 8, 4, 1, 16))


def test_a_board_is_what_its_sections_say_inherited_ones_included(tmp_path: Path) -> None:
    target = read_board(written(tmp_path))
    assert (target.name, target.architecture, target.macs, target.clock_hz) == ("mine", "EthosU55", 128, 200e6)
    assert target.ini.startswith("[System_Config.Slow]\ncore_clock=200e6\naxi0_port=Sram\n")
    assert "Fast" not in target.ini and "inherit" not in target.ini and target.arena is None
    assert target.ini.endswith("[Memory_Mode.Mine]\nconst_mem_area=Axi1\narena_mem_area=Axi0\ncache_mem_area=Axi0\n")
    assert target.config.startswith("[architecture]\nmacs=128\ncores=1\n[vela]\nsystem_config_name=Slow\n")
    limited = read_board(written(tmp_path, f"{INI}arena_cache_size=65536\n"))
    assert limited.arena == "65536"


def test_a_table_remembers_the_board_and_its_comments_do_not_matter(tmp_path: Path) -> None:
    target = read_board(written(tmp_path))
    meta = target.conditions("5.2.0")
    assert recorded_target(meta) == target and (meta.device, meta.runtime_version) == ("mine", "5.2.0")
    assert meta.vela_ini_sha256 == hashlib.sha256(target.ini.encode()).hexdigest()[:16]
    same, other = (read_board(written(tmp_path, INI.replace(*change))).conditions("5.2.0")
                   for change in (("; a board", "; an other comment"), ("200e6", "201e6")))
    assert same == meta and str(other.change_since(meta)).startswith("vela_ini_sha256 was ")
    assert recorded_target(Conditions(device="ethos-u55-128")) == TARGETS["ethos-u55-128"]
    assert recorded_target(Conditions(device="cpu")) is None
    with pytest.raises(UserError, match=r"^table of mine: meta: accelerator, .* not as nas profile wrote them"):
        recorded_target(meta.model_copy(update={"accelerator": "ethos-u1"}))


def test_two_cores_are_twice_the_macs() -> None:
    assert Target("x", "ethos-u65-512", "s", "m", "[s]\n").macs == 512 and len(ACCELERATORS) == 11


@pytest.mark.parametrize(("old", "new", "message"), [
    ("ethos-u55-128", "ethos-u55-129", r"accelerator ethos-u55-129: did you mean 'ethos-u55-128'\? known: "),
    ("accelerator=ethos-u55-128\n", "", r"\[nas\] accelerator: missing; the section \[nas\] needs accelerator, sys"),
    ("[nas]", "[other]", r"\[nas\] accelerator: missing"),
    ("memory_mode=Mine", "memory_node=Mine", r"\[nas\] memory_node: unknown key; did you mean 'memory_mode'"),
    ("memory_mode=Mine", "memory_mode=M", r"no section \[Memory_Mode\.M\]; there are: Memory_Mode\.Mine$"),
    ("=System_Config.Fast", "=System_Config.F", r"no section \[System_Config\.F\]; there are: System_Config\.Fast, "),
    ("core_clock=200e6", "core_clock=fast", r"\[System_Config\.Slow\] core_clock: 'fast' is not a number from 0$"),
    ("core_clock=200e6", "core_clock=0", "core_clock: missing or 0; in Hz, for example core_clock=500e6$"),
    ("Sram_read_latency", "sram_read_latency", "sram_read_latency: unknown key, which Vela would pass over; did you "
                                               "mean 'Sram_read_latency'"),
    ("core_clock=200e6", "core_clock=200e6\ncore_clock=1", "not an .ini file: .* option 'core_clock'"),
    ("; a board", "a board", "not an .ini file: File contains no section headers"),
])
def test_a_mistake_is_one_line_with_the_file(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in INI
    path = written(tmp_path, INI.replace(old, new))
    with pytest.raises(UserError, match=message) as caught:
        read_board(path)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"{path}: ")


def test_a_file_that_is_none_and_a_name_that_means_something_else(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.ini: cannot be read: No such file"):
        read_board(tmp_path / "none.ini")
    (tmp_path / "bytes.ini").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"bytes\.ini: cannot be read: not UTF-8 text"):
        read_board(tmp_path / "bytes.ini")
    for name in ("ethos-u85-256", "cpu-int8", "gpu"):
        with pytest.raises(UserError, match=f"{name} is another target's name: rename the file"):
            open_device(str(written(tmp_path, name=f"{name}.ini")))
    with pytest.raises(UserError, match="an NPU runs int8 only: leave out precision"):
        open_device(str(written(tmp_path)), precision="fp32")


def test_inheritance_in_a_circle_ends(tmp_path: Path) -> None:
    path = written(tmp_path, INI.replace("[System_Config.Fast]", "[System_Config.Fast]\ninherit=System_Config.Slow"))
    assert read_board(path).clock_hz == 200e6


@needs_vela
def test_a_table_of_a_board_can_be_compiled_for_again(tiny: Layout, tmp_path: Path) -> None:
    """Twice Vela's clock is the same cycles in half the time: the clock scales of the memories are relative to it."""
    table_path = tmp_path / "mine.json"
    slow, fast = (open_device(str(written(tmp_path, INI.replace("200e6", clock)))) for clock in ("200e6", "400e6"))
    profile(small(tiny), table_path, device=slow)
    table = LatencyTable.load(table_path)
    assert (table.name, table.meta.device, table.meta.core_clock_mhz) == ("mine", "mine", 200)
    again = ethos_u.compiler_of_table(table.meta)
    key = next(iter(table.rows))
    assert again is not None and again.bench(tiny).alone(key) == table.rows[key]
    assert isinstance(fast.bench(tiny).alone(key).ms, float)
    assert fast.bench(tiny).alone(key).ms == pytest.approx(table.rows[key].ms / 2)
    with pytest.raises(UserError, match=r"mine\.json: vela_ini_sha256 was '[0-9a-f]{16}' and is"):
        profile(small(tiny), table_path, device=fast)
    with pytest.raises(UserError, match=r"run: profile\(device='mine\.ini', space='SPACE'"):
        table.ms(OpKey(tiny.head.op, 9, 4, 1, 16))


@needs_vela
def test_velas_own_system_in_a_file_costs_what_it_costs(tiny: Layout, tmp_path: Path) -> None:
    target = TARGETS["ethos-u55-128"]
    head = (f"[nas]\naccelerator=ethos-u55-128\nsystem_config={target.system_config}\n"
            f"memory_mode={target.memory_mode}\n")
    device = open_device(str(written(tmp_path, head + board._velas_ini())))
    assert device.bench(tiny).alone(tiny.stem) == open_device("ethos-u55-128").bench(tiny).alone(tiny.stem)


@needs_vela
def test_what_vela_itself_refuses_is_one_line_with_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, INI.replace("const_mem_area=Axi1\n", ""))
    with pytest.raises(UserError, match=r"mine\.ini: Vela: Compilation failed: Readonly memory not configured$"):
        open_device(str(path))


@needs_vela
def test_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                             capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path)
    written(tmp_path, yaml.safe_dump(TINY), "tiny.yaml")
    words = ["--space", "tiny.yaml", "--size", "16", "--classes", "4", "--json"]
    with pytest.raises(SystemExit) as ended:
        main(["profile", "--device", "mine.ini", *words])
    assert ended.value.code == 0 and LatencyTable.load(tmp_path / "latency_tables/mine.json").meta.device == "mine"
    with pytest.raises(SystemExit) as ended:
        main(["profile", "--device", "yours.ini", *words])
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == "nas: yours.ini: cannot be read: No such file or directory"
