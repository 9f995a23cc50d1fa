"""Which file a target is, and what is said of those that are not there."""

import json
from pathlib import Path
from typing import Any

import pytest

from nas.arch import Op
from nas.errors import UserError
from nas.latency import costs, devices
from nas.latency.devices import file_name, local_device
from nas.latency.devices.onnxruntime import Cpu
from nas.latency.meta import Meta
from nas.latency.table import LatencyTable, Row
from nas.plan import OpKey


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def save(name: str, **meta: object) -> LatencyTable:
    table = LatencyTable(name, Meta.model_validate({"device": "cpu"} | meta))
    table.save(Path("latency_tables") / f"{name}.json")
    return table


def test_the_users_folder_comes_first_and_a_path_is_a_path() -> None:
    save("mine", date="2026-01-01")
    assert costs.find("mine") == Path("latency_tables/mine.json")
    assert costs.load("mine").meta.date == "2026-01-01"
    assert costs.load("latency_tables/mine.json").name == "mine"


def test_an_unknown_target_lists_the_known_and_the_command() -> None:
    save("mine")
    with pytest.raises(UserError, match=r"target=mind: did you mean 'mine'\? known: .*: profile\(device='cpu', spa"):
        costs.load("mind")
    with pytest.raises(UserError, match=r"target=no/such.json: no such file"):
        costs.load("no/such.json")


def test_a_file_of_another_kind_is_refused() -> None:
    Path("x.json").write_text('{"kind": "recipe"}')
    with pytest.raises(UserError, match=r"x\.json: kind: expected .* got 'recipe'"):
        costs.load("x.json")


def test_targets_are_described_and_a_broken_one_hides_none() -> None:
    save("mine", processor="P", runtime="onnxruntime", batch=8, threads=2, method="measured")
    Path("latency_tables/broken.json").write_text("")
    listed = {target.name: target for target in costs.targets()}
    mine = listed["mine"]
    assert (mine.kind, mine.batch, mine.threads, mine.rows, mine.method) == ("table", 8, 2, 0, "measured")
    assert "broken.json" in str(listed["broken"].error)


CHECKED: list[tuple[dict[str, Any], str | None]] = [
    ({}, None),
    ({"validation": {"mape": 0.0123, "n": 30, "space": "ghost", "size": 32, "noise_mape": 0.01}},
     "1.2% off over 30 networks (ghost at 32), noise 1.0%"),
    ({"validation": {"mape": 0.2, "n": 4}}, "20.0% off over 4 networks"),
    ({"held_out": {"groups": {"mape_%": 10.41}}}, "10.4% off over held-out kernels"),
    ({"held_out": {"fitted_rows": {"mape_%": 4.5}}}, None)]


def test_a_target_says_how_far_off_it_was() -> None:
    for number, (meta, _) in enumerate(CHECKED):
        save(f"mine-{number}", **meta)
    listed = {target.name: target.checked for target in costs.targets() if target.name.startswith("mine-")}
    assert listed == {f"mine-{number}": said for number, (_, said) in enumerate(CHECKED)}


def written(meta: object) -> Path:
    """A table of these words, sound or not."""
    path = Path("mine.json")
    path.write_text(json.dumps({"kind": "table", "name": "mine", "meta": meta, "rows": []}))
    return path


@pytest.mark.parametrize(("key", "value", "says"), [
    ("device", None, "device: input should be a valid string (got None)"),
    ("align", 0, "align: input should be greater than or equal to 1 (got 0)"),
    ("threads", "2", "threads: input should be a valid integer (got '2')"),
    ("batch", 1.5, "batch: input should be a valid integer (got 1.5)"),
    ("precision", 8, "precision: input should be a valid string (got 8)"),
    ("weight_bits", 16, "weight_bits: input should be less than or equal to 8 (got 16)"),
    ("validation", {"mape": "?", "n": 3}, "validation.mape: input should be a valid number (got '?')"),
    ("validation", {"mape": 0.1}, "validation.n: missing"),
    ("held_out", [], "held_out: input should be "), ("load", "busy", "load: input should be "),
    ("corrections", {"tiny at 16": {"scale": 1.0}}, "corrections.tiny at 16.per_op_ms: missing"),
    ("yardsticks", {"tiny at 16": {"network_ms": [0.0]}},
     "yardsticks.tiny at 16.network_ms.0: input should be greater than 0 (got 0.0)"),
    ("own_operators", {"double": 3}, "own_operators.double: input should be a valid string (got 3)")])
