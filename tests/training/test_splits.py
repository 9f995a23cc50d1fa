"""Which folder becomes which split, under what names, and what a class needs to be in all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from every import every
from pictures import from_folder, tree

from nas.errors import UserError
from nas.training.folder import NAMES
from nas.training.header import data_lines
from nas.training.splits import SPLITS

TWO = {"a": 10, "b": 10}


@pytest.mark.parametrize(("part", "name"), [(part, name) for part, names in NAMES.items() for name in names])
@pytest.mark.parametrize("case", [str.lower, str.capitalize, str.upper])
def test_every_name_of_a_split_in_any_case(tmp_path: Path, part: str, name: str, case: object) -> None:
    assert callable(case)
    folders = {"train": "train", "select": "val", "test": "test", part: case(name)}
    for folder in folders.values():
        tree(tmp_path / folder, TWO)
    data = from_folder(tmp_path)
    assert data.classes == ("a", "b")
    assert data.source.splits == {key: f"{folders[key]}/" for key in ("train", "select", "test")} | {
        "gate": f"{folders['train']}/"}
    assert data.source.sizes == {"train": 18, "gate": 2, "select": 20, "test": 20}


@pytest.mark.parametrize("folders", [("part1", "part2"), ("learn", "test"), ("seg_train", "seg_test", "seg_pred"),
                                     ("fold", "dev")])
def test_splits_under_other_names_are_refused(tmp_path: Path, folders: tuple[str, ...]) -> None:
    for name in folders:
        tree(tmp_path / name, {"cat": 5, "dog": 5, name: 5})
    with pytest.raises(UserError) as caught:
        from_folder(tmp_path)
    text = str(caught.value)
    assert every(f"{name}/" in text for name in folders) and "cat, dog" in text and "call them train/" in text
    for old, new in zip(folders, ("train", "test", "val"), strict=False):  # the advice
        for other in ("cat", "dog"):
            (tmp_path / new / other).parent.mkdir(exist_ok=True)
            (tmp_path / old / other).rename(tmp_path / new / other)
        for file in (tmp_path / old / old).iterdir():
            file.unlink()
        (tmp_path / old / old).rmdir()
        if old != new:
            (tmp_path / old).rmdir()
    assert from_folder(tmp_path).classes == ("cat", "dog")


def test_folds_inside_of_splits_are_no_classes(tmp_path: Path) -> None:
    for fold in ("train/fold1", "train/fold2", "test/fold1", "test/fold2"):
        tree(tmp_path / fold, TWO)
    with pytest.raises(UserError, match="train: fold1/, fold2/ all hold the folders a, b, so they look like splits"):
        from_folder(tmp_path)


def test_images_directly_in_splits_are_said(tmp_path: Path) -> None:
    tree(tmp_path, {"train": 9, "test": 9})
    with pytest.raises(UserError, match=r"train: no class folders, but images directly in what is named as a split; .*"
                                        "if train/ is a class, rename it"):
        from_folder(tmp_path)
    for name in ("train", "test"):  # the advice
        (tmp_path / name).rename(tmp_path / f"{name}s")
    assert from_folder(tmp_path).classes == ("tests", "trains")


def test_class_folders_with_folders_of_their_own_are_classes(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        tree(tmp_path / name, {"monday": 3, name: 3})  # one name in common is no layout of splits
    assert from_folder(tmp_path).classes == ("cat", "dog")


@pytest.mark.parametrize("twice", [("train", "Train"), ("train", "Training"), ("val", "valid"), ("test", "Testing")])
def test_two_folders_for_one_split_are_refused(tmp_path: Path, twice: tuple[str, str]) -> None:
    for name in {"train", *twice}:
        tree(tmp_path / name, TWO)
    with pytest.raises(UserError) as caught:
        from_folder(tmp_path)
    assert every(f"{name}/" in str(caught.value) for name in twice) and "move or rename" in str(caught.value)


def test_a_split_that_is_a_link_to_another_is_refused(tmp_path: Path) -> None:
    tree(tmp_path / "train", TWO)
    (tmp_path / "val").symlink_to(tmp_path / "train", target_is_directory=True)
    with pytest.raises(UserError, match="train/, val/: two of them are the same folder by a link"):
        from_folder(tmp_path)


def test_a_folder_beside_the_splits_is_named(tmp_path: Path) -> None:
    for name in ("train", "test", "dev", "eval", "extra"):
        tree(tmp_path / name, TWO)
    data = from_folder(tmp_path)
    assert data.source.ignored == ["dev/", "eval/", "extra/"]
    assert any(line.startswith("ignored beside the splits: dev/, eval/, extra/ (") for line in data_lines(data))
    assert sum(data.source.sizes.values()) == 40


def test_a_folder_that_holds_the_classes_is_named(tmp_path: Path) -> None:
    tree(tmp_path / "dataset", TWO)
    with pytest.raises(UserError, match=f"or give {tmp_path / 'dataset'}"):
        from_folder(tmp_path)
    assert from_folder(tmp_path / "dataset").classes == ("a", "b")


def test_val_without_test_is_halved_the_same_for_every_seed(tmp_path: Path) -> None:
    tree(tmp_path / "train", {"a": 20, "b": 20, "c": 20})
    tree(tmp_path / "val", {"a": 8, "b": 4, "c": 1})
    first, second = (from_folder(tmp_path, seed=seed) for seed in (0, 1))
    # 13 images, 6 of them to choose on: 8 and 4 halved; the only image of c is tested
    assert first.source.class_counts["select"] == [4, 2, 0] and first.source.class_counts["test"] == [4, 2, 1]
    assert first.indices["test"] == second.indices["test"] and first.indices["select"] == second.indices["select"]
    assert set(first.indices["select"]) | set(first.indices["test"]) == set(range(60, 73))
    assert set(first.indices["train"]) | set(first.indices["gate"]) == set(range(60))
    assert first.indices["train"] != second.indices["train"]
    line = "splits: train 54, gate 6 from train/; select 6 from one half of val/; test 7 from the other half of val/"
    assert line in data_lines(first)
    limited = from_folder(tmp_path, limit=9)
    assert limited.indices["test"] == first.indices["test"] and len(limited.select) == 6


def test_a_val_of_single_images_cannot_be_halved(tmp_path: Path) -> None:
    tree(tmp_path / "train", {"a": 20, "b": 20})
    tree(tmp_path / "val", {"a": 1, "b": 1})
    with pytest.raises(UserError, match="for select; give at least 2 images a class in train/ and 2 in val/"):
        from_folder(tmp_path)


LEAST = {  # folders -> the least images a class in each that put one into every split
    ("",): (4,), ("train",): (4,), ("train", "test"): (3, 1), ("train", "val"): (2, 2),
    ("train", "val", "test"): (2, 1, 1),
}
LACKING = [(folders, lacks) for folders, least in LEAST.items()
           for lacks in (None, *(index for index, count in enumerate(least) if count > 1))]


@pytest.mark.parametrize(("folders", "lacks"), LACKING)
def test_the_least_images_of_a_class(tmp_path: Path, folders: tuple[str, ...], lacks: int | None) -> None:
    """With the least there is one in every split; with one less of one folder a line says where it is missing."""
    least = [count - (index == lacks) for index, count in enumerate(LEAST[folders])]
    for folder, count in zip(folders, least, strict=True):
        tree(tmp_path / folder, {"a": 30, "rare": count})
    data = from_folder(tmp_path)
    rare = [data.source.class_counts[part][1] for part in SPLITS]
    said = [line for line in data_lines(data, "crop") if line.startswith("warning: too few images")]
    assert (0 not in rare) == (lacks is None) and len(said) == (lacks is not None)
    if said:
        shares = ", ".join(f"{part} {count}" for part, count in zip(SPLITS, rare, strict=True))
        assert f"'rare': {sum(rare)} images ({shares})" in said[0]
        assert "give at least" in said[0] and str(LEAST[folders][0]) in said[0]
