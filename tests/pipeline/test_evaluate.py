"""How good a file is: shares and intervals worked out by hand, classes by name, any batch; its own card's accuracy."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from pictures import png16
from PIL import Image

from nas import cli
from nas.errors import UserError
from nas.pipeline.evaluate import evaluate, score, wilson

NAMES = ["red", "green", "blue"]


def test_wilson_by_hand() -> None:
    low, high = wilson(8, 10, z=2.0)  # p = 0.8, 1 + z^2/n = 1.4: (0.8 + 0.2 -+ 2 sqrt(0.016 + 0.01)) / 1.4
    assert (low, high) == pytest.approx(((1 - 2 * math.sqrt(0.026)) / 1.4, (1 + 2 * math.sqrt(0.026)) / 1.4))
    assert wilson(0, 4)[0] == 0 and wilson(4, 4)[1] == pytest.approx(1)
    assert wilson(4, 4)[0] == pytest.approx(4 / (4 + 1.959964**2))


def test_score_by_hand() -> None:
    logits = np.log(np.array([[.7, .1, .1, .05, .03, .02], [.1, .6, .1, .1, .05, .05], [.3, .3, .1, .1, .1, .1],
                              [.3, .3, .2, .1, .06, .04]], np.float32))
    result = score(logits, np.array([0, 0, 1, 5]), list("abcdef"))
    assert result.n == 4 and result.top1.share == 0.25  # a tie is the first of equals: the third is wrong
    assert result.top5 and result.top5.share == 0.75  # the last one's class is sixth
    assert result.loss == pytest.approx(-math.log(.7 * .1 * .3 * .04) / 4, rel=1e-5)
    assert result.top1.se == pytest.approx(math.sqrt(.25 * .75 / 4))
    assert [(part.name, part.n) for part in result.classes] == [("a", 2), ("b", 1), ("c", 0), ("d", 0), ("e", 0),
                                                                      ("f", 1)]
    assert [part.top1 and part.top1.share for part in result.classes] == [.5, 0, None, None, None, 0]
    assert score(logits[:, :5], np.array([0, 0, 1, 2]), list("abcde")).top5 is None
    with pytest.raises(UserError, match="1 of 1 images give outputs that are no numbers"):
        score(np.array([[1.0, np.nan]]), np.array([0]), ["a", "b"])


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """Four images of each class of one colour; the last "blue" one is green."""
    for i, name in enumerate(NAMES):
        for k in range(4):
            pixel = np.zeros(3, np.uint8)
            pixel[1 if (name, k) == ("blue", 3) else i] = 200 + k  # no two images of a class are the same
            path = tmp_path / "images" / name / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.broadcast_to(pixel, (8, 8, 3)).copy()).save(path)
    return tmp_path / "images"


def model(path: Path, batch: int | str = "N", classes: list[str] | None = None, out: int = 3) -> Path:
    """The mean of each channel is the score of its colour, in the order of ``classes``."""
    order = [NAMES.index(name) for name in classes] if classes else [2, 1, 0]  # the data's classes are sorted by name
    weights = numpy_helper.from_array(np.eye(3, dtype=np.float32)[order][:out], "w")
    nodes = [helper.make_node("ReduceMean", ["input"], ["mean"], axes=[2, 3], keepdims=0),
             helper.make_node("Gemm", ["mean", "w"], ["output"], transB=1)]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, 8, 8])],
                              [helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, out])], [weights])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    if classes:
        helper.set_model_props(made, {"classes": "\n".join(classes), "size": "8", "mean": "0 0 0", "std": "1 1 1"})
    onnx.save(made, path)
    return path


@pytest.mark.parametrize("classes", [["red", "green", "blue"], ["green", "blue", "red"]])
@pytest.mark.parametrize("batch", ["N", 1, 5])
def test_classes_go_by_name_and_any_batch(colours: Path, tmp_path: Path, batch: int | str, classes: list[str]) -> None:
    result = evaluate(model(tmp_path / "m.onnx", batch, classes), data=str(colours), split="all")
    assert result.n == 12 and result.top1.share == pytest.approx(11 / 12) and result.top5 is None
    assert {part.name: part.top1 and part.top1.share for part in result.classes} == {"red": 1, "green": 1, "blue": 0.75}


def test_without_names_the_order_is_that_of_the_folders_and_is_said(colours: Path, tmp_path: Path) -> None:
    result = evaluate(model(tmp_path / "m.onnx"), data=str(colours), split="all")
    assert result.top1.share == pytest.approx(11 / 12) and result.classes_by.startswith("by order")
    assert evaluate(model(tmp_path / "m.onnx", classes=NAMES), data=str(colours)).classes_by == "by name"


def test_what_does_not_go_together_is_one_line(colours: Path, tmp_path: Path) -> None:
    data = str(colours)
    with pytest.raises(UserError, match="2 outputs, but the images have 3 classes, more than the"):
        evaluate(model(tmp_path / "two.onnx", out=2), data=data)
    (colours / "red").rename(colours / "rad")
    with pytest.raises(UserError, match="does not know the class 'rad' of these images; did you mean 'red'"):
        evaluate(model(tmp_path / "m.onnx", classes=NAMES), data=data)
    with pytest.raises(UserError, match=r"size=16: .* takes images of 8x8"):
        evaluate(tmp_path / "m.onnx", data=data, size=16)
    with pytest.raises(UserError, match="split=tets: did you mean 'test'"):
        evaluate(tmp_path / "m.onnx", data=data, split="tets")
    with pytest.raises(UserError, match="no such file or run"):
        evaluate(tmp_path / "none.onnx", data=data)
    with pytest.raises(UserError, match="on which images"):
        evaluate(tmp_path / "m.onnx")
    with pytest.raises(UserError, match="choose from a run"):
        evaluate(tmp_path / "m.onnx", arch="a", data=data)


def test_a_pick_of_a_run_has_the_accuracy_of_its_card(tmp_path: Path, capfd: pytest.CaptureFixture[str],
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> dict:
        with pytest.raises(SystemExit) as end:
            cli.main([*words, "--json"])
        out, err = capfd.readouterr()
        assert not end.value.code, err
        return json.loads(out)

    made = call("train", "--space", "mbconv@0.25", "--arch", "smallest", "--epochs", "1", "--data", "digits",
                "--limit", "200", "--threads", "1")
    result, card = call("evaluate", made["run"]), made["front"][0]
    assert result["top1"]["share"] == pytest.approx(card["accuracy"]) and result["n"] == card["test_images"]
    assert result["top1"]["se"] == pytest.approx(card["accuracy_se"])
    assert sum(part["n"] for part in result["classes"]) == result["n"]
    assert all(set(part) == {"class", "n", "top1"} for part in result["classes"]) and len(result["classes"]) == 10
    select = call("evaluate", made["run"], "--arch", card["id"], "--split", "select")
    assert select["loss"] > 0 and select["n"] != result["n"]


def ended(path: Path, out: Path, opset: int, *tail: tuple[str, dict[str, Any]]) -> Path:
    """The network of ``path`` with these nodes at its end."""
    made = onnx.load(path)
    names = ["logits", *(f"t{i}" for i in range(1, len(tail))), "output"]
    made.graph.node[-1].output[0] = names[0]
    for (kind, how), read, write in zip(tail, names[:-1], names[1:], strict=True):
        made.graph.node.append(helper.make_node(kind, [read], [write], **how))
    made.opset_import[0].version = opset
    onnx.save(made, out)
    return out


SOFTMAX = ("Softmax", {"axis": 1})
ENDINGS: dict[str, tuple[int, list[tuple[str, dict[str, Any]]], str]] = {
    "opset 11": (11, [SOFTMAX], "probabilities"), "opset 17": (17, [SOFTMAX], "probabilities"),
    "axis -1": (17, [("Softmax", {"axis": -1})], "probabilities"),
    "nodes behind": (17, [SOFTMAX, ("Identity", {}), ("Flatten", {}), ("Cast", {"to": 1})], "probabilities"),
    "log": (17, [("LogSoftmax", {"axis": 1})], "log-probabilities"),
    "in pieces": (17, [("Identity", {}), ("Softmax", {"axis": -1}), ("Mul", {})], "probabilities"),
    "sigmoid": (17, [("Sigmoid", {})], "independent probabilities"),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_a_softmax_at_the_end_changes_no_figure(tmp_path: Path, colours: Path, name: str) -> None:
    opset, tail, kind = ENDINGS[name]
    plain = model(tmp_path / "plain.onnx", batch=4)
    expected = evaluate(plain, data=str(colours), split="all")
    path = ended(plain, tmp_path / "end.onnx", opset, *tail)
    if name == "in pieces":  # a Mul by one, which no rule sees through: the rows sum to one all the same
        made = onnx.load(path)
        made.graph.node[-1].input.append("one")
        made.graph.initializer.append(numpy_helper.from_array(np.float32(1), "one"))
        onnx.save(made, path)
    result = evaluate(path, data=str(colours), split="all")
    assert (expected.ends_in, result.ends_in) == ("logits", kind)
    assert result.loss == pytest.approx(expected.loss, rel=1e-4) and result.top1 == expected.top1


def test_pixels_of_more_than_8_bits_are_divided_by_what_the_network_was_trained_with(tmp_path: Path) -> None:
    """Grey of 10 bits: 600 is above a half of 1023 and far below a half of 4095, by which the file was trained."""
    for name, value in (("dark", 500), ("light", 600)):
        for k in range(4):
            png16(tmp_path / "images" / name / f"{k}.png", np.full((8, 8, 3), value + k))
    nodes = [helper.make_node("ReduceMean", ["input"], ["mean"], axes=[1, 2, 3], keepdims=0),
             helper.make_node("Sub", ["half", "mean"], ["dark"]), helper.make_node("Sub", ["mean", "half"], ["light"]),
             helper.make_node("Unsqueeze", ["dark", "one"], ["d"]),
             helper.make_node("Unsqueeze", ["light", "one"], ["l"]),
             helper.make_node("Concat", ["d", "l"], ["output"], axis=1)]
    constants = [numpy_helper.from_array(np.float32(550 / 4095), "half"), numpy_helper.from_array(np.array([1]), "one")]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 8, 8])],
                              [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", 2])], constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    shares = {}
    for white in ("4095", None):
        props = {"classes": "dark\nlight", "size": "8", "mean": "0 0 0", "std": "1 1 1"}
        helper.set_model_props(made, props | ({"white_integer": white} if white else {}))
        onnx.save(made, tmp_path / "m.onnx")
        shares[white] = evaluate(tmp_path / "m.onnx", data=str(tmp_path / "images"), split="all").top1.share
    assert shares == {"4095": 1.0, None: 0.5}  # without: by 1023, the folder's own 10 bits, everything is light


def test_what_the_images_are_is_said_on_stderr(colours: Path, tmp_path: Path,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    file = model(tmp_path / "m.onnx", classes=NAMES)
    with pytest.raises(SystemExit) as left:
        cli.main(["evaluate", str(file), "--data", str(colours), "--json"])
    shown = capsys.readouterr()
    assert not left.value.code and json.loads(shown.out)["n"] == 3
    assert "images: 12 images of 3 classes at 8x8" in shown.err and "smallest class: 'blue'" in shown.err
    assert "augmentation" not in shown.err
