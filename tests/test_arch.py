"""Op and Arch: text and JSON are inverse, ids are stable, anything else is one UserError."""

from __future__ import annotations

import hashlib
import json

import pytest
from hostile import read_or_refused
from hypothesis import given
from hypothesis import strategies as st

from nas.arch import SKIP, Arch, Op
from nas.errors import UserError

names = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
ops = st.builds(lambda name, knobs: Op.of(name, **knobs), names,
                st.dictionaries(names, st.integers(-9999, 9999) | names, max_size=4))
archs = st.builds(Arch, names, st.integers(1, 4096), st.lists(ops, max_size=6).map(tuple),
                  st.lists(st.integers(0, 20), max_size=3).map(tuple))
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3)
                      | st.dictionaries(st.text(max_size=6), inner, max_size=3))


@given(ops)
def test_text_of_an_op_parses_back(op: Op) -> None:
    assert Op.parse(str(op)) == op and hash(Op.parse(f"  {op} ")) == hash(op)


@given(archs)
def test_json_of_an_arch_parses_back(arch: Arch) -> None:
    again = Arch.from_json(json.loads(json.dumps(arch.to_json())))
    assert again == arch and again.id == arch.id and len(arch.id) == 12


@given(archs, archs)
def test_ids_are_equal_where_archs_are(first: Arch, second: Arch) -> None:
    assert (first.id == second.id) == (first == second)


def test_the_order_of_knobs_does_not_matter() -> None:
    assert Op.parse("ghost(se=1, cheap=3,hidden=72)") == Op.of("ghost", hidden=72, se=1, cheap=3)
    assert str(Op.of("ghost", se=1, cheap=3)) == "ghost(cheap=3, se=1)"
    assert Op.parse("skip") == Op.parse("skip()") == SKIP


def test_an_id_is_the_sha256_of_the_canonical_json() -> None:
    arch = Arch("tiny", 16, (Op.of("ghost", hidden=8), SKIP))
    text = '{"exits":[],"ops":["ghost(hidden=8)","skip"],"size":16,"space":"tiny"}'
    assert arch.id == hashlib.sha256(text.encode()).hexdigest()[:12]
    others = [Arch("tiny", 32, arch.ops), Arch("tiny@0.5", 16, arch.ops), Arch("tiny", 16, arch.ops[::-1]),
              Arch("tiny", 16, arch.ops, (1,))]
    assert len({arch.id, *(other.id for other in others)}) == 5


def test_knobs_are_values() -> None:
    op = Op.of("ghost", cheap=3, hidden=72)
    assert (op.get("hidden"), op.get("se")) == (72, None)
    assert op.with_knobs(hidden=8, act="relu") == Op.of("ghost", act="relu", cheap=3, hidden=8)
    assert op.without("hidden") == Op.of("ghost", cheap=3) and op.without("se") == op


@pytest.mark.parametrize("text", [
    "", "Ghost", "ghost(", "ghost)", "ghost(hidden)", "ghost(hidden=)", "ghost(hidden=1.5)", "ghost(a=1, a=2)",
    "ghost(a=1,)", "ghost(a=1)(b=2)", "ghost a=1", "1x", "ghost(=1)", "ghost(a=b=c)", "ghost(a=--1)", "ghost(a=-)",
])
def test_text_that_is_no_op(text: str) -> None:
    with pytest.raises(UserError, match="operator"):
        Op.parse(text)


@given(st.text(max_size=30) | st.from_regex(r"[a-z]+\(([a-z]=-?[0-9a-z]+, ?)*.{0,5}\)"))
def test_any_text_is_an_op_or_one_line(text: str) -> None:
    op = read_or_refused(lambda: Op.parse(text), f"operator {text!r}")
    assert op is None or Op.parse(str(op)) == op


@given(values | st.fixed_dictionaries({"space": values, "size": values, "ops": values, "exits": values})
       | st.fixed_dictionaries({"space": st.text(max_size=8), "size": st.integers(), "exits": st.lists(st.integers()),
                                "ops": st.lists(ops.map(str) | st.sampled_from(["skip()", "a( b = 1 )", "A", "a("]))}))
def test_any_json_is_an_arch_or_one_line(value: object) -> None:
    arch = read_or_refused(lambda: Arch.from_json(value), "architecture: ", "operator ")
    if arch is not None:
        assert isinstance(value, dict)
        assert arch.to_json() == {**value, "ops": [str(Op.parse(op)) for op in value["ops"]]}
        assert Arch.from_json(json.loads(json.dumps(arch.to_json()))) == arch


@pytest.mark.parametrize(("change", "expected"), [
    ({"size": "16"}, "size: expected int"), ({"size": True}, "size"), ({"ops": "skip"}, "ops: expected list"),
    ({"ops": [1]}, "ops: every operator"), ({"ops": ["Skip"]}, "'Skip'"), ({"exits": [True]}, "exits: every exit"),
    ({"exits": ["1"]}, "exits"), ({"extra": 1}, "extra"),
])
def test_a_mistake_names_its_key(change: dict[str, object], expected: str) -> None:
    good = Arch("tiny", 16, (SKIP,)).to_json()
    with pytest.raises(UserError, match=expected):
        Arch.from_json({**good, **change})
    with pytest.raises(UserError, match="expected the keys space, size, ops, exits"):
        Arch.from_json({key: part for key, part in good.items() if key != "space"})
