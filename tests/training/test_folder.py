"""Folders of images, written here (and a real one where it lies beside the checkout), right and wrong."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from every import every
from pictures import from_folder, picture, tree
from PIL import Image

from nas.errors import UserError
from nas.training import data as data_module
from nas.training.data import Split
from nas.training.folder import default_size
from nas.training.pixels import decoded, square

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
PARTS = ("train", "gate", "select", "test")


def test_class_folders_alone(tmp_path: Path) -> None:
    tree(tmp_path, {"bee": 40, "ant": 10})
    for junk in ("notes.txt", ".DS_Store", "bee/Thumbs.db", "bee/.hidden.png", ".git/x.png", "__MACOSX/._x.png"):
        (tmp_path / junk).parent.mkdir(exist_ok=True)
        (tmp_path / junk).write_bytes(b"junk")
    data = from_folder(tmp_path)
    assert data.name == tmp_path.name and data.classes == ("ant", "bee") and data.augment == "flip-crop"
    # test 20 % = 2 + 8; gate and select 10 % of 40 = 1 + 3 each, stratified
    assert data.source.class_counts == {"train": [6, 26], "gate": [1, 3], "select": [1, 3], "test": [2, 8]}
    # numbers follow the sorted files: ant 000.png is 0, bee 000.png is 10; red holds the number in the name
    for part in PARTS:
        split: Split = getattr(data, part)
        numbers = torch.tensor([i if i < 10 else i - 10 for i in data.indices[part]])
        assert torch.equal(split.images[:, 0, 0, 0].long(), numbers)
        assert torch.equal(split.labels, torch.tensor([int(i >= 10) for i in data.indices[part]]))


@pytest.mark.parametrize(
    ("folders", "sizes"),
    [
        (("train", "test"), {"train": 16, "gate": 2, "select": 2, "test": 6}),
        (("train", "val"), {"train": 18, "gate": 2, "select": 3, "test": 3}),
        (("Train", "validation"), {"train": 18, "gate": 2, "select": 3, "test": 3}),
        (("train", "valid", "test"), {"train": 18, "gate": 2, "select": 6, "test": 6}),
        (("train",), {"train": 12, "gate": 2, "select": 2, "test": 4}),
    ],
)
def test_split_folders(tmp_path: Path, folders: tuple[str, ...], sizes: dict[str, int]) -> None:
    for name in folders:
        tree(tmp_path / name, dict.fromkeys(("a", "b"), 10 if name.lower() == "train" else 3))
    data = from_folder(tmp_path)
    assert data.source.sizes == sizes
    if len(folders) == 3:  # numbered train, val, test
        assert data.indices["select"] == list(range(20, 26)) and data.indices["test"] == list(range(26, 32))


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert from_folder(tree(tmp_path, {"bus": 5, "car": 5, "train": 5})).classes == ("bus", "car", "train")


def test_scarce_classes_reach_train_first(tmp_path: Path) -> None:
    counts = from_folder(tree(tmp_path, {"a": 50, "b": 2, "c": 1})).source.class_counts
    assert every(n >= 1 for n in counts["train"]) and counts["test"][1] == 1
    assert [sum(counts[part][i] for part in PARTS) for i in range(3)] == [50, 2, 1]


def test_short_side_is_resized_and_the_centre_kept(tmp_path: Path) -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert (square(tmp_path / "wide.png", 20)[:, 2:-2] == 200).all()
    Image.fromarray(wide.transpose(1, 0, 2).copy()).save(tmp_path / "tall.png")
    assert (square(tmp_path / "tall.png", 20)[2:-2] == 200).all()
    picture(tmp_path / "thread.png", (20000, 4), colour=(9, 9, 9))
    assert (square(tmp_path / "thread.png", 64) == 9).all()


def test_modes_and_orientation(tmp_path: Path) -> None:
    grey16 = Image.fromarray(np.full((8, 8), 257 * 100, np.uint16))
    palette = Image.new("RGB", (8, 8), (255, 0, 0)).quantize(4)
    palette.info["transparency"] = b"\x00\xff"
    turned = Image.fromarray(np.repeat(np.array([[255], [0]], np.uint8), 8, axis=0).repeat(16, axis=1))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise: the white top becomes the right side
    cases: dict[str, tuple[Image.Image, tuple[int, int, int]]] = {
        "grey16.png": (grey16, (100, 100, 100)),
        "grey16.tif": (grey16, (100, 100, 100)),
        "grey.png": (Image.new("L", (8, 8), 50), (50, 50, 50)),
        "alpha.png": (Image.new("RGBA", (8, 8), (1, 2, 3, 128)), (1, 2, 3)),
        "palette.png": (palette, (255, 0, 0)),
        "bits.png": (Image.new("1", (8, 8), 1), (255, 255, 255)),
        "cmyk.tif": (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), (255, 0, 0)),
        "cmyk.jpg": (Image.new("CMYK", (8, 8), (0, 0, 0, 0)), (255, 255, 255)),
    }
    for name, (image, colour) in cases.items():
        image.save(tmp_path / name)
        assert np.abs(square(tmp_path / name, 8).astype(int) - colour).max() <= 1, name
    turned.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    upright = square(tmp_path / "turned.jpg", 16)
    assert upright[:, -5:].min() > 200 and upright[:, :5].max() < 50


@pytest.mark.parametrize(("side", "size"), [(20, 32), (40, 32), (100, 96), (224, 224), (300, 224)])
def test_default_size(tmp_path: Path, side: int, size: int) -> None:
    assert default_size([picture(tmp_path / "x.png", (side + 50, side))]) == size


def test_decoding_keeps_the_order(tmp_path: Path) -> None:
    files = [picture(tmp_path / f"{i}.png", colour=(i, 0, 0)) for i in range(50)]
    assert decoded(files, 8).images[:, 0, 0, 0].tolist() == list(range(50))


def test_mean_and_std_are_those_of_the_train_split(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for index in range(10):
            picture(tmp_path / name / f"{index}.png", colour=(0, 51, 102 if index % 2 else 204))
    data = from_folder(tmp_path)
    assert data.mean[:2] == pytest.approx((0, 0.2)) and data.std[:2] == pytest.approx((1 / 255, 1 / 255))  # floor
    blue = data.train.images[:, 2].double() / 255
    assert data.mean[2] == pytest.approx(float(blue.mean()))
    assert data.std[2] == pytest.approx(float(blue.std(correction=0)))


def test_imagenette_sample() -> None:
    root = SHARED / "imagenette128" / "mini_imagefolder"
    if not root.is_dir():
        pytest.skip(f"{root} is not there")
    data = from_folder(root, size=None)
    assert data.size == 128 and len(data.classes) == 10 and data.source.class_counts["test"] == [4] * 10
    assert data.source.sizes == {"train": 180, "gate": 20, "select": 40, "test": 40}  # of 200 and 80 in train/, val/
    assert every(0.3 < mean < 0.6 for mean in data.mean) and every(0.2 < std < 0.35 for std in data.std)


# --- mistakes ---


def half_a_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "JPEG")
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]


def broken(content: bytes) -> Any:
    def write(root: Path) -> None:
        tree(root, {"a": 5, "b": 5})
        (root / "a" / "bad.jpg").write_bytes(content)

    return write


def differing(root: Path) -> None:
    tree(root / "train", {"a": 5, "b": 5})
    tree(root / "test", {"a": 5, "c": 5})


def with_empty_class(root: Path) -> None:
    tree(root, {"a": 5, "b": 5})
    (root / "c").mkdir()
    (root / "c" / "readme.txt").write_text("later")


MISTAKES: dict[str, tuple[Any, str]] = {
    "missing": (lambda root: root.rmdir(), "images: no such folder"),
    "a file": (lambda root: (root.rmdir(), root.write_text("x")), "images: a file, not a folder"),
    "empty": (lambda root: None, "images: no class folders"),
    "no class folders": (lambda root: picture(root / "x.png"), "images: no class folders"),
    "one class": (lambda root: tree(root, {"a": 5}), "images: only the class folder 'a'"),
    "train without classes": (lambda root: picture(root / "train" / "x.png"), "train: no class folders"),
    "no train": (lambda root: tree(root / "val", {"a": 3, "b": 3}), "images: val/ but no train/"),
    "empty class": (with_empty_class, "c: no images"),
    "differing classes": (differing, "images: the classes differ: test lacks 'b'; test alone has 'c'"),
    "truncated": (broken(half_a_jpeg()), "bad.jpg: cannot be read"),
    "not an image": (broken(b"<html>404</html>"), "bad.jpg: not an image that can be read"),
    "zero bytes": (broken(b""), "bad.jpg: not an image that can be read"),
    "zero size": (broken(b"P6 0 4 255\n"), "bad.jpg: "),
    "too small": (lambda root: (tree(root, {"a": 5, "b": 5}), picture(root / "a" / "dot.png", (1, 1))), "dot.png: 1x1"),
    "too few": (lambda root: tree(root, {"a": 1, "b": 1}), "images: too few images, none left for gate, select, test"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("size", [16, None])
def test_mistakes_name_the_path_in_one_line(tmp_path: Path, mistake: str, size: int | None) -> None:
    make, message = MISTAKES[mistake]
    (tmp_path / "images").mkdir()
    make(tmp_path / "images")
    with pytest.raises(UserError) as caught:
        from_folder(tmp_path / "images", size=size)
    assert message in str(caught.value) and str(tmp_path / "images") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_broken_link_is_named(tmp_path: Path) -> None:
    (tree(tmp_path, {"a": 5, "b": 5}) / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match=r"gone\.png: cannot be read"):
        from_folder(tmp_path)


def test_more_than_the_memory_is_refused_before_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, {"a": 10, "b": 10})  # 20 images of 3 * 16 * 16 bytes = 15,360
    monkeypatch.setattr(data_module, "free_bytes", lambda: 25_000)
    with pytest.raises(UserError, match="smaller size or a limit"):
        from_folder(tmp_path)
    monkeypatch.setattr(data_module, "free_bytes", lambda: 26_000)
    assert from_folder(tmp_path).size == 16
