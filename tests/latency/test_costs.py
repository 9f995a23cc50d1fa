"""Which file a target is, and what is said of those that are not there."""

from pathlib import Path
from typing import Any

import pytest

from nas.errors import UserError
from nas.latency import costs
from nas.latency.devices import file_name, local
from nas.latency.devices.onnxruntime import Cpu, conditions
from nas.latency.table import LatencyTable


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def save(name: str, **meta: object) -> LatencyTable:
    table = LatencyTable(name, {"device": "cpu", **meta})
    table.save(Path("latency_tables") / f"{name}.json")
    return table


def test_the_users_folder_comes_first_and_a_path_is_a_path() -> None:
    save("mine", date="2026-01-01")
    assert costs.find("mine") == Path("latency_tables/mine.json")
    assert costs.load("mine").meta["date"] == "2026-01-01"
    assert costs.load("latency_tables/mine.json").name == "mine"


def test_an_unknown_target_lists_the_known_and_the_command() -> None:
    save("mine")
    with pytest.raises(UserError, match=r"--target mind: did you mean 'mine'\? known: .*mine.*nas profile --device"):
        costs.load("mind")
    with pytest.raises(UserError, match=r"--target no/such.json: no such file"):
        costs.load("no/such.json")


def test_a_file_of_another_kind_is_refused() -> None:
    Path("x.json").write_text('{"kind": "recipe"}')
    with pytest.raises(UserError, match=r"x\.json: kind: expected .* got 'recipe'"):
        costs.load("x.json")


def test_targets_are_described_and_a_broken_one_hides_none() -> None:
    save("mine", processor="P", runtime="onnxruntime", batch=8, threads=2, method="measured")
    Path("latency_tables/broken.json").write_text("")
    listed = {target["name"]: target for target in costs.targets()}
    expected = {"kind": "table", "batch": 8, "threads": 2, "rows": 0, "method": "measured"}
    assert expected.items() <= listed["mine"].items()
    assert "broken.json" in listed["broken"]["error"]


@pytest.mark.parametrize(("meta", "said"), [
    ({}, None), ({"validation": {"mape": "?", "n": 3}}, None), ({"held_out": []}, None),
    ({"validation": {"mape": 0.0123, "n": 30, "space": "ghost", "size": 32, "noise_mape": 0.01}},
     "1.2% off over 30 networks (ghost at 32), noise 1.0%"),
    ({"validation": {"mape": 0.2, "n": 4}}, "20.0% off over 4 networks"),
    ({"held_out": {"groups": {"mape_%": 10.41}}}, "10.4% off over held-out kernels")], ids=str)
def test_a_target_says_how_far_off_it_was(meta: dict[str, Any], said: str | None) -> None:
    save("mine", **meta)
    assert next(target for target in costs.targets() if target["name"] == "mine")["checked"] == said


def test_names_of_files() -> None:
    assert file_name("cpu") == "cpu.json"
    assert file_name("cpu", precision="fp32") == "cpu.json"
    assert file_name("cpu", threads=2, batch=8) == "cpu-b8-t2.json"
    assert file_name("cpu", precision="int8") == "cpu-int8.json"
    assert file_name("cpu", threads=2, batch=8, precision="int8") == "cpu-int8-b8-t2.json"


@pytest.mark.parametrize("other", [{"runtime_version": "0.1"}, {"processor": "abacus"}, {"device": "gpu-v100"},
                                   {"precision": "int3"}, {"threads": 10_000}, {"threads": None}], ids=str)
def test_local_is_the_same_processor_runtime_and_version(other: dict[str, Any]) -> None:
    here = conditions(1, 4)
    device = local(here)
    assert isinstance(device, Cpu) and (device.threads, device.batch) == (1, 4)
    assert local({**here, **other}) is None
