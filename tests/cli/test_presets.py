"""Presets are the published networks: torchvision's tensor by tensor, the others by their published figures."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
import yaml
from every import every
from tiny_search import config_of, searched
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nas import sampling
from nas.cli import app
from nas.errors import UserError
from nas.files import folder, shipped
from nas.latency.costs import load
from nas.latency.predict import predict
from nas.lower.onnx import export
from nas.lower.verify import check_onnx
from nas.plan import Layout, Task, layout, macs, params, plan
from nas.space import Space, hidden_width
from nas.subnet import Subnet, build

PRESETS = shipped("search_spaces/presets", ".yaml")
DOCS = Path(__file__).parents[2] / "docs" / "spaces.md"


def only(at: Layout) -> Subnet:
    assert sampling.count(at) == 1
    return build(at, sampling.smallest(at))


def shapes(model: nn.Module) -> Counter[tuple[int, ...]]:
    return Counter(tuple(p.shape) for p in model.parameters())


@pytest.mark.parametrize(("name", "width"), [
    ("mobilenet_v2", 1.0), ("mobilenet_v2", 0.5), ("mobilenet_v2", 1.4), ("mobilenet_v3_large", 1.0),
    ("mobilenet_v3_small", 1.0), ("resnet18", 1.0), ("resnet50", 1.0), ("regnet_y_400mf", 1.0)])
def test_those_of_torchvision_have_its_tensors_and_its_macs(name: str, width: float) -> None:
    theirs = getattr(torchvision.models, name)(**({"width_mult": width} if width != 1 else {})).eval()
    at = layout(Space.load(name).scaled(width), Task(224, 3, 1000))
    ours, keys = only(at), plan(at, sampling.smallest(at))
    assert shapes(ours) == shapes(theirs)
    assert sum(map(params, keys)) == sum(p.numel() for p in theirs.parameters())
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        theirs(torch.zeros(1, 3, 224, 224))
    assert sum(map(macs, keys)) == counted.get_total_flops() // 2


@pytest.mark.parametrize(("name", "parameters", "multiply_adds", "within"), [
    ("ghostnet", 5.18e6, 141.2e6, 0.001),  # and 0.5x and 1.3x: counted with the authors' code
    ("ghostnet@0.5", 2.59e6, 42.3e6, 0.005), ("ghostnet@1.3", 7.36e6, 227.0e6, 0.005),
    ("proxyless_gpu", 7119848, 465e6, 0.001), ("fbnet_c", 5572200, 375e6, 0.03),  # paper: 375 M; as released 385 M
    ("proxyless_cpu", 4361648, None, 0),
])
def test_the_others_have_the_published_figures(name: str, parameters: float, multiply_adds: float | None,
                                               within: float) -> None:
    at = layout(Space.load(name), Task(224, 3, 1000))
    keys = plan(at, sampling.smallest(at))
    assert sum(map(params, keys)) == (parameters if isinstance(parameters, int)
                                      else pytest.approx(parameters, rel=0.002))
    assert multiply_adds is None or sum(map(macs, keys)) == pytest.approx(multiply_adds, rel=within)


@pytest.mark.parametrize(("name", "size", "parameters", "multiply_adds"), [
    ("gpunet_0", 320, 11.9e6, 3.31e9), ("gpunet_1", 288, 12.7e6, 3.37e9), ("gpunet_2", 384, 25798704, 8708618240)])
def test_gpunets_have_the_published_figures_at_their_sizes(name: str, size: int, parameters: float,
                                                           multiply_adds: float) -> None:
    at = layout(Space.load(name), Task(size, 3, 1000))
    keys = plan(at, sampling.smallest(at))
    assert sum(map(params, keys)) == pytest.approx(parameters, rel=0.005)
    assert sum(map(macs, keys)) == pytest.approx(multiply_adds, rel=0.005)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_one_network_in_scalars(name: str) -> None:
    file = yaml.safe_load((folder("search_spaces") / "presets" / f"{name}.yaml").read_text())
    families = [knobs for part in [file, *file["stages"]] for knobs in part.get("ops", {}).values()]
    assert file["name"] == name and file["skip"] is False
    assert every(isinstance(value, int | str) for knobs in families for value in knobs.values())
    for size in (32, 96, 224):
        assert sampling.count(layout(Space.load(name), Task(size, 3, 10))) == 1
    assert name not in shipped("search_spaces", ".yaml")


def test_published_accuracies_name_their_source_and_rise_with_the_width() -> None:
    published = {name: each for name in PRESETS if (each := Space.load(name).published)}
    assert {"mobilenet_v3_small", "mobilenet_v2", "ghostnet", "resnet18"} <= set(published)
    for name, each in published.items():
        assert each.source and 1.0 in each.top1 and list(each.top1) == sorted(each.top1), name
        assert list(each.top1.values()) == sorted(each.top1.values()), name
        for width in each.top1:
            assert sampling.count(layout(Space.load(f"{name}@{width:g}"), Task(224, 3, 1000))) == 1


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_runs_trains_exports_and_costs_as_a_pick_does(name: str, tmp_path: Path) -> None:
    try:
        at = layout(Space.load(f"{name}@0.25"), Task(64, 3, 10))
    except UserError:  # groups of a fixed width do not get narrower
        at = layout(Space.load(name), Task(64, 3, 10))
    model = only(at)
    model.train()(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert every(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    export(model, tmp_path / "m.onnx", in_ch=3, size=64, metadata={})
    assert check_onnx(tmp_path / "m.onnx", model, in_ch=3, size=64).relative < 1e-4
    v100: Any = load("gpu-v100")
    result = predict(tmp_path / "m.onnx", v100)
    assert result.unknown == ()
    assert result.ms == pytest.approx(sum(v100.ms_many(plan(at, sampling.smallest(at)))), rel=1e-9)


def test_a_search_of_one_network_trains_and_exports_it(tmp_path: Path) -> None:
    result = searched(config_of(Path("mobilenet_v2@0.25"), "train.weight_decay=0"), tmp_path / "run")
    (card,) = result["front"]
    assert Space.load(str(tmp_path / "run" / "space.yaml")).name == "mobilenet_v2"
    assert (tmp_path / "run" / "archs" / card["id"] / "model.onnx").is_file() and min(card["ms"].values()) > 0


@pytest.mark.parametrize(("size", "stem", "last"), [(32, 1, 4), (64, 2, 4), (96, 2, 6), (224, 4, 7)])
def test_the_pooling_of_a_stem_goes_first_where_inputs_are_small(size: int, stem: int, last: int) -> None:
    at = layout(Space.load("resnet18"), Task(size, 3, 10))
    assert (at.stem.stride, at.head.size) == (stem, last) and [s.stride for s in at.slots] == [1, 1, 2, 1, 2, 1, 2, 1]


@pytest.mark.parametrize(("value", "width"), [(96, 96), ("6x", 96), ("1x", 16), ("2.5x", 40)])
def test_fixed_widths_by_hand(value: int | str, width: int) -> None:
    assert hidden_width(value, 16) == width


@pytest.mark.parametrize("value", ["x", "6", "-1x", "relu", "0x", 0, -4, 10**9, "1e3x"])
def test_a_fixed_width_that_makes_no_sense(value: int | str) -> None:
    with pytest.raises(UserError, match=r"channels|6x"):
        hidden_width(value, 16)


def test_fixed_widths_scale_to_the_divisor() -> None:
    space = Space.load("mobilenet_v3_small@0.5")  # 72 and 88 hidden become 36 and 44, to multiples of 8
    hidden = [knobs["hidden"] for stage in space.stages for knobs in (stage.ops or {}).values()]
    assert hidden[:4] == ["1x", 40, 48, 48] and space.head.op.startswith("head(act=hswish, dropout_percent=20, ")
    assert "hidden=1280" in Space.load("mobilenet_v2@0.5").head.op
    assert "hidden=1792" in Space.load("mobilenet_v2@1.4").head.op


@pytest.mark.parametrize(("command", "folder_"), [
    ("presets", "search_spaces/presets"),
    pytest.param("spaces", "search_spaces", marks=pytest.mark.slow)])  # every operator of every space: half a minute
def test_a_table_of_the_docs_is_what_its_command_prints(capsys: pytest.CaptureFixture[str], command: str,
                                                        folder_: str) -> None:
    text = DOCS.read_text()
    (line,) = [line for line in text.splitlines() if line.startswith(f"    nas {command} ")]
    app(args=line.split()[1:], standalone_mode=False)
    table = capsys.readouterr().out
    assert table.count("\n") == 2 + len(shipped(folder_, ".yaml")) and f"\n\n{table}\n" in text
