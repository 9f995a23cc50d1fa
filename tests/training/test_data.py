"""Splits, augmentation, batches and the built-in sources."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nas.errors import UserError
from nas.training import data as data_module
from nas.training.augment import KINDS, augmented
from nas.training.augmentation import Augmentation
from nas.training.data import Data, Split, batches, eval_batches, fingerprint, load, normalise
from nas.training.splits import quotas, take

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
PLAIN = Augmentation("none")
PARTS = ("train", "gate", "select", "test")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def digits() -> Data:
    return load("digits", data_dir=None, size=None, seed=0)


# --- splits ---


def test_digits_are_split_without_overlap(digits: Data) -> None:
    # 1797 images: 20 % = 359 for the test, 20 % of the other 1438 = 288 each for gate and select (fewer than 300)
    assert digits.source.sizes == {"train": 862, "gate": 288, "select": 288, "test": 359}
    everything = [index for part in PARTS for index in digits.indices[part]]
    assert sorted(everything) == list(range(1797))
    for part in PARTS:
        split: Split = getattr(digits, part)
        assert split.images.shape == (len(digits.indices[part]), 3, 32, 32)
        assert split.images.dtype == torch.uint8 and split.labels.dtype == torch.int64
        assert sum(digits.source.class_counts[part]) == len(split)
        counts = digits.source.class_counts[part]
        assert max(counts) - min(counts) <= 0.1 * max(counts) + 1  # the source itself has 174 .. 183 a class


def test_fine_tuning_learns_from_train_and_gate_without_a_copy(digits: Data) -> None:
    assert torch.equal(digits.learn.labels, torch.cat((digits.train.labels, digits.gate.labels)))
    starts = [part.images.untyped_storage().data_ptr() for part in (digits.learn, digits.train, digits.gate)]
    assert len(set(starts)) == 1 and len(digits.learn) == 862 + 288


def test_digits_are_what_sklearn_has(digits: Data) -> None:
    from sklearn.datasets import load_digits

    raw = load_digits()
    small = load("digits", data_dir=None, size=8, seed=0)
    index = small.indices["select"][5]
    expected = np.rint(raw.images[index] * 255 / 16)
    assert np.array_equal(small.select.images[5, 0].numpy(), expected)
    assert torch.equal(small.select.images[5, 0], small.select.images[5, 2])
    assert small.select.labels[5] == raw.target[index] == digits.select.labels[5]
    assert (digits.classes, digits.in_ch, digits.size, digits.augment) == (tuple("0123456789"), 3, 32, "crop")


def test_seed_moves_the_splits_but_never_the_test() -> None:
    first, again, other = (load("digits", data_dir=None, size=8, seed=seed) for seed in (0, 0, 1))
    short = load("digits", data_dir=None, size=8, seed=1, limit=100)
    assert first.indices == again.indices and first.source == again.source
    assert first.indices["gate"] != other.indices["gate"]
    assert first.indices["test"] == other.indices["test"] == short.indices["test"]
    assert len({first.source.fingerprint, other.source.fingerprint, short.source.fingerprint}) == 3


def test_limit_counts_train_gate_and_select(digits: Data) -> None:
    short = load("digits", data_dir=None, size=8, seed=0, limit=100)
    assert short.source.sizes == {"train": 80, "gate": 10, "select": 10, "test": 359}
    assert short.source.class_counts["gate"] == [1] * 10
    assert load("digits", data_dir=None, size=8, seed=0, limit=10**6).indices == digits.indices


@given(st.lists(st.integers(1, 60), min_size=2, max_size=9), st.integers(1, 80), st.integers(0, 3))
def test_take_is_stratified_and_partitions(counts: list[int], total: int, seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    pool = np.arange(len(labels))
    drawn, rest = take(labels, pool, total, np.random.default_rng(seed))
    assert sorted([*drawn, *rest]) == list(pool) and len(drawn) <= total
    assert set(labels[rest]) == set(range(len(counts)))  # every class keeps one
    if total >= len(counts):
        assert {label for label, count in enumerate(counts) if count > 1} <= set(labels[drawn])


def test_quotas_by_hand() -> None:
    # 10 of 60 + 30 + 9 + 1: ideal 6, 3, 0.9, 0.1; the last keeps its only image
    assert quotas(np.array([60, 30, 9, 1]), 10, keep=1).tolist() == [6, 3, 1, 0]
    # ideal 1.5, 1.5: the first gets the odd one; and a class raised to 1 is paid for by the largest
    assert quotas(np.array([5, 5]), 3, keep=0).tolist() == [2, 1]
    assert quotas(np.array([98, 1, 1]), 10, keep=0).tolist() == [8, 1, 1]


def test_fingerprint_sees_one_pixel_one_label_and_a_class_name(digits: Data) -> None:
    splits = {part: getattr(digits, part) for part in PARTS}
    assert fingerprint(splits, digits.classes) == digits.source.fingerprint
    images, labels = digits.test.images.clone(), digits.test.labels.clone()
    images[0, 0, 0, 0] ^= 1
    labels[0] ^= 1
    prints = {
        fingerprint(splits, digits.classes),
        fingerprint({**splits, "test": Split(images, digits.test.labels)}, digits.classes),
        fingerprint({**splits, "test": Split(digits.test.images, labels)}, digits.classes),
        fingerprint(splits, ("zero", *digits.classes[1:])),
    }
    assert len(prints) == 4


# --- batches ---


def numbered(count: int, size: int = 16) -> Split:
    """Image i is filled with i, so that what became of it can be read off."""
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 3, size, size).contiguous()
    return Split(images, torch.arange(count))


def plain(data: Data, split: Split) -> Data:
    """``data`` with a mean and deviation that normalise to v / 255."""
    return replace(data, train=split, mean=(0.0,) * 3, std=(1.0,) * 3)


def test_batches_shuffle_and_keep_images_with_labels(digits: Data) -> None:
    data = plain(digits, numbered(10))
    drawn = list(batches(data.train, data, 4, generator=seeded(), augment=Augmentation("crop")))
    assert [len(labels) for _, labels in drawn] == [4, 4]  # the last two are dropped
    for images, labels in drawn:
        assert images.dtype == torch.float32 and images.is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(images * 255, labels[:, None, None, None].float().expand_as(images), atol=1e-4)
    seen = torch.cat([labels for _, labels in drawn]).tolist()
    assert len(set(seen)) == 8 and seen != sorted(seen)
    assert [len(labels) for _, labels in batches(data.train, data, 64, generator=seeded(), augment=PLAIN)] == [10]
    assert [len(labels) for _, labels in batches(data.train, data, 5, generator=seeded(), augment=PLAIN)] == [5, 5]


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_a_function_of_the_generator(digits: Data, kind: str) -> None:
    def epoch(seed: int) -> torch.Tensor:
        drawn = batches(digits.gate, digits, 32, generator=seeded(seed), augment=Augmentation(kind))
        return torch.cat([x for x, _ in drawn])

    assert torch.equal(epoch(1), epoch(1)) and not torch.equal(epoch(1), epoch(2))


def test_eval_batches_keep_order_and_the_rest(digits: Data) -> None:
    found = list(eval_batches(digits.gate, digits, 100))
    assert [len(labels) for _, labels in found] == [100, 100, 88]
    assert torch.equal(torch.cat([labels for _, labels in found]), digits.gate.labels)
    assert torch.equal(torch.cat([x for x, _ in found]), normalise(digits.gate.images, digits))


def test_normalise_by_hand(digits: Data) -> None:
    data = replace(digits, mean=(0.2, 0.4, 0.6), std=(0.5, 0.25, 0.1))
    images = torch.tensor([0, 51, 255], dtype=torch.uint8)[:, None, None, None].expand(3, 3, 2, 5)
    got = normalise(images, data)
    expected = torch.tensor([[-0.4, -1.6, -6], [0, -0.8, -4], [1.6, 2.4, 4]])
    assert torch.allclose(got, expected[:, :, None, None].expand_as(got), atol=1e-6)
    assert normalise(images, data, torch.bfloat16).dtype == torch.bfloat16
    whole = normalise(digits.train.images, digits)
    assert whole.mean().abs() < 1e-4 and (whole.std() - 1).abs() < 1e-4


@pytest.mark.parametrize(("kind", "size", "most", "flips"), [("crop", 32, 2, False), ("flip-crop", 16, 2, True)])
def test_every_image_is_a_window_of_its_reflection(kind: str, size: int, most: int, flips: bool) -> None:
    images = torch.randint(0, 256, (200, 3, size, size), dtype=torch.uint8, generator=seeded())
    got = augmented(images, kind, seeded(1))
    padded = torch.nn.functional.pad(images.float(), (most,) * 4, mode="reflect").byte()
    seen = set()
    for index in range(len(images)):
        windows = {
            (y, x, flip): (lambda w, f: w.flip(-1) if f else w)(padded[index, :, y : y + size, x : x + size], flip)
            for y in range(2 * most + 1)
            for x in range(2 * most + 1)
            for flip in ([False, True] if flips else [False])
        }
        match = [key for key, window in windows.items() if torch.equal(window, got[index])]
        assert len(match) == 1
        seen.update(match)
    assert len(seen) > (40 if flips else 20)  # of 50 and 25


def test_augmentation_takes_any_memory_layout_and_leaves_none_alone() -> None:
    images = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8, generator=seeded())
    last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(augmented(images, "flip-crop", seeded()), augmented(last, "flip-crop", seeded()))
    assert torch.equal(augmented(images, "none", seeded()), images)


def test_unknown_augmentation_is_refused_at_the_call(digits: Data) -> None:
    with pytest.raises(UserError, match="did you mean 'flip-crop'"):
        batches(digits.train, digits, 4, generator=seeded(), augment=Augmentation("flipcrop"))


# --- mistakes ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size: 0"),
        ({"size": -32}, "size: -32"),
        ({"size": 1025}, "size: 1025"),
        ({"limit": 0}, "limit: 0"),
        ({"limit": 29}, "limit: 29 is less than 3 images for each of the 10 classes"),
        ({"seed": -1}, "seed: -1"),
    ],
)
def test_absurd_numbers(options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load("digits", data_dir=None, **{"size": 8, "seed": 0, **options})


def test_unknown_name_suggests() -> None:
    for name, message in (("cifar-10", "did you mean 'cifar10'"), ("", "data: no ''"), ("no/such", "no such folder")):
        with pytest.raises(UserError, match=message):
            load(name, data_dir=None, size=None, seed=0)


def test_free_memory_is_plausible() -> None:
    free = data_module.free_bytes()
    assert free is None or 10**6 < free < 10**15


# --- CIFAR-10 ---


def load_cifar(data_dir: Path, **options: Any) -> Data:
    return load("cifar10", data_dir=data_dir, **{"size": None, "seed": 0, **options})


def test_cifar_failed_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets.cifar as cifar

    def offline(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(cifar, "download_and_extract_archive", offline)
    with pytest.raises(UserError, match=r"cifar-10-batches-py: not there.*no route to host.*data_dir"):
        load_cifar(tmp_path)


def test_cifar_never_unpickles_an_altered_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]:
        (folder / name).write_bytes(pickle.dumps({"data": [], "labels": []}))
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("unpickled"))
    for named in (tmp_path, folder):
        with pytest.raises(UserError, match="not the official CIFAR-10 files"):
            load_cifar(named)


def test_cifar_data_dir_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    with pytest.raises(UserError, match="a file, not a folder"):
        load_cifar(tmp_path / "x")


@pytest.mark.slow
def test_cifar10_itself(tmp_path: Path) -> None:
    script = SHARED / "cifar_tiles.py"
    if not script.is_file():
        pytest.skip(f"{script} is not there")
    subprocess.run([sys.executable, str(script), str(SHARED / "cifar10"), str(tmp_path), "--pickles"], check=True)
    data = load_cifar(tmp_path)
    assert data.source.sizes == {"train": 40000, "gate": 5000, "select": 5000, "test": 10000}
    assert data.indices["test"] == list(range(50000, 60000)) and data.classes[:2] == ("airplane", "automobile")
    assert data.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=2e-3)
    assert data.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=2e-3)
    short = load_cifar(tmp_path / "cifar-10-batches-py", size=16, limit=1000)
    assert short.train.images.shape == (600, 3, 16, 16)  # of 1,000 a fifth each to gate and select
    assert short.source.class_counts["gate"] == [20] * 10
