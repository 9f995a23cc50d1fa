"""Files of more than 8 bits: one white for the folder, found in its training images, kept in the run and the files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import from_folder, png16
from PIL import Image

from nas.errors import UserError
from nas.run.directory import Run
from nas.run.images import described, recorded_images
from nas.training.header import data_lines
from nas.training.pixels import LEVELS, NARROW, Whites, decoded, square, whites
from nas.training.unlabeled import unlabeled

Values = Any


def written(path: Path, values: Values) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def pillow(suffix: str, kind: str) -> Callable[[Path, Values], Path]:
    def save(path: Path, values: Values) -> Path:
        file = written(path, values).with_suffix(suffix)
        Image.fromarray(values.astype(kind)).save(file)
        return file

    return save


def big_endian(path: Path, values: Values) -> Path:
    file = written(path, values).with_suffix(".tif")
    Image.frombytes("I;16B", values.shape[::-1], values.astype(">u2").tobytes()).save(file)
    return file


def coloured(channels: int) -> Callable[[Path, Values], Path]:
    def save(path: Path, values: Values) -> Path:
        return png16(path.with_suffix(".png"), np.repeat(values[..., None], channels, axis=2))

    return save


WIDE: dict[str, Callable[[Path, Values], Path]] = {
    "I;16 png": pillow(".png", "uint16"), "I;16 tif": pillow(".tif", "uint16"), "I;16B": big_endian,
    "I": pillow(".tif", "int32"), "jp2": pillow(".jp2", "uint16"), "LA;16": coloured(2), "RGB;16": coloured(3),
    "RGBA;16": coloured(4),
}


def values(level: float, white: int, side: int = 8) -> Values:
    """Grey of a level, with one black and one white pixel."""
    made = np.full((side, side), round(level * white))
    made[0, 0], made[-1, -1] = 0, white
    return made


def wide_folder(root: Path, save: Callable[[Path, Values], Path], white: int, count: int = 8) -> Path:
    for name, level in (("dark", 0.2), ("light", 0.8)):
        for index in range(count):
            save(root / name / f"{index}", values(level, white))
    return root


@pytest.mark.parametrize("white", LEVELS)
@pytest.mark.parametrize("kind", WIDE)
def test_integers_are_scaled_by_the_bits_that_the_folder_fills(tmp_path: Path, kind: str, white: int) -> None:
    data = from_folder(wide_folder(tmp_path, WIDE[kind], white), size=8)
    assert data.whites == Whites(integer=white)
    for label, grey in enumerate((51, 204)):  # 0.2 and 0.8 of 255
        inner = data.train.images[data.train.labels == label][:, :, 2:-2, 2:-2]
        assert len(inner) and (inner.int() - grey).abs().max() <= 1
    assert f"files of 16 or 32 bits hold {white.bit_length()} bits: value / {white}" in " ".join(data_lines(data))


@pytest.mark.parametrize(("largest", "white"), [(1.0, 1), (0.4, 1), (1.005, 1), (255.0, 255), (3000.0, 4095)])
def test_floating_point_numbers(tmp_path: Path, largest: float, white: int) -> None:
    file = tmp_path / "a.tif"
    Image.fromarray(np.full((8, 8), largest, np.float32)).save(file)
    assert whites([file]) == Whites(real=white)
    assert (square(file, 8, Whites(real=white)) == round(min(1, largest / white) * 255)).all()


@given(st.lists(st.integers(0, 65535), min_size=1, max_size=4))
def test_white_is_the_smallest_bit_depth_that_holds_all(tmp_path_factory: pytest.TempPathFactory,
                                                        peaks: list[int]) -> None:
    root = tmp_path_factory.mktemp("peaks")
    files = [pillow(".png", "uint16")(root / str(i), np.full((4, 4), peak)) for i, peak in enumerate(peaks)]
    found = whites(files).integer
    assert found == min(level for level in LEVELS if level >= max(peaks))


def test_brightness_stays_comparable_between_images(tmp_path: Path) -> None:
    files = [pillow(".png", "uint16")(tmp_path / str(peak), np.full((8, 8), peak)) for peak in (400, 800, 4000)]
    made = decoded(files, 8, whites(files)).images[:, 0, 0, 0].tolist()
    assert made == [25, 50, 249]  # of 4095


def test_8_bits_have_no_white(tmp_path: Path) -> None:
    data = from_folder(wide_folder(tmp_path, pillow(".png", "uint8"), 255), size=8)
    assert data.whites == NARROW and data.whites.metadata() == {} and str(data.whites) == ""


@pytest.mark.parametrize("parts", [("train", "test"), ("train", "val", "test")])
def test_brighter_images_of_other_splits_are_cut_and_said(tmp_path: Path, parts: tuple[str, ...]) -> None:
    for part in parts:
        wide_folder(tmp_path / part, WIDE["I;16 png"], 4095 if part == "train" else 60000)
    data = from_folder(tmp_path, size=8)
    assert data.whites == Whites(integer=4095)
    assert data.source.cut["learn"] == 0 and data.source.cut["test"] == 16
    assert any("cut there" in line and "test 16" in line for line in data_lines(data))


def test_the_test_split_has_no_say_in_white(tmp_path: Path) -> None:
    """Which images are tested in a folder without splits is the same for every seed; theirs are not looked at."""
    root = wide_folder(tmp_path, WIDE["I;16 png"], 4095)
    first = from_folder(root, size=8)
    files = sorted(root.rglob("*.png"))
    for index in first.indices["test"]:
        Image.fromarray(values(0.5, 65535).astype(np.uint16)).save(files[index])
    assert from_folder(root, size=8, seed=3).whites == first.whites == Whites(integer=4095)


def test_whites_are_recorded_and_used_again(tmp_path: Path) -> None:
    data = from_folder(wide_folder(tmp_path / "own", WIDE["I;16 png"], 4095, count=20), size=8)
    kept = Run.open(tmp_path / "run", {})
    kept.write_json("data.json", described(data).to_json())
    run = recorded_images(kept)
    assert run.whites == data.whites == Whites.from_metadata(data.whites.metadata())
    other = wide_folder(tmp_path / "other", WIDE["I;16 png"], 1023, count=20)
    assert unlabeled(other, run, 0).whites == data.whites
    assert from_folder(other, size=8, whites=data.whites).train.images.max() == round(1023 / 4095 * 255)
    assert from_folder(other, size=8).whites == Whites(integer=1023)


def test_16_bits_of_colour_in_other_files_keep_their_upper_8_or_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.tif"
    file.write_bytes(_tiff(np.full((8, 8, 3), 257 * 100)))
    assert np.abs(square(file, 8).astype(int) - 100).max() <= 1
    file.write_bytes(_tiff(np.full((8, 8, 3), 4000)))
    with pytest.raises(UserError, match=r"a\.tif: .*only the upper 8 can be read, and the values fill 12 bits"):
        square(file, 8, whites([file]))


def _tiff(values: Values) -> bytes:
    """Uncompressed RGB of 16 bits a channel."""
    import struct

    height, width, _ = values.shape
    content = values.astype("<u2").tobytes()
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, 8 + len(content)), (259, 3, 1, 1), (262, 3, 1, 2),
            (273, 4, 1, 8), (277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, len(content))]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    start = 8 + len(content) + 6
    return (b"II*\0" + struct.pack("<I", start) + content + struct.pack("<3H", 16, 16, 16)
            + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0))


REFUSED = {
    "negative": (np.full((8, 8), -5, np.int32), "values from -5 to -5"),
    "32 bits": (np.full((8, 8), 70_000, np.int32), "values from 70000 to 70000"),
    "no numbers": (np.full((8, 8), np.nan, np.float32), "no numbers"),
    "negative real": (np.full((8, 8), -0.5, np.float32), "values from -0.5 to -0.5"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_values_of_no_known_range_are_refused_with_the_range(tmp_path: Path, kind: str) -> None:
    content, message = REFUSED[kind]
    wide_folder(tmp_path, WIDE["I;16 png"], 255)
    Image.fromarray(content).save(tmp_path / "dark" / "bad.tif")
    with pytest.raises(UserError, match=message) as caught:
        from_folder(tmp_path, size=8)
    assert "bad.tif" in str(caught.value) and "save it with 8 or 16 bits" in str(caught.value)


def test_wide_images_among_narrow_training_images_are_refused(tmp_path: Path) -> None:
    wide_folder(tmp_path / "train", pillow(".png", "uint8"), 255)
    wide_folder(tmp_path / "test", WIDE["I;16 png"], 4095)
    with pytest.raises(UserError, match="none of the training images has"):
        from_folder(tmp_path, size=8)


def test_images_of_one_colour_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for index in range(8):
            pillow(".png", "uint8")(tmp_path / "black" / name / f"{index}", np.zeros((8, 8)))
    with pytest.raises(UserError, match=r"black: all pixels of the training images are alike \(.* 0, 0, 0 of 255"):
        from_folder(tmp_path / "black")


@pytest.mark.parametrize(("bits", "base", "step", "said"), [
    (8, 0, 1, "nearly black: 99.8 % of their pixels are 0 to 7 of 255"),
    (8, 248, 1, "nearly of one brightness: 99.8 % of their pixels are 248 to 255 of 255"),
    (16, 30000, 257, "nearly of one brightness: 99.8 % of their pixels are 117 to 124 of 255"),  # 30000 / 257 = 116.7
    (16, 30000, 257 * 3, None)])  # 21 levels
def test_images_that_use_few_of_the_levels_are_said(tmp_path: Path, bits: int, base: int, step: int,
                                                    said: str | None) -> None:
    for name in ("a", "b"):
        for index in range(40):
            pillow(".png", f"uint{bits}")(tmp_path / name / f"{index}", np.full((8, 8), base + index % 8 * step))
    warnings = [line for line in data_lines(from_folder(tmp_path)) if line.startswith("warning")]
    assert warnings == ([] if said is None else [f"warning: the images are {said}; save them so that black is the "
                                                 "smallest and white the largest value"])


@pytest.mark.parametrize("kind", ["I;16 png", "RGB;16", "I;16 tif", "jp2"])
@pytest.mark.parametrize("kept", [0, 60, 0.6])
def test_broken_wide_files_are_named_in_one_line(tmp_path: Path, kind: str, kept: float) -> None:
    wide_folder(tmp_path, WIDE[kind], 4095)
    file = next((tmp_path / "dark").iterdir())
    content = WIDE[kind](file, np.random.default_rng(0).integers(0, 4096, (64, 64))).read_bytes()
    file.write_bytes(content[: int(kept * len(content)) if kept < 1 else int(kept)])
    with pytest.raises(UserError) as caught:
        from_folder(tmp_path, size=8)
    assert str(caught.value).startswith(f"{file}: ") and "remove or replace it" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wide_images_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise: the top becomes the right side
    content = np.repeat(np.array([[4095], [0]], np.uint16), 8, axis=0).repeat(16, axis=1)
    Image.fromarray(content).save(tmp_path / "turned.png", exif=exif)
    upright = square(tmp_path / "turned.png", 16, Whites(4095))
    assert upright[:, -5:].min() > 200 and upright[:, :5].max() < 50
