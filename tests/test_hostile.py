"""Whatever a parser is given, it reads it or refuses it in one line that names the file: never a traceback."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hostile import (
    SNIPPETS,
    TEXTS,
    VALUES,
    json_files,
    read_or_refused,
    slowly_tried,
    torn,
    tried,
    yaml_files,
)
from hypothesis import given
from hypothesis import strategies as st
from own_ops import DOUBLE, forgotten
from tiny_space import TINY

from nas.arch import Arch, Op
from nas.cli.output import checked_width, named_budgets
from nas.config.search import Config, default_run_dir, resolve
from nas.files import plain
from nas.latency import costs
from nas.latency.devices import board
from nas.latency.meta import Meta
from nas.latency.table import LatencyTable, Row
from nas.latency.validate import validate
from nas.ops import user_files
from nas.ops.registry import families
from nas.pipeline import train_one
from nas.plan import OpKey, Task, candidates, layout, plan
from nas.run.settings import Baseline
from nas.space import Space

sys.path.append(str(Path(__file__).resolve().parents[1] / "experiments"))
import results

PLAN = layout(Space.parse(TINY, "tiny.yaml"), Task(16, 3, 4))
SHIPPED = Path(costs.folder("latency_tables"))
SETTINGS = {"space": "ghost", "target": ["cpu"], "budget_ms": [0.5], "train": {"lr": 0.01, "warmup_epochs": 2},
            "gates": {"latency": "dual", "dual": {"rho": 2.0}}, "exits": {"method": "boost"}, "prune": "blocks"}
ARCH = {"space": "tiny", "size": 16, "ops": ["ghost(cheap=3, hidden=8, se=0)", "skip", "mbconv(hidden=16, se=0)",
                                            "skip"], "exits": []}
SAMPLES = [{"id": f"n{i}", "arch": ARCH, "onnx": f"n{i}.onnx", "ms": 0.1 * i} for i in range(1, 5)]
MEASURED = b"id,ms\nn1,0.11\nn2,0.19\nn3,0.33\nn4,0.41\n"
BOARD = b"""[nas]
accelerator=ethos-u55-128
system_config=Mine
memory_mode=Mine
[System_Config.Mine]
inherit=System_Config.Base
Sram_clock_scale=1.0
[System_Config.Base]
core_clock=400e6
axi0_port=Sram
axi1_port=OffChipFlash
[Memory_Mode.Mine]
const_mem_area=Axi1
arena_mem_area=Axi0
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


def put(place: Path, name: str, content: bytes) -> Path:
    (place / name).write_bytes(content)
    return place / name


@tried
@given(content=yaml_files(TINY))
def test_a_space(place: Path, content: bytes) -> None:
    path = put(place, "space.yaml", content)
    space = read_or_refused(lambda: Space.load(str(path)), "space.yaml")
    if space is not None:
        assert Space.parse(yaml.safe_load(yaml.safe_dump(space.model_dump())), str(path)) == space
        read_or_refused(lambda: layout(space.scaled(0.5), Task(16, 3, 4), exits=True), "space.yaml")


@tried
@given(name=st.text(max_size=12) | st.sampled_from([f"ghost@{t}" for t in TEXTS]))
def test_the_name_of_a_space(name: str) -> None:
    found = read_or_refused(lambda: Space.load(name), name.partition("@")[0])
    assert found is None or Space.load(found.name) == found


@tried
@given(content=json_files(ARCH) | json_files({"arch": ARCH, "id": "x"}))
def test_an_arch(place: Path, content: bytes) -> None:
    path = put(place, "arch.json", content)
    arch = read_or_refused(lambda: train_one.read_arch(path), "arch.json")
    if arch is not None:
        assert Arch.from_json(json.loads(json.dumps(arch.to_json()))) == arch and len(arch.id) == 12
        read_or_refused(lambda: plan(PLAN, arch), "architecture", arch.space, "slot")


@tried
@given(text=torn(b"ghost(cheap=3, hidden=72, se=1)").map(lambda found: found.decode("latin-1")))
def test_an_operator(text: str) -> None:
    op = read_or_refused(lambda: Op.parse(text), "operator")
    assert op is None or Op.parse(str(op)) == op


def a_table() -> dict[str, Any]:
    rows = [Row.of(key, ms=0.1 + i / 100, raw_ms=0.1, p10_ms=0.1, p90_ms=0.2, n=9, how="measured").model_dump()
            for i, key in enumerate(LatencyTable("none", Meta(device="none", align=8)).missing(candidates(PLAN))[:12])]
    validation = {"mape": 0.02, "n": 40, "noise_mape": 0.01, "space": "ghost", "size": 32}
    meta = {"device": "cpu", "align": 8, "threads": 1, "batch": 1, "precision": "fp32", "validation": validation}
    return {"kind": "table", "name": "mine", "meta": meta, "rows": rows}


@tried
@given(content=json_files(a_table()))
def test_a_table(place: Path, content: bytes) -> None:
    path = put(place, "table.json", content)
    found = read_or_refused(lambda: costs.load(str(path)), "table.json")
    assert costs._describe("table", path).name == "table"
    if found is not None:
        assert isinstance(found, LatencyTable) and all(0 < found.ms(key) < math.inf for key in found.rows)
        read_or_refused(lambda: found.require(candidates(PLAN), "tiny", 16), "table.json")
        found.save(place / "again.json")
        assert LatencyTable.load(place / "again.json").rows == found.rows


