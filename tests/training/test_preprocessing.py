"""How images become input: by hand, one rule for ``evaluate`` and ``exits``; what cannot be is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hostile import read_or_refused
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from nas import cli
from nas.errors import UserError
from nas.pipeline.evaluate import evaluate
from nas.pipeline.exits import existing
from nas.training.data import load, normalise
from nas.training.preprocessing import IMAGENET, Preprocessing, check_input

GREYS = {"black": 10, "dark": 70, "grey": 128, "light": 190, "white": 245}
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 1.0
RAW = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 255.0
CAFFE = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), 255.0
META = {"mean": "0.5 0.5 0.5", "std": "0.5 0.5 0.5", "scale": "pixels / 255"}


@pytest.fixture
def greys(tmp_path: Path) -> Path:
    """Six images of each of five grey levels."""
    rng = np.random.default_rng(0)
    for name, level in GREYS.items():
        (tmp_path / "greys" / name).mkdir(parents=True)
        for k in range(6):
            pixels = (level + rng.integers(-8, 9, (16, 16, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "greys" / name / f"{k}.png")
    return tmp_path / "greys"


def foreign(path: Path, how: tuple[Any, Any, float], metadata: dict[str, str] | None = None) -> Path:
    """A network that was "trained" on images read as ``how`` says: it is right on every image that is read so.

    The score of a level c is 2cm - c^2 for the mean m of the pixels, largest at the nearest; the first convolution
    takes the preprocessing back.
    """
    mean, std, scale = (np.array(value, np.float32) for value in how)
    levels = np.array([GREYS[name] for name in sorted(GREYS)], np.float32) / 255
    weights = {"back": np.diag(std / scale).reshape(3, 3, 1, 1), "shift": mean / scale,
               "score": np.tile(2 * levels / 3, (3, 1)), "square": -levels**2}
    nodes = [helper.make_node("Conv", ["x", "back", "shift"], ["pixels"], name="c"),
             helper.make_node("AveragePool", ["pixels"], ["half"], name="p", kernel_shape=[2, 2], strides=[2, 2]),
             helper.make_node("GlobalAveragePool", ["half"], ["mean"], name="m"),
             helper.make_node("Flatten", ["mean"], ["flat"], name="f"),
             helper.make_node("Gemm", ["flat", "score", "square"], ["y"], name="g")]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 16, 16])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])],
                              [numpy_helper.from_array(np.asarray(value, np.float32), name)
                               for name, value in weights.items()])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(made, metadata or {})
    onnx.save(made, path)
    return path


def with_exits(path: Path, folder: Path, how: Preprocessing | None) -> tuple[float, Preprocessing, dict[str, str]]:
    """Share of images on which the network of ``nas exits`` is right, what its card says, and its files' metadata."""
    model = existing.load_file(str(path), None, None, "gpu-v100", lambda side, whites: load(
        str(folder), data_dir=None, size=side, seed=0), 0, how)
    part = model.data.learn
    right = model.plain(normalise(part.images, model.data)).argmax(1) == part.labels
    return float(right.float().mean()), model.reading.preprocessing, model.metadata


@pytest.mark.parametrize(("trained", "flags", "metadata", "source"), [
    ((*IMAGENET, 1.0), (), {}, "ImageNet's: the file has no mean and std"),
    ((*IMAGENET, 1.0), (), {"mean": "0.5 0.5 0.5"}, "ImageNet's: the file's metadata have mean alone"),
    (HALF, (), META, "the file's metadata"),
    (HALF, (), {"mean": "[0.5, 0.5, 0.5]", "std": "0.5"}, "the file's metadata"),
    (RAW, (), {"mean": "0", "std": "1", "scale": "pixels"}, "the file's metadata"),
    (HALF, ("0.5", "0.5,0.5,0.5", None), {}, "mean std"),
    (RAW, (None, None, 255), META, "scale"),
    (RAW, ("0", "1", 255), META, "mean std scale"),
    (CAFFE, ("123.675,116.28,103.53", "58.395, 57.12, 57.375", 255), {"mean": "nonsense", "std": "1"},
     "mean std scale"),
])
def test_every_command_reads_images_alike_and_says_how(
        greys: Path, tmp_path: Path, trained: Any, flags: tuple[Any, ...], metadata: dict[str, str],
        source: str) -> None:
    path = foreign(tmp_path / "net.onnx", trained, metadata)
    how = Preprocessing.from_flags(*flags) if flags else None
    result = evaluate(path, data=str(greys), split="all", preprocessing=how)
    share, said, written = with_exits(path, greys, how)
    assert result.top1.share == share == 1.0  # 1.0 only where the convolution took the right thing back
    assert result.preprocessing == said and said.source == source
    # what nas exits writes, in the file's own units or in those of [0, 1]
    again = Preprocessing.from_metadata(written, path)
    unit = [np.array(values) / trained[2] for values in trained[:2]]
    assert again.scale == 1 and np.allclose(again.mean, unit[0], rtol=1e-5) and np.allclose(again.std, unit[1], 1e-5)


