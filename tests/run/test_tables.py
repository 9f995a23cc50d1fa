"""Rows that a target lacks are made by whoever can make them, and tables of others stay as they are."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from every import every
from tiny_search import Quiet, config_of, searched
from tiny_space import TINY

from nas.errors import UserError
from nas.files import folder
from nas.latency import profile
from nas.latency.devices import open_device
from nas.latency.devices.ethos_u import EthosU
from nas.latency.meta import Conditions, Meta
from nas.latency.table import LatencyTable
from nas.lower.flatbuffer import MISSING
from nas.plan import Layout, Task, candidates, layout
from nas.run import tables
from nas.run.tables import complete, costs_for, filled
from nas.space import Space

vela = pytest.importorskip("ethosu.vela")
NPU = "ethos-u55-128"
SMALL = {**TINY, "name": "small", "stages": [{"out": 8, "depth": 1, "stride": 1}],
         "ops": {"mbconv": {"kernel": [3], "se": [0], "hidden": {"min": 1, "max": 2, "step": 8}}}}


@pytest.fixture
def small() -> Layout:
    """A space that no table knows: 8 channels at 16 pixels."""
    return layout(Space.parse(SMALL, "small.yaml"), Task(16, 3, 2))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    shipped = (folder("latency_tables") / f"{NPU}.json").read_bytes()
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert (folder("latency_tables") / f"{NPU}.json").read_bytes() == shipped


def test_vela_compiles_what_is_missing_into_the_users_own_table(small: Layout, here: Path) -> None:
    shipped, told = LatencyTable.load(folder("latency_tables") / f"{NPU}.json"), Quiet()
    lacking = shipped.missing(candidates(small))
    assert lacking
    costs = costs_for(NPU, [small], "small.yaml", told)
    assert isinstance(costs, LatencyTable) and costs.path == Path("latency_tables") / f"{NPU}.json"
    assert not costs.missing(candidates(small)) and costs.rows.keys() == {*shipped.rows, *lacking}
    assert every(costs.rows[key] == row for key, row in shipped.rows.items())
    assert every(costs.rows[key].how == "compiled" for key in lacking)
    assert any(f"{len(lacking)} rows are not compiled yet; compiling them now" in note for note in told.notes)
    again = Quiet()
    assert filled(NPU, small, again).ms_many(candidates(small)) == costs.ms_many(
        candidates(small))
    assert again.notes == [] and again.steps == 0


def test_what_an_interrupted_call_compiled_is_kept(small: Layout, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "CHUNK", 2)
    with pytest.raises(KeyboardInterrupt):
        complete(NPU, small, Quiet(1))
    table = LatencyTable.load(Path("latency_tables") / f"{NPU}.json")
    left, whole = (len(LatencyTable.load(path).missing(candidates(small)))
                   for path in (table.path, folder("latency_tables") / f"{NPU}.json") if path)
    assert whole - left == 2 and left > 0
    told = Quiet()
    complete(NPU, small, told)
    assert any(f"{left} rows are not compiled yet" in note for note in told.notes)


def test_a_target_of_vela_without_any_table_is_begun(small: Layout, here: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables.cost_models, "known", dict)
    assert tables.find_costs(NPU) is None
    told = Quiet()
    monkeypatch.setattr("nas.latency.profile.folder", lambda kind: here / "nothing")
    path = complete(NPU, small, told)
    assert set(LatencyTable.load(path).rows) >= set(candidates(small))


def test_without_the_extra_one_line_says_how_to_install_it(small: Layout, here: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(conditions: Conditions) -> None:
        raise UserError(MISSING)

    monkeypatch.setattr(tables, "compiler_of_table", missing)
    with pytest.raises(UserError, match=r"rows that small needs at 16 are missing.*pip install") as refusal:
        costs_for(NPU, [small], "small.yaml", Quiet())
    assert "\n" not in str(refusal.value) and not Path("latency_tables").exists()


def test_rows_of_another_version_are_left_out_and_that_is_said(small: Layout, here: Path,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    other = EthosU(NPU)
    other.version = "5.2.99"
    monkeypatch.setattr(tables, "compiler_of_table", lambda meta: other)
    told = Quiet()
    path = complete(NPU, small, told)
    table = LatencyTable.load(path)
    assert {row.how for row in table.rows.values()} == {"compiled"} and table.meta.runtime_version == "5.2.99"
    assert set(table.rows) >= set(candidates(small)) and len(table.rows) < 20
    assert any("rows are left out, as runtime_version was" in note for note in told.notes)


def test_rows_of_this_machine_never_join_those_of_another(small: Layout, here: Path) -> None:
    shutil.copy(folder("latency_tables") / "cpu-emerald-rapids.json", "other.json")
    value = json.loads(Path("other.json").read_text())
    value["meta"]["processor"] = "Abacus 3000"
    Path("other.json").write_text(json.dumps(value))
    before, told = Path("other.json").read_bytes(), Quiet()
    assert complete("other.json", small, told) == Path("other.json")
    assert any("Abacus 3000" in note and "not here" in note for note in told.notes)
    with pytest.raises(UserError, match=r"not in the table other\.json"):
        costs_for("other.json", [small], "small.yaml", Quiet())
    with pytest.raises(UserError, match=r"processor was 'Abacus 3000'.*another file with out"):
        profile.profile(small, Path("other.json"), device="cpu")
    said: list[str] = []
    assert not profile.table_so_far(Path("other.json"), open_device("cpu"), remeasure=True, tell=said.append).rows
    assert Path("other.json").read_bytes() == before and "rows are left out, as processor was 'Abacus 3000'" in said[0]


def test_a_list_of_networks_measures_nothing(small: Layout, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "profile", None)  # would be called
    device = open_device("cpu")
    LatencyTable("cpu", Meta.model_validate(device.conditions().to_json())).save(Path("latency_tables/cpu.json"))
    costs = filled("cpu", small, Quiet(), measure=False)
    with pytest.raises(UserError, match="not in the table"):
        costs.ms_many(candidates(small))


def test_a_search_on_a_space_of_ones_own_needs_no_profile_before(here: Path) -> None:
    Path("small.yaml").write_text(yaml.safe_dump(SMALL))
    told = Quiet()
    result = searched(config_of(here / "small.yaml", "budgets=1", "evaluations=2", target=NPU),
                      here / "run", told)
    assert result["front"] and any("rows are not compiled yet" in note for note in told.notes)
    assert (here / f"run/tables/{NPU}.json").read_bytes() == (here / f"latency_tables/{NPU}.json").read_bytes()
