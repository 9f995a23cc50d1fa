"""What of a folder is listed, what is left out and counted, the same for labelled and unlabelled images."""

from __future__ import annotations

import os
import shutil
import socket
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from pictures import from_folder, picture, tree

from nas.errors import UserError
from nas.training.data import Data
from nas.training.header import data_lines, unlabeled_lines
from nas.training.listing import SUFFIXES, Lister
from nas.training.unlabeled import unlabeled

JUNK = (".hidden.png", "Thumbs.db", "desktop.ini", "@eaDir/x.png", "__MACOSX/._x.png", ".git/x.png", "notes.txt",
        "photo.HEIC", "README")


def junk(root: Path) -> None:
    for name in JUNK:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"no image")


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    junk(tmp_path)
    lister = Lister()
    assert [path.name for path in lister.images(tmp_path)] == ["a.png"]
    assert lister.skipped == {"hidden or system files": 3, "hidden or system folders": 3, ".txt files": 1,
                              ".heic files": 1, "files without a suffix": 1}


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_every_suffix_counts_in_any_case(tmp_path: Path, suffix: str) -> None:
    for name in (f"a{suffix}", f"b{suffix.upper()}"):
        (tmp_path / name).write_bytes(b"")
    assert len(Lister().images(tmp_path)) == 2


def test_labelled_and_unlabelled_folders_leave_out_the_same(tmp_path: Path) -> None:
    tree(tmp_path, {"a": 30, "b": 30})
    junk(tmp_path / "a")
    data = from_folder(tmp_path)
    images = unlabeled(tmp_path, data, 0)
    assert sum(data.source.sizes.values()) == 60 == images.source.available
    assert data.source.skipped == images.source.skipped
    for lines in (data_lines(data), unlabeled_lines(images)):
        (said,) = [line for line in lines if line.startswith("left out: ")]
        assert set(said.removeprefix("left out: ").split(", ")) == {
            "hidden or system files (3)", "hidden or system folders (3)", ".heic files (1)", ".txt files (1)",
            "files without a suffix (1)"}


def test_links_are_followed_but_no_folder_is_entered_twice(tmp_path: Path) -> None:
    tree(tmp_path / "photos", {"a": 5, "b": 5})
    picture(tmp_path / "elsewhere" / "more.png")
    (tmp_path / "photos" / "a" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "a" / "linked" / "up").symlink_to(tmp_path / "photos" / "a")
    (tmp_path / "photos" / "b" / "one.png").symlink_to(tmp_path / "elsewhere" / "more.png")
    (tmp_path / "photos" / "c").symlink_to(tree(tmp_path / "other", {"c": 6}) / "c", target_is_directory=True)
    data = from_folder(tmp_path / "photos")
    counts = [sum(data.source.class_counts[part][label] for part in data.source.sizes) for label in range(3)]
    assert data.classes == ("a", "b", "c") and counts == [6, 6, 6]
    assert data.source.skipped == {"links to folders that are listed already": 1}


@pytest.mark.parametrize("lead", [".", "..", "b", "../.."])
def test_a_link_within_a_class_brings_no_images_of_another(tmp_path: Path, lead: str) -> None:
    root = tree(tmp_path / "in" / "photos", {"a": 5, "b": 7})
    picture(tmp_path / "in" / "outside.png")
    (root / "a" / "x").symlink_to(root / lead, target_is_directory=True)
    data = from_folder(root)
    assert np.sum([data.source.class_counts[part] for part in data.source.sizes], axis=0).tolist() == [5, 7]
    assert data.source.skipped == {"links to folders that are listed already": 1}


@pytest.mark.parametrize(("link", "to"), [("b", "a"), ("val/a", "train/a"), ("val/a", "train/b"), ("a", "b")])
def test_a_class_folder_that_is_another_one_by_a_link_is_refused(tmp_path: Path, link: str, to: str) -> None:
    for root in {Path(link).parent, Path(to).parent}:
        tree(tmp_path / root, {"a": 9, "b": 9, "c": 9})
    shutil.rmtree(tmp_path / link)
    (tmp_path / link).symlink_to(tmp_path / to, target_is_directory=True)
    with pytest.raises(UserError, match=r"the same folder as .* by a link, so its images would count twice"):
        from_folder(tmp_path)
    (tmp_path / link).unlink()  # the advice, and images of its own
    tree(tmp_path / link / "..", {Path(link).name: 9})
    assert len(from_folder(tmp_path).classes) == 3


@pytest.mark.parametrize("lead", ["nowhere.png", "a/loop.png"])
def test_a_link_that_leads_nowhere_is_named(tmp_path: Path, lead: str) -> None:
    (tree(tmp_path, {"a": 5, "b": 5}) / "a" / "loop.png").symlink_to(tmp_path / lead)
    with pytest.raises(UserError, match=r"a/loop\.png: cannot be read"):
        from_folder(tmp_path)


def test_pipes_and_sockets_are_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, {"a": 30, "b": 5})
    os.mkfifo(tmp_path / "a" / "pipe.png")
    monkeypatch.chdir(tmp_path / "a")  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket.png")
        data = from_folder(tmp_path)
        assert unlabeled(tmp_path, data, 0).source.skipped == {"pipes, sockets or devices": 2}
    assert data.source.skipped == {"pipes, sockets or devices": 2}


def test_files_beside_class_folders_are_counted(tmp_path: Path) -> None:
    tree(tmp_path / "train", {"a": 5, "b": 5})
    tree(tmp_path / "test", {"a": 5, "b": 5})
    (tmp_path / "train.csv").write_text("x")
    picture(tmp_path / "train" / "stray.png")
    assert from_folder(tmp_path).source.skipped == {".csv files": 1, "images outside the class folders": 1}


def test_a_class_is_the_same_in_both_forms_of_unicode(tmp_path: Path) -> None:
    for part, form in (("train", "NFC"), ("test", "NFD")):
        tree(tmp_path / part, {unicodedata.normalize(form, "café"): 6, "zoo": 6})
    data = from_folder(tmp_path)
    assert data.classes == (unicodedata.normalize("NFC", "café"), "zoo")
    assert data.source.class_counts["test"] == [6, 6]
    tree(tmp_path / "train", {unicodedata.normalize("NFD", "café"): 6})
    with pytest.raises(UserError, match="the same name in two forms of Unicode"):
        from_folder(tmp_path)


@pytest.mark.parametrize("name", [b"caf\xe9", b"two\nlines"])
def test_names_that_no_file_can_keep_are_refused(tmp_path: Path, name: bytes) -> None:
    tree(tmp_path, {"a": 5, "b": 5})
    os.rename(os.fsencode(tmp_path / "b"), os.fsencode(tmp_path) + b"/" + name)
    with pytest.raises(UserError, match="the name has a line break or bytes that are no UTF-8") as caught:
        from_folder(tmp_path)
    str(caught.value).encode()  # can be printed


def test_home_and_a_trailing_slash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    tree(tmp_path / "photos", {"a": 20, "b": 20})
    data = from_folder(Path("~/photos/"))
    assert data.name == "photos" and unlabeled(Path("~/photos"), data, 0).source.available == 40


def test_images_lie_at_any_depth_of_a_class(tmp_path: Path) -> None:
    tree(tmp_path / "a", {"monday": 3, "tuesday": 3})
    tree(tmp_path, {"b": 6})
    data: Data = from_folder(tmp_path)
    assert data.classes == ("a", "b") and sum(data.source.sizes.values()) == 12
