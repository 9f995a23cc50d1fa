"""Classes of images are outputs of a network by name; where there are no names, what is done is said, or refused."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nas.errors import UserError
from nas.training.data import load
from nas.training.labels import names_in, outputs, read_names

TWELVE = sorted(str(index) for index in range(12))  # 0, 1, 10, 11, 2, ...


@given(names=st.lists(st.text(min_size=1, max_size=4), min_size=2, max_size=8, unique=True), drawn=st.data())
def test_names_decide_whatever_the_order_and_the_subset(names: list[str], drawn: st.DataObject) -> None:
    classes = drawn.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    try:
        meant = outputs("m", len(names), names, classes)
    except UserError as error:
        assert "several outputs named" in str(error) and str(error).isprintable()
        assert len({unicodedata.normalize("NFC", name) for name in names}) < len(names)
        return
    assert [names[column] for column in meant.columns] == classes and meant.by == "by name"
    assert meant.labels(torch.arange(len(classes))).tolist() == list(meant.columns)


@pytest.mark.parametrize(("count", "known", "classes", "columns", "by"), [
    (3, None, ["cat", "dog", "eel"], [0, 1, 2], "by order: the network does not name"),
    (3, ["0", "1", "2"], ["cat", "dog", "eel"], [0, 1, 2], "by order"),  # what nas exits writes where there are none
    (10, None, [str(i) for i in range(10)], [*range(10)], "by number"),
    (1000, None, ["207", "3", "999"], [207, 3, 999], "by number"),
    (12, [str(i) for i in range(12)], TWELVE, [0, 1, 10, 11, *range(2, 10)], "by name"),
    (3, None, ["00", "01", "02"], [0, 1, 2], "by number"),
    (2, ["caf\u00e9", "bar"], ["bar", "cafe\u0301"], [1, 0], "by name"),  # composed or not
])
def test_what_is_meant(count: int, known: list[str] | None, classes: list[str], columns: list[int], by: str) -> None:
    meant = outputs("m", count, known, classes)
    assert list(meant.columns) == columns and meant.by.startswith(by) and len(meant.names) == count


@pytest.mark.parametrize(("count", "known", "classes", "message"), [
    (3, ["cat", "dog", "eel"], ["cat", "dgo"], "does not know the class 'dgo' of these images; did you mean 'dog'"),
    (3, ["cat", "dog"], ["cat", "dog"], "names 2 classes and has 3 outputs; give the network's classes with classes"),
    (3, None, ["cat", "dog"], "3 outputs without names, but the images have 2 classes; .*classes=FILE"),
    (2, None, ["cat", "dog", "eel"], "2 outputs, but the images have 3 classes, more than the network knows"),
    (12, None, TWELVE, r"in this order \(sorted as texts\) or by number\? .*classes=FILE"),
    (5, None, ["1", "01"], "are the same numbers twice"),
    (3, ["crane", "crane", "dog"], ["crane", "dog"], "several outputs named 'crane'"),
])
def test_what_cannot_be_said_is_one_line_with_a_way_out(count: int, known: list[str] | None, classes: list[str],
                                                        message: str) -> None:
    with pytest.raises(UserError, match=f"^m: .*{message}"):
        outputs("m", count, known, classes)


def test_the_way_out_works(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("\ufeff" + "\r\n".join(TWELVE) + "\n", encoding="utf-8")
    assert read_names(path) == TWELVE and read_names(None) is None
    assert outputs("m", 12, read_names(path), TWELVE).columns == tuple(range(12))
    for content, message in ((b"", "the file is empty"), (b"a\n\nb", "line 2 is empty"), (b"\xff\xfe", "UTF-8")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_names(path)
    with pytest.raises(UserError, match=r"none\.txt: No such file"):
        read_names(tmp_path / "none.txt")


def test_images_get_the_outputs_as_labels() -> None:
    data = load("digits", data_dir=None, size=8, seed=0, limit=100)
    names = [f"x{index}" for index in range(4)] + [str(index) for index in reversed(range(10))]
    meant = outputs("m", 14, names, data.classes).applied(data)
    for part in ("learn", "train", "gate", "select", "test"):
        before, after = getattr(data, part), getattr(meant, part)
        assert torch.equal(after.labels, 13 - before.labels) and torch.equal(after.images, before.images)
    assert meant.classes == tuple(names) and replace(meant, classes=data.classes) is not meant


def test_names_in_the_metadata_of_a_file() -> None:
    assert names_in({"classes": "ant\nbee\n"}) == ["ant", "bee", ""] and names_in({}) is None
