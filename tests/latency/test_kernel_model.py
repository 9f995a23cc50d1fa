"""The kernel model: sums, floors, extrapolation, and refusal of every broken table."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from every import every
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nas.arch import Op
from nas.errors import UserError
from nas.files import resolve
from nas.latency.fusion import Kernel
from nas.latency.kernel_model import FEATURES, KernelModel, ModelFile, Roofline, Shapes
from nas.plan import OpKey

SHIPPED = resolve("latency_tables", "gpu-v100", ".json")
N = len(FEATURES)
ROOFLINE = {"macs_per_ms": 5e10, "bytes_per_ms": 9e8, "launch_ms": 0.008, "processors": 80}
# no residual: the model is its roofline, so that figures can be worked out by hand
PLAIN: dict[str, Any] = {
    "kind": "kernel-model", "name": "plain",
    "meta": {"device": "d", "runtime": "r", "precision": "fp16", "batch": 1, "method": "m", "source": "s", "date": "d"},
    "variants": {"fp16-batch1": {
        "element_bytes": 2, "roofline": ROOFLINE, "floor_ms": 0.0085, "features": list(FEATURES),
        "limits": {"in_ch": [3, 4096], "out_ch": [8, 2560], "size": [5, 480], "residual": [-3, 3]},
        "mean": [0.0] * N, "scale": [1.0] * N, "networks": [[{"weight": [[0.0] * N], "bias": [0.0]}]],
        "correction": {"scale": 0.5, "per_kernel_ms": -0.001, "floor_ms": 0.002}}}}


@pytest.fixture(scope="module")
def shipped() -> KernelModel:
    return KernelModel.load(SHIPPED)


@pytest.fixture
def plain(tmp_path: Path) -> KernelModel:
    (tmp_path / "plain.json").write_text(json.dumps(PLAIN))
    return KernelModel.load(tmp_path / "plain.json")


def test_raw_and_corrected_ms_by_hand(plain: KernelModel) -> None:
    dense = Kernel("conv", 64, 128, 56, 28, 3.0, 2)
    macs, moved = 28 * 28 * 128 * 64 * 9, 2 * (56 * 56 * 64 + 28 * 28 * 128 + 64 * 128 * 9)
    pool = Kernel("pool", 512, 512, 7, 1, moved=90_000)
    raw = [macs / 5e10 + moved / 9e8 + 0.008, 2 * 90_000 / 9e8 + 0.0085]
    np.testing.assert_allclose(plain.raw_ms([dense, pool]), raw, rtol=1e-12)
    np.testing.assert_allclose(plain.kernel_ms([dense, pool]), [0.5 * ms - 0.001 for ms in raw], rtol=1e-12)
    assert plain.name == "plain" and plain.meta.device == "d"


def columns(depthwise: float) -> Iterator[Any]:
    """One 3x3 convolution of stride 1, 40 to 96 channels at 28x28."""
    return (np.array([value]) for value in (depthwise, 40.0, 96.0, 28.0, 28.0, 3.0, 1.0, 0.0))


def test_tiles_and_waves_by_hand() -> None:
    """28x28 = 784 positions of 96 channels: 4 x 1 tiles of 256x128, 7 x 1 of 128x128, 4 x 2, 13 x 2; 80 a wave."""
    dense, depthwise = (
        Shapes(*columns(kind), element_bytes=2)
        .features(Roofline(**ROOFLINE))[0] for kind in (0.0, 1.0))
    got = dict(zip(FEATURES, np.exp(dense), strict=True))
    assert [got[f"out_ch filling {n}s"] for n in (16, 32, 64, 128)] == pytest.approx([1, 1, 128 / 96, 128 / 96])
    assert [got[f"in_ch filling {n}s"] for n in (16, 32, 64, 128)] == pytest.approx([1.2, 1.6, 1.6, 3.2])
    sizes = ("256x128", "128x128", "256x64", "64x64")
    assert [got[f"tiles of {size}"] for size in sizes] == pytest.approx([4, 7, 8, 26])
    assert [got[f"last wave of {size}"] for size in sizes] == pytest.approx([80 / 4, 80 / 7, 80 / 8, 80 / 26])
    nothing = dict(zip(FEATURES, depthwise, strict=True))  # a depthwise convolution is no matrix product
    assert every(nothing[name] == 0 for name in FEATURES if "filling" in name or "tiles" in name or "wave" in name)
    many = Shapes(*columns(0.0), element_bytes=2, batch=32)
    waves = dict(zip(FEATURES, np.exp(many.features(Roofline(**ROOFLINE))[0]), strict=True))
    assert waves["tiles of 128x128"] == pytest.approx(196) and waves["last wave of 128x128"] == pytest.approx(240 / 196)


def test_no_kernel_is_below_the_floors(plain: KernelModel) -> None:
    tiny = Kernel("conv", 8, 8, 1, 1)
    assert plain.raw_ms([tiny])[0] == 0.0085
    assert plain.kernel_ms([tiny])[0] == pytest.approx(0.5 * 0.0085 - 0.001)
    assert plain.kernel_ms([]).shape == (0,)


def test_a_batch_multiplies_maps_and_macs_but_not_weights_and_launches(tmp_path: Path) -> None:
    table = copy.deepcopy(PLAIN)
    table["variants"]["fp16-batch1"]["batch"] = 32
    (tmp_path / "b.json").write_text(json.dumps(table))
    macs, maps, weights = 28 * 28 * 128 * 64 * 9, 56 * 56 * 64 + 28 * 28 * 128, 64 * 128 * 9
    expected = [32 * macs / 5e10 + 2 * (32 * maps + weights) / 9e8 + 0.008, 32 * 2 * 90_000 / 9e8 + 0.0085]
    found = [Kernel("conv", 64, 128, 56, 28, 3.0, 2), Kernel("pool", 512, 512, 7, 1, moved=90_000)]
    np.testing.assert_allclose(KernelModel.load(tmp_path / "b.json").raw_ms(found), expected, rtol=1e-12)


def test_a_file_survives_being_written_again(tmp_path: Path) -> None:
    file, again = ModelFile.load(SHIPPED), tmp_path / "again.json"
    file.save(again)
    assert again.read_bytes() == SHIPPED.read_bytes()
    hostile = file.model_copy(update={"name": 'x],["y,"z'})
    hostile.save(again)
    assert ModelFile.load(again) == hostile


def notes(model: KernelModel) -> dict[str, Any]:
    """What the file says beyond what the code reads."""
    assert model.meta.model_extra
    return model.meta.model_extra


V100S = sorted(SHIPPED.parent.glob("gpu-v100*.json"))


def test_v100_is_there_at_three_precisions_and_four_batches() -> None:
    suffixes = {f"{p}{b}" for p in ("", "-fp32", "-int8") for b in ("", "-b32", "-b64", "-b128")}
    assert {path.stem for path in V100S} == {f"gpu-v100{suffix}" for suffix in suffixes}
    assert sum(path.stat().st_size for path in V100S) <= 1_000_000


@pytest.mark.parametrize("path", V100S, ids=lambda path: path.stem)
def test_each_of_them_is_what_its_name_and_meta_say(path: Path) -> None:
    model = KernelModel.load(path)
    suffix = ("" if model.meta.precision == "fp16" else f"-{model.meta.precision}") + (
        "" if model.meta.batch == 1 else f"-b{model.meta.batch}")
    assert model.name == path.stem == f"gpu-v100{suffix}" and model.variant.batch == model.meta.batch
    for example in notes(model)["examples"]:
        kernel = Kernel(**example["kernel"])
        assert model.raw_ms([kernel])[0] == pytest.approx(example["raw_ms"], rel=1e-3)
        assert model.kernel_ms([kernel])[0] == pytest.approx(example["ms"], rel=1e-3)
    assert model.meta.held_out.groups.mape <= 12


@pytest.mark.parametrize("precision", ["", "-fp32", "-int8"])
def test_a_larger_batch_takes_longer_but_less_an_image(precision: str) -> None:
    """Of a 3x3 and a 1x1 convolution at 28x28, hardly more than one launch at batch 1."""
    found = [Kernel("conv", 128, 128, 28, 28, 3.0), Kernel("conv", 256, 256, 28, 28)]
    ms = {b: KernelModel.load(SHIPPED.parent / f"gpu-v100{precision}{f'-b{b}' if b > 1 else ''}.json").raw_ms(found)
          for b in (1, 32, 64, 128)}
    assert all((ms[b] < ms[c]).all() for b, c in ((1, 32), (32, 64), (64, 128)))
    assert (ms[128] / 128 < ms[1]).all()


def test_grouped_is_between_dense_and_depthwise(shipped: KernelModel) -> None:
    dense, *between, depthwise = shipped.raw_ms([Kernel("conv", 256, 256, 28, 28, 3.0, 1, g) for g in (1, 4, 16, 256)])
    assert depthwise < dense and every(depthwise < ms < dense for ms in between)


def test_shipped_table_reproduces_the_figures_in_its_meta(shipped: KernelModel) -> None:
    assert SHIPPED.stat().st_size <= 1_000_000
    examples = [(Kernel(**e["kernel"]), e["raw_ms"], e["ms"]) for e in notes(shipped)["examples"]]
    assert len(examples) >= 5
    for kernel, raw_ms, ms in examples:
        assert shipped.raw_ms([kernel])[0] == pytest.approx(raw_ms, rel=1e-3)
        assert shipped.kernel_ms([kernel])[0] == pytest.approx(ms, rel=1e-3)
    assert shipped.meta.held_out.groups.median <= 6.5
    assert shipped.meta.held_out.groups.mape <= 10
    assert every(abs(network["left_out_scale_%"]) <= 10 for network in notes(shipped)["calibration"])


def test_the_sum_over_parts_is_the_whole(shipped: KernelModel) -> None:
    with torch.device("meta"):
        parts = [nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=groups), nn.BatchNorm2d(16), nn.ReLU())
                 for groups in (1, 16, 4)]
    whole = shipped.module_ms(nn.Sequential(*parts), 16, 20)
    assert whole == pytest.approx(sum(shipped.module_ms(part, 16, 20) for part in parts), rel=1e-12)


def test_costs_of_operators_do_not_depend_on_what_is_asked_with_them(shipped: KernelModel) -> None:
    keys = [OpKey(Op("stem"), 3, 16, 2, size) for size in (224, 32, 224)]
    together = shipped.ms_many(keys)
    assert together == [KernelModel.load(SHIPPED).ms(key) for key in keys] == [shipped.ms(key) for key in keys]
    assert together[0] == together[2] > together[1] > 0


conv = st.builds(Kernel, st.just("conv"), st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 900), st.just(1),
                 st.sampled_from([1.0, 2.0, 3.0, 5.0, 7.0, 11.0]), st.integers(1, 4), st.just(1), st.booleans())


@given(conv)
def test_every_shape_has_a_positive_finite_cost(shipped: KernelModel, kernel: Kernel) -> None:
    kernel = replace(kernel, size_out=-(-kernel.size_in // kernel.stride))
    raw_ms, ms = float(shipped.raw_ms([kernel])[0]), float(shipped.kernel_ms([kernel])[0])
    assert 0.0085 <= raw_ms < 1e6 and 0.002 < ms <= raw_ms


@pytest.mark.parametrize("groups", [1, 96])
@pytest.mark.parametrize("window", [1.0, 3.0, 5.0])
def test_a_bigger_map_or_window_is_never_much_cheaper(shipped: KernelModel, groups: int, window: float) -> None:
    sizes = [*range(5, 64), *range(64, 960, 16)]
    ms = shipped.kernel_ms([Kernel("conv", 96, 96, s, s, window, 1, groups) for s in sizes])
    assert (ms >= 0.85 * np.maximum.accumulate(ms)).all()


@pytest.mark.parametrize("groups", [False, True])
def test_a_wider_kernel_is_never_much_cheaper(shipped: KernelModel, groups: bool) -> None:
    widths = range(16, 1024, 8)
    kernels = [Kernel("conv", c, c, 14, 14, 3.0 if groups else 1.0, 1, c if groups else 1) for c in widths]
    ms = shipped.kernel_ms(kernels)
    assert (ms >= 0.85 * np.maximum.accumulate(ms)).all()


def test_beyond_the_rows_cost_scales_with_the_work(shipped: KernelModel) -> None:
    inside, outside = shipped.raw_ms([Kernel("conv", 64, 64, s, s, 3.0) for s in (480, 960)])
    assert 3.6 < outside / inside < 4.4
    inside, outside = shipped.raw_ms([Kernel("conv", 1024, c, 64, 64) for c in (2560, 5120)])
    assert 1.6 < outside / inside < 2.2


BROKEN = [
    ("not json", lambda t: "{", "file"), ("empty", lambda t: "", "file"), ("array", lambda t: "[]", "file"),
    ("no variants", lambda t: _without(t, "variants"), "variants"),
    ("no runtime", lambda t: _without(t, "meta", "runtime"), "meta.runtime"),
    ("unknown key", lambda t: _with(t, 1, "variants", "fp16-batch1", "extra"), "variants.fp16-batch1.extra"),
    ("NaN", lambda t: _with(t, float("nan"), "variants", "fp16-batch1", "floor_ms"), "variants.fp16-batch1.floor_ms"),
    ("negative", lambda t: _with(t, -1.0, "variants", "fp16-batch1", "floor_ms"), "variants.fp16-batch1.floor_ms"),
    ("text", lambda t: _with(t, "2", "variants", "fp16-batch1", "element_bytes"), "element_bytes"),
    ("no networks", lambda t: _with(t, [], "variants", "fp16-batch1", "networks"), "networks"),
    ("ragged", lambda t: _with(t, [[{"weight": [[1.0]], "bias": [0.0]}]], "variants", "fp16-batch1", "networks"),
     "networks: a layer's weight"),
    ("no layers", lambda t: _with(t, [[]], "variants", "fp16-batch1", "networks"), "networks"),
    ("features", lambda t: _with(t, ["a"], "variants", "fp16-batch1", "features"), "features"),
    ("scale", lambda t: _with(t, [0.0] * N, "variants", "fp16-batch1", "scale"), "scale"),
    ("range", lambda t: _with(t, [9, 5], "variants", "fp16-batch1", "limits", "size"), "size"),
    ("variant", lambda t: _with(t, "int8", "meta", "precision"), "int8-batch1"),
]


def _with(table: dict[str, Any], value: Any, *path: str) -> str:
    inner = table
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return json.dumps(table)


def _without(table: dict[str, Any], *path: str) -> str:
    inner = table
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return json.dumps(table)


@pytest.mark.parametrize(("change", "key"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN])
def test_a_broken_table_is_one_line_with_file_and_key(tmp_path: Path, change: Any, key: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(change(copy.deepcopy(PLAIN)))
    with pytest.raises(UserError) as error:
        KernelModel.load(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and key in message and "\n" not in message


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"bytes\.json: [^\n]+$"):
        KernelModel.load(path)


def test_a_missing_file_or_variant_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.json: cannot be read"):
        KernelModel.load(tmp_path / "absent.json")
    with pytest.raises(UserError, match="no 'fp16-batch2'; did you mean 'fp16-batch1'"):
        KernelModel.load(SHIPPED, "fp16-batch2")
