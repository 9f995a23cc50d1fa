"""Shipped files are found by name, others by path; a write is whole or did not happen."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.errors import UserError
from nas.files import Locked, locked, nearest, parse_json, resolve, shipped, write_atomic, write_json, write_text


@dataclass(frozen=True)
class Note:
    of: object
    inside: object


def test_a_name_is_shipped_and_anything_else_a_path(tmp_path: Path) -> None:
    assert resolve("search_spaces", "ghost", ".yaml").name == "ghost.yaml"
    assert resolve("search_spaces", "resnet18", ".yaml").parent.name == "presets"
    mine = tmp_path / "ghost.yaml"
    mine.touch()
    assert resolve("search_spaces", str(mine), ".yaml") == mine
    with pytest.raises(UserError, match=r"no 'ghots'; did you mean 'ghost'\? known: .*mbconv"):
        resolve("search_spaces", "ghots", ".yaml")
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UserError, match="no such file"):
            resolve("search_spaces", str(path), ".yaml")


def test_shipped_names_are_sorted_stems() -> None:
    names = shipped("search_spaces", ".yaml")
    assert names == sorted(names) and "ghost" in names and shipped("search_spaces", ".none") == []


def test_nearest() -> None:
    assert nearest("hiden", ["se", "hidden"]) == "did you mean 'hidden'? known: hidden, se"
    assert nearest("zzz", ["b", "a"]) == "known: a, b" and nearest("x", []) == "known: none"


def test_a_write_makes_folders_and_leaves_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    write_text(path, "é")
    assert path.read_text(encoding="utf-8") == "é" and os.listdir(path.parent) == ["b.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, OSError])
def test_a_write_that_is_interrupted_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def interrupted(file: Any) -> None:
        file.write(b"half")
        raise error

    with pytest.raises(error):
        write_atomic(path, interrupted)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.bin"]


def test_json_has_no_nan_and_keeps_its_order(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"b": 1, "a": [0.1]})
    assert json.loads(path.read_text()) == {"b": 1, "a": [0.1]} and path.read_text().index('"b"') < 5
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, float("nan"))
    assert json.loads(path.read_text()) == {"b": 1, "a": [0.1]}


def test_readers_see_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    """A reader looks while each of the writers is in the middle of its file."""
    path, seen = tmp_path / "a", list[str]()
    write_text(path, "0" * 50_000)
    begun = threading.Barrier(9)

    def write(digit: str) -> None:
        def slowly(file: BinaryIO) -> None:
            file.write(digit.encode() * 20_000)
            file.flush()
            begun.wait()
            seen.append(path.read_text())
            file.write(digit.encode() * 30_000)

        write_atomic(path, slowly)

    writers = [threading.Thread(target=write, args=(str(i),)) for i in range(1, 9)]
    for writer in writers:
        writer.start()
    begun.wait()
    while any(writer.is_alive() for writer in writers):
        seen.append(path.read_text())
    assert len(seen) >= 8 and path.read_text() != "0" * 50_000 and os.listdir(tmp_path) == ["a"]
    assert all(len(text) == 50_000 and len(set(text)) == 1 for text in [*seen, path.read_text()])


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a": -Infinity}', "1e999", "", "{", "[1,]"])
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
                    | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_reads_back(value: object) -> None:
    assert parse_json(json.dumps(value)) == value == parse_json(json.dumps(value).encode())


def test_a_lock_is_held_by_one_process_at_a_time_and_names_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path):
        assert path.read_text() == f"{os.getpid()}\n"
        with pytest.raises(Locked, match=f"^process {os.getpid()}$"), locked(path):
            pass
    with locked(path):  # let go at the end of the block
        pass
    with pytest.raises(KeyError), locked(path):
        raise KeyError
    with locked(path):
        pass


def test_a_record_is_written_as_its_fields_and_read_by_name(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", [Note(Path("a") / "b", Note("inside", None))])
    assert parse_json((tmp_path / "a.json").read_text()) == [{"of": "a/b", "inside": {"of": "inside", "inside": None}}]
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {1, 2})
