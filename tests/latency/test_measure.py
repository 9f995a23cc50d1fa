"""What ``nas measure`` says it measured, and options that a file leaves no room for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign_graphs import save, whole
from onnx import TensorProto

from nas import cli
from nas.errors import UserError
from nas.latency import devices
from nas.latency.timing import summary


@pytest.fixture(autouse=True)
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "repeated", lambda run: summary([run(), run()]))


def fed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, ...], Any]]:
    """Shape and type of what every session gets."""
    from nas.latency.devices import onnxruntime

    seen: list[tuple[tuple[int, ...], Any]] = []
    plain = onnxruntime.random_feed

    def watched(*args: Any) -> Any:
        value = plain(*args)
        seen.append((value.shape, value.dtype))
        return value

    monkeypatch.setattr(onnxruntime, "random_feed", watched)
    return seen


@pytest.mark.parametrize(("shape", "options", "expected"), [
    (("N", 3, 32, 32), {}, (1, 3, 32, 32)), (("N", 3, 32, 32), {"batch": 8}, (8, 3, 32, 32)),
    ((4, 3, 32, 32), {}, (4, 3, 32, 32)), ((4, 3, 32, 32), {"batch": 4}, (4, 3, 32, 32)),
    (("N", 3, "H", "W"), {"size": 16, "batch": 2}, (2, 3, 16, 16)), ((1, 3, 32, 32), {"size": 32}, (1, 3, 32, 32)),
])
def test_what_is_fed_is_what_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: Any,
                                     options: dict[str, int], expected: tuple[int, ...]) -> None:
    seen, path = fed(monkeypatch), save(whole(shape=shape), tmp_path / "m.onnx")
    result = devices.measure(path, "cpu", **options)
    assert {one for one, _ in seen} == {expected} and (result.batch, result.threads) == (expected[0], 1)


@pytest.mark.parametrize(("values", "kind"), [(np.float16, TensorProto.FLOAT16), (np.float32, TensorProto.FLOAT)])
def test_a_file_is_fed_its_own_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: Any, kind: int) -> None:
    seen = fed(monkeypatch)
    devices.measure(save(whole(values=values, kind=kind), tmp_path / "m.onnx"), "cpu")
    assert {one for _, one in seen} == {np.dtype(values)}


@pytest.mark.parametrize(("shape", "options", "message"), [
    ((1, 3, 32, 32), {"batch": 8}, r"batch=8: .*m\.onnx is fixed at batch 1; leave out batch"),
    ((4, 3, 32, 32), {"batch": 1}, "batch=1: .*is fixed at batch 4"),
    (("N", 3, 32, 32), {"size": 16}, "size=16: x is fixed at 32x32"),
    (("N", 3, "H", "W"), {}, "leaves open .*give size"), (("N", "C", 32, 32), {}, "only the batch"),
])
def test_an_option_that_would_have_no_effect_is_refused(tmp_path: Path, shape: Any, options: dict[str, int],
                                                        message: str) -> None:
    path = save(whole(shape=shape), tmp_path / "m.onnx")
    with pytest.raises(UserError, match=message):
        devices.measure(path, "cpu", **options)


def test_json_says_batch_and_threads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(whole(shape=(4, 3, 32, 32)), tmp_path / "m.onnx")
    with pytest.raises(SystemExit) as end:
        cli.main(["measure", str(path), "--json"])
    result = json.loads(capsys.readouterr().out)
    assert not end.value.code and (result["batch"], result["threads"]) == (4, 1)
