"""What a run says of its images before anything long, on the terminal and in its log."""

from __future__ import annotations

from pathlib import Path

import pytest
from pictures import from_folder, tree
from tiny_search import Quiet, config_of

from nas.pipeline.setup import prepare_inputs
from nas.run import events
from nas.run.directory import Run
from nas.training.data import load
from nas.training.header import data_lines


def test_every_line(tmp_path: Path) -> None:
    tree(tmp_path / "train", {"ant": 30, "bee": 20})
    tree(tmp_path / "test", {"ant": 10, "bee": 8})
    (tmp_path / "labels.csv").write_text("x")
    tree(tmp_path / "more", {"x": 1})
    data = from_folder(tmp_path)
    assert data_lines(data, "crop") == [
        f"{tmp_path.name}: 68 images of 2 classes at 16x16, from {tmp_path}",
        "splits: train 40, gate 5, select 5 from train/; test 18 from test/",
        "smallest class: 'bee': 28 images (train 16, gate 2, select 2, test 8)",
        "pixels: upright, centre square, resized (bilinear, antialiased), RGB without transparency, first frame",
        "augmentation: shifted by up to 1 pixels (crop); train.augment=none or flip-crop changes it",
        "left out: .csv files (1)",
        "ignored beside the splits: more/ (splits are called train, training; val, valid, validation; test, testing)"]


def test_without_training_nothing_is_said_of_augmentation() -> None:
    lines = data_lines(load("digits", data_dir=None, size=None, seed=0))
    assert lines == [
        "digits: 1,797 images of 10 classes at 32x32, from scikit-learn load_digits (8x8 grey)",
        "splits: train 862, gate 288, select 288, test 359 from all images",
        "smallest class: '8': 174 images (train 83, gate 28, select 28, test 35)",
        "pixels: resized (bilinear, antialiased)"]


def test_a_limit_is_said(tmp_path: Path) -> None:
    data = from_folder(tree(tmp_path, {"ant": 50, "bee": 50}), limit=40)
    assert data_lines(data)[0].startswith(f"{tmp_path.name}: 60 of 100 images of 2 classes")  # 20 are always tested


@pytest.mark.parametrize("augment", ["crop", "flip-crop"])
def test_a_run_says_it_first_and_logs_it(space_file: Path, tmp_path: Path, augment: str) -> None:
    config = config_of(space_file, f"train.augment={augment}")
    run, shown = Run.open(tmp_path / "run", config.to_json()), Quiet()
    inputs = prepare_inputs(config, run, ["gpu-v100"], shown)
    lines = data_lines(inputs.data, augment)
    assert shown.notes[: len(lines)] == lines and run.events(events.Introduction)[0].lines == lines
    assert any(line.startswith("warning: classes may not survive mirroring") for line in lines) == (
        augment == "flip-crop")
    assert not any(line.startswith("on top") for line in lines)
    run.write("supernet.pt", lambda file: file.write(b""))
    again = Quiet()
    prepare_inputs(config, run, ["gpu-v100"], again)
    assert not set(lines) & set(again.notes)


def test_a_policy_is_said_behind_the_shifts(space_file: Path, tmp_path: Path) -> None:
    config, shown = config_of(space_file, "train.augment=crop", "train.policy=randaugment"), Quiet()
    prepare_inputs(config, Run.open(tmp_path / "run", config.to_json()), ["gpu-v100"], shown)
    at = next(index for index, line in enumerate(shown.notes) if line.startswith("augmentation: "))
    assert shown.notes[at + 1].startswith("on top: 2 operations of RandAugment an image (turned by up to 9 degrees, ")
