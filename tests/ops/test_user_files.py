"""Operators of the user's own: what runs a file, what is refused, and that a run never brings code in by itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from own_ops import DOUBLE, forget, forgotten
from tiny_search import Quiet, config_of, searched, selected
from tiny_space import TINY

from nas.errors import UserError, call
from nas.latency.meta import Meta
from nas.latency.table import LatencyTable, Row
from nas.ops import families, user_files
from nas.pipeline import check_space
from nas.pipeline import search as pipeline
from nas.plan import OpKey, Task, candidates
from nas.run.directory import Run

HIDDEN = {"min": 1, "max": 2, "step": 8}


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    with forgotten():
        yield


@pytest.fixture
def ops(tmp_path: Path) -> Path:
    path = tmp_path / "my_ops.py"
    path.write_text(DOUBLE)
    return path


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({**TINY, "name": "own", "ops": {"double": {"hidden": HIDDEN},
                                                                   "mbconv": {"hidden": HIDDEN}}}))
    return path


def checked(space: Path) -> check_space.SpaceFacts:
    return check_space.check(str(space), Task(16, 3, 4), ["gpu-v100"], Quiet())


def test_a_file_is_run_once_and_its_operator_stands_beside_the_shipped_ones(ops: Path) -> None:
    before = families()
    (source,) = user_files.load([ops])
    assert source.operators == ("double",) and set(families()) == {*before, "double"}
    assert source.sha256 == hashlib.sha256(DOUBLE.encode()).hexdigest() and user_files.hashes(["double", "ghost"]) == {
        "double": source.sha256}
    copy = ops.with_name("copy.py")
    copy.write_text(DOUBLE)
    assert user_files.load([copy, ops]) == [source, source]


@pytest.mark.parametrize(("text", "expected"), [
    ("x = (", r"my_ops\.py: line 1: SyntaxError"),
    ("import os\nimport no_such_module", r"my_ops\.py: line 2: ModuleNotFoundError: No module named 'no_such_module'"),
    ("\nraise SystemExit(3)", r"line 2: SystemExit: 3"),
    ("x = 1", r"my_ops\.py: registers no operator; decorate a class"),
    (DOUBLE.replace('"double"', '"ghost"'), r"'ghost' is registered already, by nas\.ops\.ghost: take another name"),
    (DOUBLE.replace('"double"', '"My Op"'), r"operator 'My Op': a name is lower-case"),
    (DOUBLE.replace("Double(Block)", "Double"), r"Double must be a subclass of nas\.ops\.Block"),
    (DOUBLE.replace("in_ch, out_ch, stride, hidden", "cin, out_ch, stride, hidden", 1),
     r"__init__\(self, cin, out_ch, stride, hidden\) must begin with \(self, in_ch, out_ch, stride\)"),
    (DOUBLE.replace("stride, hidden)", "stride, hidden, **rest)", 1), r"__init__: \*\*rest: a knob is a parameter"),
    (DOUBLE.replace("def slices", "def slicse"), r"has a knob hidden, but no slices\(self, hidden\)"),
    (DOUBLE.replace("def forward", "def foward"), r"has no forward\(self, x\)"),
])
def test_a_file_that_is_no_good_is_one_line_and_leaves_nothing(ops: Path, text: str, expected: str) -> None:
    before = families()
    ops.write_text(text)
    with pytest.raises(UserError, match=expected):
        user_files.load([ops])
    assert families() == before and not user_files.loaded()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ops=.*gone\.py: cannot be read: No such file"):
        user_files.load([tmp_path / "gone.py"])


@pytest.mark.parametrize(("old", "new", "expected"), [
    ("self.max_hidden = hidden", "self.max_hidden = 8", r"double\(hidden=16\) at 8->8 .*self\.max_hidden is 8"),
    ("hidden, 3, stride", "hidden, 3, 1", r"8->16 stride 2: maps \(2, 8, 9, 9\) to \(2, 16, 9, 9\), not to .*5, 5"),
    ("self.second(self.first(x))", "self.second(self.first(y))", "forward: NameError: name 'y'"),
    ("self.second(self.first(x))", "self.second(self.first(x).detach())", r"first\.conv\.weight gets no finite"),
    ('**conv_slices("first", ((0, hidden),), None), ', "", r"hidden=8: slices\(hidden\) has to name"),
    ("hidden, 3, stride", "hidden // 0, 3, stride", r"own\.yaml: ops\.double: .*ZeroDivisionError"),
])
def test_an_operator_that_breaks_the_contract_is_found_before_training(ops: Path, space: Path, old: str, new: str,
                                                                       expected: str) -> None:
    assert old in DOUBLE
    ops.write_text(DOUBLE.replace(old, new))
    user_files.load([ops])
    with pytest.raises(UserError, match=expected):
        checked(space)


SINGLE = '''
import torch
from torch import nn
from nas.ops import Block, register
from nas.ops.layers import ConvBN


@register("single")
class Single(Block):
    elastic = ("kernel",)

    def __init__(self, in_ch, out_ch, stride, kernel=3):
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.conv = ConvBN(in_ch, out_ch, kernel, stride, act="none")

    def forward(self, x):
        return self.conv(x)

    def deploy(self):
        conv, norm = self.conv
        one = nn.Conv2d(conv.in_channels, conv.out_channels, self.kernel, self.stride, self.kernel // 2,
                        device=conv.weight.device)
        with torch.no_grad():
            factor = norm.weight / (norm.running_var + norm.eps).sqrt()
            one.weight.copy_(conv.weight * factor[:, None, None, None])
            one.bias.copy_(norm.bias - norm.running_mean * factor)
        return one
'''


@pytest.mark.parametrize(("old", "new", "expected"), [
    ("", "", None),
    (" - norm.running_mean * factor", "", r"deploy\(\) computes something else than the trained form in eval mode"),
    ("return one\n", "return one.weight\n", r"deploy: "),
    ("self.conv(x)", "self.conv(x) * self.kernel", r"deploy\(\) computes"),
    ('ConvBN(in_ch, out_ch, kernel, stride, act="none")',
     'nn.Sequential(ConvBN(in_ch, out_ch, 3, stride)) if kernel == 3 else ConvBN(in_ch, out_ch, kernel, stride)',
     r"single\(kernel=3\) at 8->8 .*: kernel=3: a smaller value of an elastic knob"),
])
def test_elastic_knobs_and_deployed_forms_are_tried_where_there_is_no_hidden_width(
        ops: Path, space: Path, old: str, new: str, expected: str | None) -> None:
    assert old in SINGLE
    ops.write_text(SINGLE.replace(old, new) if old else SINGLE)
    user_files.load([ops])
    space.write_text(yaml.safe_dump({**TINY, "name": "own", "ops": {"single": {"kernel": [3, 5]}}}))
    if expected is None:
        assert checked(space).slots == 4
        return
    with pytest.raises(UserError, match=expected):
        checked(space)


def test_a_check_says_how_large_a_space_is_and_what_it_costs(ops: Path, space: Path) -> None:
    """By hand: double has 9 * in * hidden + 2 * hidden + hidden * out + 2 * out parameters.

    Smallest: skip, skip, mbconv(hidden=8) 8->16 with 328, skip. Largest: double at 16, 16, 16 and 32 hidden channels,
    1328 + 1328 + 1472 + 5216.
    """
    user_files.load([ops])
    result = checked(space)
    assert result.slots == 4 and result.archs == "10^2.8"  # 5 * 5 * 4 * 7: two widths or three, and skip
    (costs,) = result.targets
    assert costs.ends and 0 < costs.ends[0] < costs.ends[1]
    least, most = result.params
    assert most - least == 9344 - 328


def test_a_run_asks_for_the_file_again_and_refuses_one_that_changed(ops: Path, space: Path, tmp_path: Path) -> None:
    user_files.load([ops])
    path, config = tmp_path / "run", config_of(space)
    result = searched(config, path)
    assert json.loads((path / "ops.json").read_text())["files"] == [
        {"file": "my_ops.py", "sha256": hashlib.sha256(DOUBLE.encode()).hexdigest(), "operators": ["double"]}]
    (copy,) = (path / "ops").iterdir()
    assert copy.read_text() == DOUBLE and copy.name.endswith("-my_ops.py")
    card = json.loads(next(path.glob("archs/*/card.json")).read_text())
    assert card["provenance"]["ops"][0]["operators"] == ["double"]
    forget()
    run = Run.existing(path)
    again = [lambda: searched(config, path), lambda: selected(run, ["gpu-v100"], [], Quiet()),
             lambda: pipeline.export(run, None, None, tmp_path / "out", Quiet()).files]
    for work in again:
        with pytest.raises(UserError, match=r"operators double are code of my_ops\.py.* give ops=my_ops\.py again"):
            work()
    ops.write_text(DOUBLE + "# another\n")
    user_files.load([ops])
    for work in again:
        with pytest.raises(UserError, match=r"my_ops\.py: changed since .* began \(sha256 .* put it back"):
            work()
    forget()
    user_files.load([copy])
    assert searched(config, path) == result and again[2]()


def test_a_run_of_shipped_operators_needs_and_records_nothing(tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY))
    run = Run.open(tmp_path / "run", config_of(file).to_json())
    pipeline.prepare_inputs(config_of(file), run, ["gpu-v100"], Quiet())
    assert not run.has("ops.json")


def test_rows_of_other_code_are_not_used(ops: Path, tmp_path: Path, space: Path) -> None:
    (source,) = user_files.load([ops])
    plan = check_space.checked_layout(str(space), Task(16, 3, 4))
    keys = [key for key in candidates(plan) if key.op.name in ("double", "mbconv")]

    def rows_after(own_operators: dict[str, str]) -> set[str]:
        rows = [Row.of(key, ms=1.0, raw_ms=1.0, p10_ms=1.0, p90_ms=1.0, n=9, how="measured") for key in keys]
        LatencyTable("t", Meta(device="cpu", own_operators=own_operators), rows).save(tmp_path / "t.json")
        return {key.op.name for key in LatencyTable.load(tmp_path / "t.json").rows}

    assert rows_after({"double": source.sha256}) == {"double", "mbconv"}
    assert rows_after({"double": "0" * 64}) == rows_after({}) == {"mbconv"}
    forget()
    assert rows_after({"double": "0" * 64}) == {"double", "mbconv"}  # nobody asks for them: they are kept


def test_every_mistake_of_a_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"

    def said(change: dict[str, object]) -> str:
        file.write_text(yaml.safe_dump({**TINY, **change}))
        with pytest.raises(UserError) as caught:
            check_space.checked_layout(str(file), Task(16, 3, 4))
        return str(caught.value)

    text = said({"colour": 1, "name": "My Space", "stem": {"op": "stem", "out": 0, "stride": 1}})
    assert "3 mistakes: colour: unknown key; " in text and "name: " in text and "stem.out: " in text
    text = said({"stem": {"op": "stme", "out": 8, "stride": 1}, "head": {"op": "head(hiden=8)"},
                 "ops": {"ghots": {}, "mbconv": {"kernel": [4], "hidden": HIDDEN}}})
    assert "4 mistakes: " in text and all(part in text for part in (
        "stem.op: unknown operator 'stme'", "head.op: ", "did you mean 'hidden'", "ops.ghots: ", "ops.mbconv: ",
        "kernel 4: it must be odd"))
    assert "mistakes" not in said({"skip": 3})


def test_what_a_table_lacks_is_counted_with_the_command_that_makes_it(tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY))
    key = OpKey(candidates(check_space.checked_layout(str(file), Task(16, 3, 4)))[0].op, 3, 8, 1, 16)
    row = Row.of(key, ms=1.0, raw_ms=1.0, p10_ms=1.0, p90_ms=1.0, n=9, how="measured")
    LatencyTable("t", Meta(device="cpu", align=8), [row]).save(tmp_path / "t.json")
    result = check_space.check(str(file), Task(16, 3, 4), [str(tmp_path / "t.json")], Quiet())
    (costs,) = result.targets
    assert isinstance(costs, check_space.MissingRows) and costs.missing > 0
    where = {"space": str(file), "size": 16, "out": str(tmp_path / "t.json")}
    assert costs.do == call("profile", device="cpu", **where)
