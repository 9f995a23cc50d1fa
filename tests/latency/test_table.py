"""Rows, what lies between them, and files that are not sound."""

import json
from pathlib import Path

import pytest
from hostile import read_or_refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nas.arch import Op
from nas.cli.wording import CommandNames
from nas.errors import UserError, named_by
from nas.files import folder
from nas.latency.meta import Meta
from nas.latency.table import LatencyTable, Row, knot_widths
from nas.plan import Layout, OpKey, candidates

META = {"device": "cpu", "align": 32}


def key(text: str, out_ch: int = 8, size: int = 16) -> OpKey:
    return OpKey(Op.parse(text), 8, out_ch, 1, size)


def row(text: str, ms: float, out_ch: int = 8) -> Row:
    return Row.of(key(text, out_ch), ms=ms, raw_ms=ms, p10_ms=ms, p90_ms=ms, n=5, how="measured")


def table(*rows: Row, **meta: object) -> LatencyTable:
    return LatencyTable("cpu", Meta.model_validate({**META, **meta}), rows)


def test_between_knots_of_one_alignment_it_is_linear() -> None:
    t = table(row("mbconv(hidden=24)", 1.0), row("mbconv(hidden=40)", 3.0), row("mbconv(hidden=32)", 0.5),
              row("mbconv(hidden=96)", 2.5))
    assert t.ms(key("mbconv(hidden=40)")) == 3.0
    assert t.ms(key("mbconv(hidden=64)")) == 1.5  # between 32 and 96, which fill the vector unit as it does
    with pytest.raises(UserError, match=r"mbconv\(hidden=56\) 8->8 .*measured from 24 to 40 only.*; run: profile\("):
        t.ms(key("mbconv(hidden=56)"))


def test_without_alignment_all_widths_are_one_curve() -> None:
    t = table(row("mbconv(hidden=24)", 1.0), row("mbconv(hidden=40)", 3.0), align=1)
    assert t.ms_many([key("mbconv(hidden=32)"), key("mbconv(hidden=24)")]) == [2.0, 1.0]


def test_a_width_that_measured_faster_than_a_narrower_one_is_smoothed() -> None:
    t = table(row("mbconv(hidden=24)", 1.0), row("mbconv(hidden=40)", 3.0), row("mbconv(hidden=56)", 2.0))
    assert [t.ms(key(f"mbconv(hidden={w})")) for w in (24, 40, 56)] == [1.0, 2.5, 2.5]


def test_heads_lie_between_their_classes() -> None:
    rows = [row("head(hidden=16)", ms, n) for n, ms in ((2, 1.0), (10, 1.8), (100, 2.7), (1000, 11.7))]
    assert table(*rows).ms(key("head(hidden=16)", out_ch=6)) == pytest.approx(1.4)
    with pytest.raises(UserError, match="from 2 to 1000 only"):
        table(*rows).ms(key("head(hidden=16)", out_ch=1001))


def test_an_unknown_cost_names_key_table_and_command() -> None:
    with pytest.raises(UserError, match=r"stem 8->8 stride 1 at 16x16: not in the table cpu; run: profile\(device="):
        table().ms(key("stem"))


@pytest.mark.parametrize(("meta", "file", "command"), [
    ({"device": "cpu", "precision": "fp32", "threads": 2, "batch": 8}, "latency_tables/cpu-b8-t2.json",
     "nas profile --device cpu --threads 2 --batch 8 --space ghost --size 32"),
    ({"device": "cpu", "precision": "int8"}, "mine.json",
     "nas profile --device cpu --precision int8 --space ghost --size 32 --out mine.json"),
    ({"device": "gpu-ort", "precision": "fp16"}, "latency_tables/other.json",
     "nas profile --device gpu-ort --precision fp16 --space ghost --size 32 --out latency_tables/other.json"),
    ({"device": "ethos-u55-128", "precision": "int8"}, None,
     "nas profile --device ethos-u55-128 --space ghost --size 32")])