def test_the_wrong_statistics_are_wrong_on_these_images(greys: Path, tmp_path: Path) -> None:
    """So the test above can fail: statistics of the folder, which were taken once, and ImageNet's for another's."""
    path = foreign(tmp_path / "net.onnx", (*IMAGENET, 1.0))
    own = load(str(greys), data_dir=None, size=16, seed=0)
    folder = Preprocessing(own.mean, own.std, 1.0, "the folder")
    assert evaluate(path, data=str(greys), split="all", preprocessing=folder).top1.share < 0.9
    assert evaluate(foreign(tmp_path / "half.onnx", HALF), data=str(greys), split="all").top1.share < 0.9


def test_by_hand(greys: Path) -> None:
    data = Preprocessing.from_flags("100, 110, 120", "50,60,70", 255)
    assert data is not None
    images = torch.tensor([0, 100, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    read = normalise(images, data.applied(load(str(greys), data_dir=None, size=None, seed=0)).at(1))
    assert read.flatten().tolist() == pytest.approx([(0 - 100) / 50, (100 - 110) / 60, (255 - 120) / 70], rel=1e-5)


@pytest.mark.parametrize(("flags", "message"), [
    (("0.5", None, None), "mean: has no meaning without std"), ((None, "0.5", 1), "std: has no meaning without"),
    (("a", "1", None), "mean 'a': expected 3 numbers"), (("0.5,0.5", "1", None), "expected 3 numbers"),
    (("nan", "1", None), "expected 3 numbers"), (("0.5", "0,1,1", None), "std 0, 1, 1: must be above 0"),
    (("0.5", "-1", None), "must be above 0"), (("0.5", "inf", None), "expected 3 numbers"),
    (("123.675,116.28,103.53", "58.4", None), "outside 0 .. 1, the range of images; .* give scale=255"),
    (("-0.5", "0.5", None), "mean -0.5, -0.5, -0.5 is outside"), ((None, None, 0.0), "scale 0: what the pixel"),
    (("0.485,0.456,0.406", "0.229,0.224,0.225", 255.0), "less than one grey level of a range of 0 .. 255"),
    ((None, None, float("nan")), "scale nan"), (("", "1", None), "expected 3 numbers"),
])
def test_flags_that_cannot_be_are_one_line(flags: tuple[Any, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Preprocessing.from_flags(*flags)


@pytest.mark.parametrize(("metadata", "message"), [
    ({**META, "mean": "0.5 x 0.5"}, "m.onnx: its metadata: mean '0.5 x 0.5': expected 3 numbers"),
    ({**META, "std": "0 1 1"}, "m.onnx: its metadata: std 0, 1, 1: must be above 0"),
    ({**META, "scale": "1/127.5"}, "m.onnx: its metadata: scale '1/127.5', known are .*; give mean, std and"),
    ({"mean": "123.7", "std": "58.4"}, "give scale=255"),
])
def test_metadata_that_cannot_be_are_one_line(metadata: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Preprocessing.from_metadata(metadata, Path("m.onnx"))
    given = Preprocessing.from_flags("0.5", "0.5", None)
    assert Preprocessing.from_metadata(metadata, Path("m.onnx"), given) is given  # the way out that the lines name


NUMBERS = st.text(max_size=12) | st.lists(st.floats(0, 1) | st.floats(), min_size=1, max_size=4).map(
    lambda values: ", ".join(map(str, values)))


@given(mean=NUMBERS, std=NUMBERS, scale=st.sampled_from([None, 1.0, 255.0]) | st.floats())
def test_any_text_is_numbers_or_one_line(mean: str, std: str, scale: float | None) -> None:
    how = read_or_refused(lambda: Preprocessing.from_flags(mean, std, scale), "mean", "std", "scale")
    if how is not None:
        assert 0 <= min(how.mean) <= max(how.mean) <= how.scale and min(how.std) > 0
        said = [" ".join(map(repr, values)) for values in (how.mean, how.std)]
        again = Preprocessing.from_flags(said[0], said[1], how.scale)
        assert again is not None and (again.mean, again.std, again.scale) == (how.mean, how.std, how.scale)


@pytest.mark.parametrize(("shape", "message"), [
    (["N", 16, 16, 3], "channels last"), (["N", 1, 16, 16], "1 channel.s., and images are read with 3"),
    (["N", 3, 16, 24], "images are 16x24"), (["N", 48], "expected one image"),
])
def test_inputs_that_are_not_read_are_one_line(shape: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_input("m.onnx", shape, True)
    with pytest.raises(UserError, match="no floating-point"):
        check_input("m.onnx", ["N", 3, 16, 16], False)


def test_the_command_says_it(greys: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = foreign(tmp_path / "net.onnx", RAW)

    def call(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.main(["evaluate", str(path), "--data", str(greys), "--split", "all", *words])
        return int(end.value.code or 0), *capfd.readouterr()

    code, out, _ = call("--scale", "255")
    assert code == 0 and "top-1 100.0 %" in out
    assert "input: (pixels / 255 * 255 - mean) / std with mean 0 0 0 and std 1 1 1 (--scale)" in out
    assert "classes: by order: the network does not name its classes" in out
    code, out, _ = call("--json")
    assert code == 0 and json.loads(out)["preprocessing"] == {
        "mean": [*IMAGENET[0]], "std": [*IMAGENET[1]], "scale": 1.0,
        "source": "ImageNet's: the file has no mean and std"}
    code, _, errors = call("--mean", "0.5")
    assert code == 2 and "--mean: has no meaning without --std; give both" in errors