MODEL = json.loads((SHIPPED / "gpu-v100.json").read_bytes())
KEYS = [*candidates(PLAN)[:3], OpKey(Op.of("conv_bn", kernel=3), 8, 8, 1, 16)][:3]


@slowly_tried
@given(content=json_files(MODEL))
def test_a_kernel_model(place: Path, content: bytes) -> None:
    path = put(place, "model.json", content)
    found = read_or_refused(lambda: costs.load(str(path)), "model.json")
    if found is not None:
        prices = read_or_refused(lambda: found.ms_many(KEYS), found.name)
        assert prices is None or all(0 < ms < math.inf for ms in prices)


@tried
@given(content=yaml_files(SETTINGS), kind=st.sampled_from((Config, Baseline)))
def test_a_file_of_settings(place: Path, content: bytes, kind: type[Config]) -> None:
    path = put(place, "config.yaml", content)
    flags = {} if b"target" in content else {"target": ["cpu"]}
    found = read_or_refused(lambda: resolve(path, [], flags, kind), "config.yaml", "target")
    if found is not None:
        assert default_run_dir(found).parent == Path("runs")
        recorded = json.loads(json.dumps(found.to_json(), allow_nan=False))
        assert kind.model_validate(recorded) == found


@tried
@given(key=st.sampled_from([*Config.model_fields, "train.lr", "gates.dual.lr", "exits.lose", "x", "", ".", "train"]),
       value=st.text(max_size=12) | st.sampled_from([s.decode("latin-1")[:200] for s in SNIPPETS]) | VALUES.map(str))
def test_a_setting(key: str, value: str) -> None:
    flags = {} if key == "target" else {"target": ["cpu"]}
    found = read_or_refused(lambda: resolve(None, [f"{key}={value}"], flags), key or "=")
    if found is not None:
        assert Config.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False)), "config.json") == found


@tried
@given(texts=st.lists(st.text(max_size=8) | st.sampled_from([*TEXTS, "cpu=1", "cpu=2", "=1", "0.5", "inf"])
                      | st.floats().map(str), max_size=3), width=st.floats())
def test_budgets_and_a_width(texts: list[str], width: float) -> None:
    found = read_or_refused(lambda: named_budgets(texts), "--budget-ms")
    if found is not None:
        assert all(0 < ms < math.inf for ms in (*found[0], *found[1].values()))
        assert named_budgets([*map(repr, found[0]), *(f"{name}={ms!r}" for name, ms in found[1].items())]) == found
    assert read_or_refused(lambda: checked_width(width), "--width") in (None, width)


@tried
@given(samples=json_files(SAMPLES), measured=st.just(MEASURED))
def test_samples(place: Path, samples: bytes, measured: bytes) -> None:
    _validated(place, samples, measured)


@tried
@given(samples=st.just(json.dumps(SAMPLES).encode()), measured=torn(MEASURED) | st.binary(max_size=80))
def test_measurements(place: Path, samples: bytes, measured: bytes) -> None:
    _validated(place, samples, measured)


def _validated(place: Path, samples: bytes, measured: bytes) -> None:
    files = put(place, "samples.json", samples), put(place, "measured.csv", measured)
    found = read_or_refused(lambda: validate("gpu-v100", *files), "samples.json", "measured.csv")
    if found is not None:
        assert json.loads(json.dumps(plain(found), allow_nan=False)) == vars(found)


@tried
@given(content=torn(BOARD) | st.binary(max_size=80))
def test_a_board(place: Path, content: bytes) -> None:
    path = put(place, "mine.ini", content)
    found = read_or_refused(lambda: board.read_board(path), "mine.ini")
    if found is not None:
        assert found.clock_hz > 0 and found.config and found.macs == 128 and found.arena in (None, found.arena)
        assert board.recorded_target(found.conditions("5.2.0")) == found


LINES = DOUBLE.splitlines(keepends=True)


@tried
@given(content=st.lists(st.sampled_from(LINES), max_size=4).map("".join).map(str.encode) | st.binary(max_size=40)
       | st.integers(0, len(LINES) - 1).map(lambda i: "".join([*LINES[:i], *LINES[i + 1:]]).encode())
       | st.integers(0, len(DOUBLE)).map(lambda end: DOUBLE[:end].encode())
       | st.sampled_from((DOUBLE.encode("utf-16"), b"\xff" + DOUBLE.encode(), DOUBLE.replace("hidden", "é").encode())))
def test_operators_of_ones_own(place: Path, content: bytes) -> None:
    path = put(place, "my_ops.py", content)
    with forgotten():
        found = read_or_refused(lambda: user_files.load([path]), "my_ops.py")
        if found is not None:
            (source,) = found
            assert source.content == content and source.operators and {*source.operators} <= {*families()}


@tried
@given(content=torn(b'{"settings": {"seed": 0}, "a": 1}\n{"settings": {"seed": 0}, "a": 2}\n') | st.binary(max_size=60))
def test_results(place: Path, content: bytes) -> None:
    path = put(place, "results.jsonl", content)
    lines = read_or_refused(lambda: results.standing(path, {"seed": 0}), "results.jsonl")
    if lines is not None:
        results.keep(place / "again.jsonl", lines)
        again = results.standing(place / "again.jsonl", {"seed": 0})
        assert json.dumps(again) == json.dumps(lines)  # by its text: NaN is not NaN
