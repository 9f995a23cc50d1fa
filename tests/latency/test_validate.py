"""Measurements made elsewhere: figures by hand, every mistake in the files, and what is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nas.errors import UserError
from nas.latency import costs
from nas.latency.agreement import agreement, kendall, mape
from nas.latency.meta import Meta, Validation
from nas.latency.table import LatencyTable
from nas.latency.validate import validate

SAMPLES, MEASURED = Path("samples.json"), Path("measured.csv")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    SAMPLES.write_text(json.dumps([{"id": "a", "ms": 1.0}, {"id": "b", "ms": 2}, {"id": "c", "ms": 3.0},
                                   {"id": "d", "ms": 4.0}]))
    LatencyTable("mine", Meta(device="phone")).save(Path("latency_tables/mine.json"))


def test_figures_by_hand() -> None:
    """Errors of +100 %, +100 % and -25 %; of the three pairs two are in order; ranks 1 2 3 against 1 3 2."""
    result = agreement(np.array([1.0, 4.0, 3.0]), np.array([0.5, 2.0, 4.0]))
    assert result.n == 3 and result.mape == pytest.approx(0.75) and result.bias == pytest.approx(1.75 / 3)
    assert result.kendall == pytest.approx(1 / 3) and result.spearman == pytest.approx(1 - 6 * 2 / (3 * 8))
    assert mape(np.array([2.0]), np.array([1.0])) == 1.0


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0, 2.0]])
def test_ranks_that_are_undefined_are_none(values: list[float]) -> None:
    assert kendall(np.array(values), np.array(values)) is None
    assert agreement(np.array(values), np.array(values)).spearman is None


def test_measured_against_predicted() -> None:
    MEASURED.write_text("\ufeffp90, id ,ms\n0.6,b,1.0\n\n0.6, a ,0.5\n9,c,6\n")
    before = Path("latency_tables/mine.json").read_bytes()
    result = validate("mine", SAMPLES, MEASURED)
    assert (result.n, result.not_measured, result.table) == (3, 1, None)
    assert result.mape == pytest.approx((1 + 1 + 0.5) / 3) and result.bias == pytest.approx(1.5 / 3)
    assert result.kendall == pytest.approx(1) and result.spearman == pytest.approx(1)
    assert Path("latency_tables/mine.json").read_bytes() == before


def test_only_with_write_is_it_noted_and_nothing_is_lost() -> None:
    MEASURED.write_text("id,ms\na,2\nb,2\n")
    first = validate("mine", SAMPLES, MEASURED, write=True)
    assert first.table == Path("latency_tables/mine.json")
    noted = costs.load("mine").meta.validation
    assert noted is not None and (noted.n, noted.mape, noted.measured) == (2, 0.25, "measured.csv")
    MEASURED.write_text("id,ms\na,1\n")
    validate("mine", SAMPLES, MEASURED, write=True)
    meta = costs.load("mine").meta
    assert meta.validation.n == 1 and meta.earlier_validations == [noted]


def test_a_shipped_table_is_not_written_to_but_copied() -> None:
    MEASURED.write_text("id,ms\na,2\n")
    shipped = costs.find("gpu-v100")
    before = shipped.read_bytes()
    assert validate("gpu-v100", SAMPLES, MEASURED, write=True).table == Path("latency_tables/gpu-v100.json")
    assert shipped.read_bytes() == before and costs.find("gpu-v100") == Path("latency_tables/gpu-v100.json")
    copy, original = json.loads(costs.find("gpu-v100").read_text()), json.loads(before)
    assert copy["variants"] == original["variants"] and copy["meta"].pop("validation")["bias"] == -0.5
    assert copy["meta"] == original["meta"] and costs.load("gpu-v100").meta.validation.n == 1


def test_notes_keep_their_order() -> None:
    meta, (first, second, third) = Meta(device="phone"), (Validation(n=n, mape=0.1) for n in (1, 2, 3))
    for validation in (first, second, third):
        meta.add_validation(validation)
    assert meta.validation == third and meta.earlier_validations == [first, second]


@pytest.mark.parametrize(("content", "message"), [
    ("", "measured.csv: the file is empty"), ("\n \n", "the file is empty"),
    ("id,ms\n", "no measurements below line 1"),
    ("name,ms\na,1\n", "line 1: 'name,ms': expected the columns id and ms"),
    ("id,ms,ms\na,1,1\n", "expected the columns id and ms, each once"),
    ("a,0.5\nb,1\n", "line 1: 'a,0.5': expected the columns"),
    ("id,ms\na,1\nx,1\n", "line 3: id 'x' is not in samples.json"),
    ("id,ms\na,1\n\na,1\n", "line 4: id 'a' is there twice"),
    ("id,ms\na,fast\n", "line 2: ms 'fast' is not a number above 0"),
    ("id,ms\na,\n", "line 2: ms '' is not"), ("id,ms\na,0\n", "line 2: ms '0' is not"),
    ("id,ms\na,-1\n", "ms '-1' is not"), ("id,ms\na,nan\n", "ms 'nan' is not"), ("id,ms\na,inf\n", "ms 'inf' is not"),
    ("id,ms\na\n", "line 2: 'a' has 1 fields, line 1 has 2"), ("id,ms\na,1,2\n", "line 2: 'a,1,2' has 3 fields"),
    ('id,ms\n"a,1\n', "line 2: unexpected end of data"), (b"id,ms\n\xff,1\n", "not a CSV file in UTF-8"),
])
def test_a_mistake_in_the_measurements_is_one_line(content: str | bytes, message: str) -> None:
    MEASURED.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        validate("mine", SAMPLES, MEASURED, write=True)
    assert str(error.value).startswith("measured.csv: ") and message in str(error.value)
    assert "\n" not in str(error.value) and costs.load("mine").meta.validation is None


@pytest.mark.parametrize(("content", "message"), [
    ("", "samples.json: cannot be read: the file is empty; delete it and run nas sample"),
    ("[]", "expected the list that nas sample writes"), ("{}", "expected the list"),
    ('[{"id": "a", "ms": 0}]', "sample 1: ms 0 is not a number above 0"),
    ('[{"id": "a", "ms": "1"}]', "sample 1: ms '1' is not"), ('[{"id": "a", "ms": true}]', "sample 1: ms True is not"),
    ('[{"id": "a", "ms": NaN}]', "NaN is not a number"), ('[{"ms": 1}]', "sample 1: id None is no text"),
    ('[{"id": ["a"], "ms": 1}]', "sample 1: id ['a'] is no text"),
    ('[{"id": "a", "ms": 1}, {"id": "a", "ms": 1}]', "sample 2: id 'a' is there twice"), ("[1]", "sample 1: id None"),
])
def test_a_mistake_in_the_samples_is_one_line(content: str, message: str) -> None:
    SAMPLES.write_text(content)
    MEASURED.write_text("id,ms\na,1\n")
    with pytest.raises(UserError) as error:
        validate("mine", SAMPLES, MEASURED)
    assert str(error.value).startswith("samples.json: ") and message in str(error.value)


def test_files_and_tables_that_are_not_there_are_named() -> None:
    with pytest.raises(UserError, match=r"measured\.csv: cannot be read: No such file"):
        validate("mine", SAMPLES, MEASURED)
    with pytest.raises(UserError, match=r"none\.json: no such file; nas sample"):
        validate("mine", Path("none.json"), MEASURED)
    with pytest.raises(UserError, match="target=mind: did you mean 'mine'"):
        validate("mind", SAMPLES, MEASURED)
