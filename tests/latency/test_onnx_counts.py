"""Multiply-adds and parameters of ONNX graphs: by hand, as torch counts them, and as a plan has them."""

import random
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from nas import sampling
from nas.errors import UserError
from nas.latency.costs import load
from nas.latency.predict import predict
from nas.lower.onnx import export
from nas.ops import contract
from nas.plan import Layout, macs, params, plan
from nas.subnet import build


def total(path: Path, what: str, **more: bool) -> float:
    return predict(path, load(what), **more).ms


@pytest.mark.parametrize("seed", range(3))
def test_a_file_counts_what_the_plan_counts(tiny: Layout, tmp_path: Path, seed: int) -> None:
    """But for batch norms: a plan counts scale and shift of a channel, a file has folded them into one bias."""
    arch = sampling.sample(tiny, random.Random(seed))
    net = contract.settled(build(tiny, arch))
    export(net, tmp_path / "net.onnx", in_ch=3, size=16, metadata={})
    keys = plan(tiny, arch)
    assert total(tmp_path / "net.onnx", "macs") == pytest.approx(sum(map(macs, keys)) / 1e6)
    folded = sum(part.weight.numel() for part in net.modules() if isinstance(part, nn.BatchNorm2d))
    assert folded and total(tmp_path / "net.onnx", "params") == pytest.approx((sum(map(params, keys)) - folded) / 1e6)


def test_a_small_network_by_hand(tmp_path: Path) -> None:
    """A grouped convolution with stride, and a linear layer: 8 * 2 * 9 * 8 * 8 + 8 * 5; 8 * 2 * 9 + 8 + 8 * 5 + 5."""
    net = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1, groups=2), nn.Conv2d(8, 3, 1, bias=False), nn.AdaptiveAvgPool2d(1),
                        nn.Flatten(), nn.Linear(3, 5)).eval()
    export(net, tmp_path / "net.onnx", in_ch=4, size=16, metadata={})
    assert total(tmp_path / "net.onnx", "macs") == pytest.approx((8 * 2 * 9 * 64 + 8 * 3 * 64 + 3 * 5) / 1e6)
    assert total(tmp_path / "net.onnx", "params") == pytest.approx((8 * 2 * 9 + 8 + 24 + 15 + 5) / 1e6)


def graph_of(path: Path, kind: str, domain: str = "", **how: str) -> Path:
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    node = helper.make_node(kind, ["input", "w"], ["output"], name="odd", domain=domain, **how)
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 3, 4, 4])], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_what_multiplies_by_no_rule_is_an_error_and_never_zero(tmp_path: Path) -> None:
    path = graph_of(tmp_path / "odd.onnx", "Einsum", equation="nchw,wv->nchv")
    with pytest.raises(UserError, match=r"how much Einsum \(odd\) multiplies is not known; allow_unknown"):
        total(path, "macs")
    found = predict(path, load("macs"), allow_unknown=True)
    assert found.ms == 0 and [operator.op for operator in found.unknown] == ["Einsum"]
    assert total(graph_of(tmp_path / "known.onnx", "MatMul"), "macs") == pytest.approx(3 * 4 * 4 * 4 / 1e6)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1"])
def test_a_known_network_has_the_parameters_that_torch_counts(tmp_path: Path, name: str) -> None:
    """But for batch norm, whose scale and shift are folded into weights and one bias a channel."""
    from torchvision import models

    with torch.random.fork_rng():
        net = models.get_model(name, weights=None, num_classes=7).eval()
    export(net, tmp_path / "net.onnx", in_ch=3, size=64, metadata={})
    folded = sum(m.weight.numel() for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    assert total(tmp_path / "net.onnx", "params") == pytest.approx(
        (sum(p.numel() for p in net.parameters()) - folded) / 1e6)