def test_what_is_wrong_in_a_meta_is_one_line_with_file_key_and_value(key: str, value: object, says: str) -> None:
    path = written({"device": "cpu", key: value})
    with pytest.raises(UserError) as error:
        costs.load(str(path))
    assert str(error.value).startswith(f"mine.json: meta: {says}") and "\n" not in str(error.value)


def test_what_a_meta_says_beyond_what_is_read_stays(tmp_path: Path) -> None:
    said = {"device": "phone", "align": 8, "corrections": {"tiny at 16": None}, "mood": {"of": ["whoever", None]}}
    LatencyTable.load(written(said)).save(Path("again.json"))
    assert json.loads(Path("again.json").read_text())["meta"] == said


def test_names_of_files() -> None:
    assert file_name("cpu") == "cpu.json"
    assert file_name("cpu", precision="fp32") == "cpu.json"
    assert file_name("cpu", threads=2, batch=8) == "cpu-b8-t2.json"
    assert file_name("cpu", precision="int8") == "cpu-int8.json"
    assert file_name("cpu", threads=2, batch=8, precision="int8") == "cpu-int8-b8-t2.json"


@pytest.mark.parametrize("other", [{"runtime_version": "0.1"}, {"processor": "abacus"}, {"device": "gpu-v100"},
                                   {"precision": "int3"}, {"threads": 10_000}, {"threads": None}], ids=str)
def test_local_is_the_same_processor_runtime_and_version(other: dict[str, Any]) -> None:
    here = Cpu(1, 4).conditions()
    device = local_device(here)
    assert isinstance(device, Cpu) and (device.threads, device.batch) == (1, 4)
    assert local_device(here.model_copy(update=other)) is None


MBCONV = OpKey(Op.parse("mbconv(kernel=3,se=0,hidden=8)"), 8, 8, 1, 16)


def test_a_model_and_a_count_answer_for_every_shape_and_no_row_can_be_added() -> None:
    unknown = OpKey(Op.parse("nonsense"), 8, 8, 1, 16)  # a model has no kernels for it, and no row would help
    for name, kind in (("gpu-v100", "kernel-model"), ("macs", "count")):
        model = costs.load(name)
        assert (model.kind, model.grows, model.row_count, model.int8_on_cpu) == (kind, False, None, False)
        assert model.covers(MBCONV) and model.missing([MBCONV]) == []
        assert not model.lacks([MBCONV, unknown])
        model.require([unknown], "ghost", 32)  # whoever asks for its ms is refused
        assert "no rows can be added" in model.advice("ghost", 32)
    assert not costs.load("gpu-v100").covers(unknown)


def test_a_table_lacks_what_a_row_would_cover() -> None:
    table = save("mine", precision="int8")
    assert (table.kind, table.grows, table.row_count, table.int8_on_cpu) == ("table", True, 0, True)
    assert not table.covers(MBCONV) and table.lacks([MBCONV]) and table.missing([MBCONV]) == [MBCONV]
    with pytest.raises(UserError, match="not in the table mine"):
        table.require([MBCONV], "ghost", 32)
    row = Row.of(MBCONV, ms=0.1, raw_ms=0.1, p10_ms=0.1, p90_ms=0.1, n=1, how="measured")
    table.add([row])
    assert table.covers(MBCONV) and not table.lacks([MBCONV]) and table.missing([MBCONV]) == []
    assert table.row_count == 1


def test_costs_measured_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Cpu()
    monkeypatch.setattr(devices, "local_device", lambda meta: device if meta.device == "cpu" else None)
    table = save("mine")
    assert devices.measured_here(table) == (table, device)
    assert devices.measured_here(save("other", device="gpu-cuda")) is None
    assert devices.measured_here(costs.load("gpu-v100")) is None and devices.measured_here(costs.load("macs")) is None
