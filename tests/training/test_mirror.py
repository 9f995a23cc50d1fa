"""Classes that do not survive mirroring are told before training; natural images are not accused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import from_folder
from PIL import Image, ImageDraw

from nas.training import mirror
from nas.training.data import load
from nas.training.header import data_lines

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def arrow(rng: np.random.Generator, right: bool, hard: bool) -> Image.Image:
    """Black on white, or (``hard``) coloured on noise and of any size."""
    side, width = 48, int(rng.integers(16, 30) if hard else rng.integers(24, 34))
    back = rng.integers(0, 256, (side, side, 3)) if hard else np.full((side, side, 3), 255)
    image = Image.fromarray(back.astype(np.uint8))
    colour = tuple(rng.integers(0, 256, 3).tolist()) if hard else (0, 0, 0)
    x, y = rng.integers(0, side - width, 2).tolist()
    tip, half = (x + width if right else x, y + width // 2), x + width // 2
    draw = ImageDraw.Draw(image)
    draw.line([(x, tip[1]), (x + width, tip[1])], colour, 4)
    draw.line([(half, y), tip, (half, y + width)], colour, 4)
    return image


def arrows(root: Path, count: int, hard: bool = False) -> Path:
    rng = np.random.default_rng(0)
    for index in range(count):
        for name in ("left", "right"):
            (root / name).mkdir(parents=True, exist_ok=True)
            arrow(rng, name == "right", hard).save(root / name / f"{index:03d}.png")
    return root


@pytest.mark.parametrize(("count", "hard"), [(30, False), (200, False), (200, True)])
def test_arrows(tmp_path: Path, count: int, hard: bool) -> None:
    data = from_folder(arrows(tmp_path, count, hard), size=32)
    (warned,) = [line for line in data_lines(data, data.augment) if line.startswith("warning")]
    assert "give train.augment=crop" in warned and "mirror" in warned
    if not hard:
        assert "'left' mirrored is taken for 'right'" in warned and "'right' mirrored is taken for 'left'" in warned
    assert not [line for line in data_lines(data, "crop") if line.startswith("warning")]


def test_figures() -> None:
    data = load("digits", data_dir=None, size=None, seed=0)
    warned = mirror.warning(data.learn.images, data.learn.labels, data.classes, "train.augment")
    assert warned is not None and "'3' mirrored is taken for '8'" in warned
    assert not [line for line in data_lines(data, data.augment) if line.startswith("warning")]  # crop: not mirrored
    assert [line for line in data_lines(data, "flip-crop") if line.startswith("warning")] == [warned]


def test_two_sided_classes_among_many_are_found() -> None:
    """Two arrows among ten classes that survive: hardly anything over all, everything for these two."""
    rng, images, labels = np.random.default_rng(0), [], []
    for _ in range(60):
        for label in range(12):
            image = np.asarray(arrow(rng, label == 1, False)) if label < 2 else _spot(rng, label)
            images.append(torch.from_numpy(image.copy()).permute(2, 0, 1))
            labels.append(label)
    names = ["left", "right", *(f"spot {label}" for label in range(10))]
    warned = mirror.warning(torch.stack(images), torch.tensor(labels), names, "augment")
    assert warned is not None and "'left' mirrored is" in warned and "'right' mirrored is" in warned
    assert "'spot 2' mirrored" not in warned and warned.endswith("give augment=crop")


def _spot(rng: np.random.Generator, label: int) -> np.ndarray:
    """A spot of the class's colour, anywhere."""
    image = np.full((48, 48, 3), 255, np.uint8)
    x, y = rng.integers(0, 32, 2)
    image[y : y + 16, x : x + 16] = (label * 20, 250 - label * 20, (label * 90) % 256)
    return image


def test_noise_and_few_images_say_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (200, 3, 16, 16), generator=generator, dtype=torch.uint8)
    assert mirror.warning(images, torch.arange(200) % 2, ["a", "b"], "") is None
    assert mirror.warning(images[:10], torch.arange(10) % 2, ["a", "b"], "") is None


@pytest.mark.parametrize("size", [32, 128])
def test_photographs_of_objects_are_not_accused(size: int) -> None:
    root = SHARED / "imagenette128" / "mini_imagefolder"
    if not root.is_dir():
        pytest.skip(f"{root} is not there")
    data = from_folder(root, size=size)
    assert mirror.warning(data.learn.images, data.learn.labels, data.classes, "") is None


def test_cifar10_is_not_accused() -> None:
    file = SHARED / "cifar10" / "cifar10_subset.npz"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    kept = np.load(file)
    images, labels = torch.from_numpy(kept["train_images"]).permute(0, 3, 1, 2), torch.from_numpy(kept["train_labels"])
    assert mirror.warning(images, labels, kept["classes"].tolist(), "") is None


def test_no_other_generator_is_used_and_answers_stay() -> None:
    data = load("digits", data_dir=None, size=None, seed=0, limit=300)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, second = (mirror.answers(data.learn.images, data.learn.labels, 10) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert (first.plain == second.plain).all() and (first.mirrored == second.mirrored).all()


def test_what_counts_as_lost() -> None:
    """By hand: 40 right answers of which 12 are right mirrored, and none the other way: 28 of 28 by chance, 2^-28."""
    labels = np.zeros(50, int)
    plain, mirrored = np.array([0] * 40 + [1] * 10), np.array([0] * 12 + [1] * 38)
    answers, every = mirror.Answers(labels, plain, mirrored), np.ones(50, bool)
    assert answers.lost(every, 0.5, 2.0**-27) and not answers.lost(every, 0.5, 2.0**-29)
    assert not answers.lost(every, 0.29, 1.0) and answers.lost(every, 0.3, 1.0)
