"""What the kernels' costs speak of: every attribute of every operator that is priced, and shapes of convolutions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from foreign_graphs import constant, node, random, save, whole
from onnx import AttributeProto, TensorProto, defs, helper

from nas.errors import UserError
from nas.latency import costs
from nas.latency.coverage import COVERED, Site, conv_gap, gap, pool_gap
from nas.latency.onnx_trace import _RULES
from nas.latency.predict import Prediction, predict

STRANGE: dict[int, Any] = {AttributeProto.INT: 77, AttributeProto.FLOAT: 0.123, AttributeProto.STRING: "strange",
                           AttributeProto.INTS: [7, 9], AttributeProto.FLOATS: [0.5, 0.25],
                           AttributeProto.STRINGS: ["strange"]}
CASES = [(op, name) for op in sorted(COVERED) for name in sorted(defs.get_schema(op).attributes)]


def test_every_operator_that_is_priced_says_what_is_covered() -> None:
    assert set(COVERED) == set(_RULES) and len(CASES) > 60
    for op, cover in COVERED.items():
        versions = [s for s in defs.get_all_schemas_with_history() if s.name == op and not s.domain]
        known = {name for schema in versions for name in schema.attributes}
        assert {*cover.any, *(cover.only or ())} <= known, op  # of some version, none misspelt


@pytest.mark.parametrize(("op", "name"), CASES)
def test_an_attribute_that_is_not_declared_is_unknown(op: str, name: str) -> None:
    declared: Any = defs.get_schema(op).attributes[name]
    kind = declared.type.value
    item = helper.make_node(op, ["x", "w"], ["y"], **{name: STRANGE[kind]})
    cover = COVERED[op]
    if name in cover.any:
        assert cover.only is None or name not in cover.only
    else:
        why = gap(Site(item, {"x": (1, 8, 6, 6), "y": (1, 8, 6, 6)}, {}, {}))
        assert why is not None and why.startswith(name)


def of(path: Path, **how: Any) -> Prediction:
    return predict(path, costs.load("gpu-v100"), **how)


def conv(shape: tuple[int, ...] = (8, 3, 3, 3), **attributes: Any) -> onnx.ModelProto:
    made = whole(c1=[node("Conv x v -> c1", **attributes)], constants=[random("v", *shape)])
    return made


CONVS = {
    "plain": (conv(pads=[1, 1, 1, 1]), None), "no padding": (conv(), None),
    "SAME_UPPER, stride 2": (conv(auto_pad="SAME_UPPER", strides=[2, 2]), None),
    "1x1, dilated": (conv((8, 3, 1, 1), dilations=[4, 4]), None),
    "dilated": (conv(dilations=[2, 2], pads=[2, 2, 2, 2]), r"dilations \[2, 2\]"),
    "dilated by 8": (conv(dilations=[8, 8], pads=[8, 8, 8, 8]), r"dilations \[8, 8\]"),
    "dilated one way": (conv(dilations=[1, 2], pads=[1, 2, 1, 2]), r"dilations \[1, 2\]"),
    "1x7": (conv((8, 3, 1, 7), pads=[0, 3, 0, 3]), r"kernel_shape \[1, 7\]"),
    "4x4": (conv((8, 3, 4, 4), strides=[2, 2]), r"kernel_shape \[4, 4\]"),
    "11x11": (conv((8, 3, 11, 11), strides=[2, 2], pads=[5, 5, 5, 5]), r"kernel_shape \[11, 11\]"),
    "stride 4": (conv((8, 3, 7, 7), strides=[4, 4], pads=[3, 3, 3, 3]), r"strides \[4, 4\]"),
    "strides 1 and 2": (conv(strides=[1, 2], pads=[1, 1, 1, 1]), r"strides \[1, 2\]"),
    "wide padding": (conv(pads=[4, 4, 4, 4]), r"pads that make \[38, 38\] of \[32, 32\]"),
}


@pytest.mark.parametrize("name", CONVS)
def test_convolutions_that_no_row_is_like(tmp_path: Path, name: str) -> None:
    made, gap_ = CONVS[name]
    path = save(made, tmp_path / "m.onnx")
    if gap_ is None:
        assert of(path).unknown == ()
        return
    with pytest.raises(UserError, match=rf"no kernel is known for Conv \(c1\) with {gap_}; allow_unknown"):
        of(path)
    result = of(path, allow_unknown=True)
    assert [operator.op for operator in result.unknown] == ["Conv"] and result.unknown[0].why
    assert "Conv+Relu" in [operator.op for operator in result.operators]  # the others are priced


def behind(text: str, *constants: TensorProto, **attributes: Any) -> onnx.ModelProto:
    """With a node between the first activation and the second convolution."""
    return whole(b=[node("Relu c1 -> r"), node(text, **attributes)], constants=constants)


OTHERS = {
    "MaxPool, dilated": (behind("MaxPool r -> b", kernel_shape=[3, 3], dilations=[2, 2]), r"dilations \[2, 2\]"),
    "MaxPool, wide": (behind("MaxPool r -> b", kernel_shape=[9, 9]), r"kernel_shape \[9, 9\] in steps of \[1, 1\]"),
    "MaxPool": (behind("MaxPool r -> b", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1), None),
    "AveragePool": (behind("AveragePool r -> b", kernel_shape=[2, 2], strides=[2, 2], count_include_pad=1), None),
    "Resize, cubic": (behind("Resize r _ two -> b", constant("two", [1, 1, 2, 2], np.float32), mode="cubic"),
                      "mode cubic"),
    "Resize, linear": (behind("Resize r _ two -> b", constant("two", [1, 1, 2, 2], np.float32), mode="linear"), None),
    "Resize, a part": (behind("Resize r roi two -> b", constant("two", [1, 1, 2, 2], np.float32),
                              constant("roi", [0, 0, 0, 0, 1, 1, 1, 1], np.float32), mode="linear",
                              coordinate_transformation_mode="tf_crop_and_resize"), "coordinate_transf.* tf_crop"),
    "Resize, antialiased": (behind("Resize r _ two -> b", constant("two", [1, 1, .5, .5], np.float32), mode="linear",
                                   antialias=1), None),
    "Slice, every second": (behind("Slice r s e a q -> b", *(constant(n, v) for n, v in (
        ("s", [0]), ("e", [16]), ("a", [2]), ("q", [2])))), r"steps \[2\]"),
    "LeakyRelu": (behind("LeakyRelu r -> b", alpha=0.3), None),
    "Pad, reflected": (behind("Pad r q -> b", constant("q", [0, 0, 1, 1, 0, 0, 1, 1]), mode="reflect"), None),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_operators(tmp_path: Path, name: str) -> None:
    made, gap_ = OTHERS[name]
    made.opset_import[0].version = 18
    path = save(made, tmp_path / "m.onnx")
    if name == "Resize, antialiased":
        gap_ = "antialias 1"
    if gap_ is None:
        assert of(path).unknown == ()
    else:
        with pytest.raises(UserError, match=rf"no kernel is known for \w+ \(b\) with {gap_}"):
            of(path)


GEMM = {"transA": ({"transA": 1}, "transA 1"), "alpha": ({"alpha": 0.5, "beta": 2.0}, None)}


@pytest.mark.parametrize("name", GEMM)
def test_gemm(name: str) -> None:
    how, expected = GEMM[name]
    shapes = {"x": (16, 1), "w": (16, 10), "y": (1, 10)}
    site = Site(helper.make_node("Gemm", ["x", "w", "b"], ["y"], **how), shapes, {}, {})
    assert gap(site) == expected


def test_types_that_no_engine_computes_in(tmp_path: Path) -> None:
    path = save(whole(values=np.float64, kind=TensorProto.DOUBLE), tmp_path / "m.onnx")
    with pytest.raises(UserError, match=r"Conv \(c1\) with type double.* and 4 more; allow_unknown"):
        of(path)


def test_grouped_convolutions_and_a_fixed_batch_are_said(tmp_path: Path) -> None:
    made = whole(shape=(1, 3, 32, 32), c2=[node("Conv b v -> c2", group=4, strides=[2, 2])],
                 constants=[random("v", 12, 2, 3, 3)])
    path = save(made, tmp_path / "m.onnx")
    assert [note.split(":")[0] for note in of(path).notes] == ["1 grouped convolutions"]
    notes = predict(path, costs.load("gpu-v100-b32")).notes
    assert notes[0] == "the file is fixed at batch 1; the costs are those of 32 images a call" and len(notes) == 2
    open_ = save(whole(), tmp_path / "open.onnx")
    assert predict(open_, costs.load("gpu-v100-b32")).notes == ()


def test_gaps_by_hand() -> None:
    assert conv_gap((3, 3), (2, 2), (1, 1), (7, 7), (4, 4)) is None  # ceil(7 / 2)
    assert conv_gap((3, 3), (2, 2), (1, 1), (7, 7), (5, 4)) == "pads that make [5, 4] of [7, 7]"
    assert conv_gap((3,), (1,), (1,), (7,), (7,)) == "kernel_shape [3]"
    assert conv_gap((3, 3), (1, 1), (1, 1), (7, 7), (7,)) == "maps of [7, 7] made to [7]"
    assert pool_gap((9, 9), (9, 9), (1, 1), (27, 27)) is None and pool_gap((9, 9), (1, 1), (1, 1), (9, 9)) is None
    assert pool_gap((9, 9), (8, 9), (1, 1), (27, 27)) == "kernel_shape [9, 9] in steps of [8, 9]"