def test_the_command_for_what_lacks_has_the_conditions_of_the_table(
        meta: dict[str, object], file: str | None, command: str, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    t = LatencyTable("t", Meta.model_validate(meta), path=Path(file) if file else None)
    with named_by(CommandNames([])):
        assert t.command("ghost", 32) == command
        with pytest.raises(UserError, match=f"stem 8->8 .*; run: {command}$"):
            t.require([key("stem")], "ghost", 32)


def test_knots_hold_both_ends_of_every_alignment() -> None:
    assert knot_widths([8, 16, 24], 32) == [8, 16, 24]
    assert knot_widths(list(range(24, 145, 8)), 32) == [24, 32, 48, 88, 128, 136, 144]
    widths = list(range(40, 241, 8))
    for lane in ([w for w in widths if w % 16], [w for w in widths if w % 32 == 16], [w for w in widths if not w % 32]):
        assert {lane[0], lane[-1]} <= set(knot_widths(widths, 32))
    assert len(knot_widths(list(range(8, 100, 8)), 1)) >= 5


def test_missing_is_what_makes_every_candidate_known(tiny: Layout) -> None:
    t = table()
    missing = t.missing(candidates(tiny))
    assert len(missing) == len(set(missing))
    assert [k.out_ch for k in missing if k.op.name == "head"] == [2, 10, 100, 1000]
    t.add(Row.of(k, ms=1.0, raw_ms=1.0, p10_ms=1.0, p90_ms=1.0, n=1, how="measured") for k in missing)
    assert t.missing(candidates(tiny)) == []
    assert t.ms_many(candidates(tiny)) == [1.0] * len(candidates(tiny))


def test_only_what_lacks_is_missing(tiny: Layout) -> None:
    wanted = table().missing(candidates(tiny))
    half = [Row.of(k, ms=1.0, raw_ms=1.0, p10_ms=1.0, p90_ms=1.0, n=1, how="measured") for k in wanted[::2]]
    assert table(*half).missing(candidates(tiny)) == wanted[1::2]


def test_saved_and_loaded_it_is_the_same_one_row_a_line(tmp_path: Path) -> None:
    t = table(row("mbconv(hidden=40)", 3.0), row("ghost(hidden=24, se=1)", 1.0), row("stem", 0.5))
    t.save(tmp_path / "cpu.json")
    text = (tmp_path / "cpu.json").read_text()
    assert [line[:1] for line in text.splitlines()].count("{") == 1 + 3
    assert text.index("ghost(se=1)") < text.index("mbconv") < text.index("stem")
    again = LatencyTable.load(tmp_path / "cpu.json")
    assert (again.rows, again.meta, again.name) == (t.rows, t.meta, t.name)
    again.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == text


def test_the_readme_explains_every_key_of_a_meta() -> None:
    text = (folder("latency_tables") / "README.md").read_text()
    assert [name for name in Meta.model_fields if f"`{name}`" not in text] == []


def sound(tmp_path: Path) -> dict:
    table(row("mbconv(hidden=24)", 1.0), row("stem", 0.5)).save(tmp_path / "t.json")
    return json.loads((tmp_path / "t.json").read_text())


@pytest.mark.parametrize(("field", "value", "says"), [
    ("ms", 0, "row 1: ms: .*greater than 0"), ("ms", -1.0, "row 1: ms"), ("ms", float("nan"), "NaN is not a number"),
    ("ms", float("inf"), "Infinity is not a number"), ("ms", "1", "row 1: ms"), ("n", 1.5, "row 1: n"),
    ("op", "Ghost((", "row 1: operator 'Ghost"), ("op", "mbconv(se=1,kernel=3)", "row 1: op .*write it as"),
    ("how", "guessed", "row 1: how"), ("extra", 1, "row 1: extra: unknown key"), ("hidden", None, "ok"),
    ("op", "mbconv(hidden=24)", "row 1: op .*write it as 'mbconv'")])
def test_a_bad_field_is_named_with_file_and_row(field: str, value: object, says: str, tmp_path: Path) -> None:
    data = sound(tmp_path)
    data["rows"][0][field] = value
    (tmp_path / "t.json").write_text(json.dumps(data))
    if says == "ok":
        assert len(LatencyTable.load(tmp_path / "t.json").rows) == 2
        return
    with pytest.raises(UserError, match=says) as error:
        LatencyTable.load(tmp_path / "t.json")
    assert "t.json" in str(error.value) and "\n" not in str(error.value)


def test_missing_field_duplicate_row_and_foreign_file_are_refused(tmp_path: Path) -> None:
    path, data = tmp_path / "t.json", sound(tmp_path)
    path.write_text(json.dumps({**data, "rows": data["rows"] + data["rows"][:1]}))
    with pytest.raises(UserError, match=r"row 3: mbconv\(hidden=24\) .* is there twice"):
        LatencyTable.load(path)
    del data["rows"][1]["stride"]
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match="row 2: stride: missing"):
        LatencyTable.load(path)
    for foreign in ("[]", "{}", '{"kind": "kernel-model"}', "", " ", "\x00", "[" * 100_000, '{"a": 1e999}', "1" * 9999):
        path.write_text(foreign)
        with pytest.raises(UserError, match=r"t\.json") as error:
            LatencyTable.load(path)
        assert "\n" not in str(error.value)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read"):
        LatencyTable.load(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    sound(tmp_path)
    whole = (tmp_path / "t.json").read_text().rstrip()
    for end in range(0, len(whole), 7):
        (tmp_path / "t.json").write_text(whole[:end])
        with pytest.raises(UserError):
            LatencyTable.load(tmp_path / "t.json")


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                    max_leaves=5)
PATHS = st.sampled_from([("kind",), ("name",), ("meta",), ("rows",), ("rows", 0), ("meta", "align"), ("meta", "device"),
                         *(("rows", 0, field) for field in Row.model_fields)])


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(where=PATHS, value=JSON)
def test_a_mutated_table_is_refused_in_one_line_or_is_sound(where: tuple, value: object, tmp_path: Path) -> None:
    data = sound(tmp_path)
    place = data
    for step in where[:-1]:
        place = place[step]
    place[where[-1]] = value
    (tmp_path / "t.json").write_text(json.dumps(data))
    loaded = read_or_refused(lambda: LatencyTable.load(tmp_path / "t.json"), "t.json")
    if loaded is not None:
        assert all(loaded.ms(k) > 0 for k in loaded.rows)
        loaded.save(tmp_path / "again.json")
        again = LatencyTable.load(tmp_path / "again.json")
        assert (again.name, again.rows, again.meta) == (loaded.name, loaded.rows, loaded.meta)
