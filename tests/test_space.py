"""Spaces: a YAML file is a Space or one UserError with its key; widths are worked out by hand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hostile import read_or_refused
from hypothesis import given
from hypothesis import strategies as st
from tiny_space import TINY

from nas.errors import UserError
from nas.files import shipped
from nas.plan import Task, layout
from nas.space import Space, Widths, divisible

KEYS = ["name", "stem", "stages", "ops", "head", "skip", "op", "out", "stride", "depth", "ghost", "hidden", "min", "se"]
scalars = (st.none() | st.booleans() | st.integers(-3, 10**6) | st.floats() | st.text(max_size=6)
           | st.sampled_from(["stem(kernel=3)", "head(hidden=16)", "ghost", "skip", "head(hidden=0, act=gelu)"]))
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3)
                      | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3), max_leaves=5)


def places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything inside."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, part in items for path in [(*above, key), *places(part, (*above, key))]]


def changed(where: tuple[Any, ...], value: Any = None, drop: bool = False) -> dict[str, Any]:
    """A copy of the tiny space with one thing replaced, added or dropped."""
    space = copy.deepcopy(TINY)
    place: Any = space
    for key in where[:-1]:
        place = place[key]
    if drop:
        del place[where[-1]]
    else:
        place[where[-1]] = value
    return space


@pytest.mark.parametrize("name", shipped("search_spaces", ".yaml"))
def test_shipped_spaces_load_and_lay_out(name: str) -> None:
    space = Space.load(name)
    assert space.name == name and space.about and layout(space, Task(32, 3, 10)).slots
    half = Space.load(f"{name}@0.5")
    assert half.name == f"{name}@0.5" and half.stages[-1].out == space.stages[-1].out / 2
    assert layout(half, Task(32, 3, 10)).space == half.name


@pytest.mark.parametrize(("space", "expected"), [
    (changed(("colour",), 1), "colour: unknown key"),
    (changed(("name",), drop=True), "name: missing"),
    (changed(("name",), "My Space"), "name: "),
    (changed(("file",), "x"), "file: unknown key"),
    (changed(("stem", "out"), 0), "stem.out: "),
    (changed(("stem", "out"), "8"), "stem.out: "),
    (changed(("stem", "kernel"), 3), "stem.kernel: unknown key"),
    (changed(("stem", "act=relu)"), None), r"stem\.act=relu\): unknown key; within { } an operator with commas needs"),
    (changed(("stem", "op"), "stem(kernel=3"), "stem.op: "),
    (changed(("stem", "op"), "stme(kernel=3)"), "did you mean 'stem'"),
    (changed(("stem", "op"), "stem(kernels=3)"), "unknown knob 'kernels'"),
    (changed(("stem", "stride"), 3), "stem.stride: "),
    (changed(("ops", "ghost", "hidden"), "6"), r"ops.ghost.hidden: write channels, for example 96, or 6x"),
    (changed(("ops", "ghost", "hidden"), 2.5), r"ops.ghost.hidden: .*\(got 2.5\)"),
    (changed(("ops", "ghost", "hidden"), 7), "ops.ghost: .*hidden 7 is no multiple of 2"),
    (changed(("stages",), []), "stages: "),
    (changed(("stages", 1, "depth"), 0), "stages.1.depth: "),
    (changed(("stages", 1, "depth"), 1.5), "stages.1.depth: "),
    (changed(("stages", 1, "out"), 10**6), "stages.1.out: "),
    (changed(("stages", 0, "ops"), {"nope": {}}), "stages.0.ops.nope: unknown operator"),
    (changed(("ops",), {}), "ops: "),
    (changed(("ops", "nope"), {"se": [0]}), "ops.nope: unknown operator 'nope'"),
    (changed(("ops", "ghost", "sse"), [0]), "ops.ghost: .*unknown knob 'sse'"),
    (changed(("ops", "ghost", "se"), []), "ops.ghost.se: "),
    (changed(("ops", "ghost", "se"), [1.5]), r"ops.ghost.se.0: .*\(got 1.5\)"),
    (changed(("ops", "ghost", "se"), {"min": 1, "max": 2}), "ops.ghost.se: only hidden is a range"),
    (changed(("ops", "ghost", "hidden"), [8, 16]), r"ops.ghost.hidden: write \{min"),
    (changed(("ops", "ghost", "hidden"), drop=True), "ops.ghost: .*'hidden' is missing"),
    (changed(("ops", "ghost", "hidden", "max"), 0.5), r"ops.ghost.hidden: min 1\.0 is larger than max 0\.5"),
    (changed(("ops", "ghost", "hidden", "max"), "3"), "ops.ghost.hidden.max: .*valid number"),
    (changed(("ops", "ghost", "hidden", "maximum"), 3), "ops.ghost.hidden.maximum: unknown key"),
    (changed(("ops", "ghost", "cheap"), [4]), "ops.ghost: .*kernel 4: it must be odd"),
    (changed(("ops", "ghost", "cheap"), ["a"]), "ops.ghost: .*cheap=a"),
    (changed(("ops", "mbconv", "kernel"), [3, -1]), "ops.mbconv: .*kernel -1"),
    (changed(("stem", "op"), "stem(kernel=4)"), "stem.op: .*kernel 4"),
    (changed(("stem", "op"), "stem(act=gelu)"), "stem.op: .*unknown activation 'gelu'"),
    (changed(("head", "op"), "head(hidden=16, act=gelu)"), "head.op: .*unknown activation 'gelu'"),
    (changed(("head", "op"), "head(features=16, act=gelu)"), "head.op: .*unknown activation 'gelu'"),
    (changed(("head", "op"), "head(hidden=-1)"), "head.op: .*hidden"),
    (changed(("head", "op"), "head(hidden=relu)"), "head.op: "),
    (changed(("head", "op"), "head(dropout_percent=200)"), "head.op: "),
    (changed(("ops", "ghost", "hidden", "max"), float("inf")), "ops.ghost.hidden"),
    (changed(("ops", "ghost", "hidden", "min"), float("nan")), "ops.ghost.hidden"),
    (changed(("ops", "ghost", "hidden", "step"), 3), "ops.ghost: .*no multiple of 2"),
    (changed(("skip",), "maybe"), "skip: "),
    ([], "expected a mapping"),
    (None, "expected a mapping"),
])
def test_a_mistake_names_file_and_key(space: Any, expected: str) -> None:
    with pytest.raises(UserError, match=rf"^bad\.yaml: .*{expected}") as error:
        layout(Space.parse(space, "bad.yaml"), Task(16, 3, 4))
    assert "\n" not in str(error.value)


@given(st.sampled_from(places(TINY)), values, st.booleans())
def test_any_change_gives_a_space_or_one_line(where: tuple[Any, ...], value: Any, drop: bool) -> None:
    space = read_or_refused(lambda: Space.parse(changed(where, value, drop), "x.yaml"), f"x.yaml: {where[0]}")
    assert space is None or Space.parse(yaml.safe_load(yaml.safe_dump(space.model_dump())), "x.yaml") == space


@given(st.text(max_size=60) | st.sampled_from(["{", "- a: [", "a: *b", "&a [*a]", "\x00", "!!python/name:os.system",
                                               "? {a: 1}: 2", "[" * 5000, "name: ghost", "a: 1e999999", "2001-99-99"]))
def test_any_text_gives_a_space_or_one_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.mktemp("space") / "x.yaml"
    file.write_text(text, encoding="utf-8", errors="replace")
    with pytest.raises(UserError, match=r"x\.yaml"):
        Space.load(str(file))


def test_a_mistake_in_a_head_that_is_scaled_names_file_and_key(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(changed(("head", "op"), "")))
    with pytest.raises(UserError, match=r"x\.yaml: head\.op: operator '': write name"):
        Space.load(f"{tmp_path / 'x.yaml'}@0.5")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe")
    for name in (tmp_path / "b.yaml", tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UserError):
            Space.load(str(name))


def test_yaml_and_plain_data_are_the_same_space(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    assert Space.load(str(tmp_path / "tiny.yaml")).model_dump() == Space.parse(TINY).model_dump()


@pytest.mark.parametrize(("widths", "in_ch", "expected"), [
    (Widths(min=1, max=3, step=8), 8, (8, 16, 24)),
    (Widths(min=1, max=3, step=8), 16, (16, 24, 32, 40, 48)),
    (Widths(min=1.5, max=2, step=8), 12, (24,)),  # 18 .. 24
    (Widths(min=1, max=1, step=8), 12, (16,)),  # nothing from 12 to 12: the first multiple above
    (Widths(min=0.1, max=0.2, step=8), 8, (8,)),
    (Widths(min=1, max=2, step=1), 2, (2, 3, 4)),
])
def test_widths_by_hand(widths: Widths, in_ch: int, expected: tuple[int, ...]) -> None:
    assert widths.of(in_ch) == expected


@pytest.mark.parametrize(("channels", "expected"), [
    (16, 16), (17.9, 20), (17.7, 16), (18, 20), (1, 4), (6, 8), (8 * 1.3, 12), (26.9, 28), (40 * 0.35, 16),
])
def test_divisible_by_hand(channels: float, expected: int) -> None:
    assert divisible(channels) == expected  # the nearest multiple of 4, halves up, never below 0.9 of it


def test_scaling_scales_every_channel() -> None:
    space = Space.load("ghost").scaled(0.5)
    assert [stage.out for stage in space.stages] == [8, 12, 20, 40, 56, 80]
    assert (space.stem.out, space.head.op) == (8, "head(dropout_percent=20, hidden=480)")
    assert Space.load("ghost").scaled(1.0).name == "ghost"


@pytest.mark.parametrize("name", ["ghost@", "ghost@x", "ghost@0", "ghost@-1", "ghost@99", "ghost@nan", "ghots@0.5"])
def test_a_width_that_makes_no_sense(name: str) -> None:
    if name == "ghost@":
        assert Space.load(name).name == "ghost"
        return
    with pytest.raises(UserError):
        Space.load(name)


def test_one_family_only(tiny_space: Space) -> None:
    only = layout(tiny_space.only("mbconv"), Task(16, 3, 4))
    assert {op.name for slot in only.slots for op in slot.ops} == {"mbconv", "skip"}
    with pytest.raises(UserError, match="only_op=nope: the space tiny has ghost, mbconv"):
        tiny_space.only("nope")
