"""The int8 file computes, to 8 bits, what the module computes: every registered operator, run by LiteRT."""

import random

import numpy as np
import pytest
import torch
from batch_norms import scrambled
from registry_cases import CASES, SHAPES, built
from torch import nn

from nas import sampling
from nas.arch import Op
from nas.errors import UserError
from nas.ops import build
from nas.plan import Layout
from nas.subnet import build as build_network

tflite = pytest.importorskip("tflite", reason="needs the extra: pip install '.[npu]'")
pytest.importorskip("ai_edge_litert", reason="needs the extra: pip install '.[npu]'")

from nas.lower.flatbuffer import operators_of  # noqa: E402
from nas.lower.onnx import plain, through_torch  # noqa: E402
from nas.lower.tflite import convert, lower  # noqa: E402
from nas.lower.verify import Disagreement, check_tflite, run_tflite  # noqa: E402


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def operators(model: bytes) -> list[str]:
    return [kind for _, kind in operators_of(model)]


@pytest.mark.parametrize("size", [11, 12])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("name", "switch"), CASES, ids=str)
def test_every_operator_is_within_8_bits_of_torch(name: str, switch: dict, shape: tuple[int, int, int],
                                                  size: int) -> None:
    module = built(name, switch, shape)
    x = images(8, 8, size, size)
    model = lower(module, in_ch=8, size=size, calibration=[x[:4], x[4:]])
    assert check_tflite(model, module, x).sqnr_db > 30  # 8 bits over 4 sigma leave 40 dB, and every operator costs some


def test_a_sigmoid_that_rounds_to_a_hair_above_one_is_one() -> None:
    x = torch.linspace(17, 19, 90_000).reshape(1, 1, 300, 300)  # 1.0000001 here and there in ONNX Runtime

    class Gate(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sigmoid()

    model = lower(Gate(), in_ch=1, size=300, calibration=[x])
    np.testing.assert_allclose(run_tflite(model, x), 255 / 256)


def test_scales_worked_out_by_hand() -> None:
    """x in [-1, 1.55]: scale 0.01, zero -28. y = 2x + 0.1 in [-1.9, 3.2]: scale 0.02, zero -33. Weight: 127."""
    conv = nn.Conv2d(1, 1, 1)
    nn.init.constant_(conv.weight, 2.0)
    nn.init.constant_(conv.bias, 0.1)
    x = torch.tensor([-1.0, 0.0, 0.5, 1.55]).reshape(1, 1, 2, 2)
    model = lower(conv, in_ch=1, size=2, calibration=[x])
    graph = tflite.Model.GetRootAs(model).Subgraphs(0)
    quantizations = {graph.Tensors(i).Name(): graph.Tensors(i).Quantization() for i in range(graph.TensorsLength())}
    scales = {name.split(b"/")[-1]: (q.Scale(0), q.ZeroPoint(0)) for name, q in quantizations.items()}
    assert scales[b"input"] == (pytest.approx(0.01), -28) and scales[b"output"] == (pytest.approx(0.02), -33)
    assert scales[b"weight"] == (pytest.approx(2 / 127), 0)
    assert scales[b"bias"] == (pytest.approx(0.02 / 127), 0)
    np.testing.assert_allclose(run_tflite(model, x).ravel(), [-1.9, 0.1, 1.1, 3.2], atol=0.011)


@pytest.mark.parametrize(("size", "stride", "kinds"), [
    (8, 1, ["CONV_2D"]),  # SAME
    (9, 2, ["CONV_2D"]),  # odd: TFLite's SAME pads both sides, as PyTorch does
    (8, 2, ["PAD", "CONV_2D"]),  # even: SAME would pad behind only
])
@pytest.mark.parametrize("groups", [1, 2])
def test_padding_is_pytorchs(size: int, stride: int, kinds: list[str], groups: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, 3, stride, 1, groups=groups)
    x = images(4, 4, size, size)
    model = lower(conv, in_ch=4, size=size, calibration=[x])
    assert operators(model) == kinds
    assert check_tflite(model, conv, x).sqnr_db > 30


def test_a_squeeze_excite_costs_no_operator_for_its_activations() -> None:
    model = lower(build(Op.parse("mbconv(hidden=16, se=1)"), 8, 8, 1), in_ch=8, size=8)
    assert operators(model) == ["CONV_2D", "DEPTHWISE_CONV_2D", "AVERAGE_POOL_2D", "CONV_2D", "CONV_2D", "MUL",
                                "CONV_2D", "ADD"]


def test_channels_that_died_stay_dead() -> None:
    conv = nn.Conv2d(2, 2, 1)
    nn.init.zeros_(conv.weight)
    nn.init.constant_(conv.bias, 3.0)
    x = images(2, 2, 4, 4)
    np.testing.assert_allclose(run_tflite(lower(conv, in_ch=2, size=4, calibration=[x]), x), 3.0, atol=0.02)


def test_a_map_that_is_always_zero_has_a_scale() -> None:
    first, second = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
    nn.init.constant_(first.bias, -100.0)
    module, x = nn.Sequential(first, nn.ReLU(), second), images(2, 2, 4, 4)
    assert check_tflite(lower(module, in_ch=2, size=4, calibration=[x]), module, x).sqnr_db > 30


def test_a_whole_network(tiny: Layout) -> None:
    torch.manual_seed(0)
    network = scrambled(build_network(tiny, sampling.sample(tiny, random.Random(3))))
    network.train()
    x = images(8, 3, 16, 16)
    model = lower(network, in_ch=3, size=16, calibration=[x])
    assert network.training and check_tflite(model, network, x).sqnr_db > 25
    assert model == lower(network, in_ch=3, size=16, calibration=[x])
    with pytest.raises(Disagreement, match="does not survive"):
        check_tflite(model, scrambled(build_network(tiny, sampling.sample(tiny, random.Random(3)))), -x)


class Odd(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 4, 1), function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.conv(x))


@pytest.mark.parametrize(("function", "named"), [
    (lambda x: torch.cumsum(x, 1), "aten.cumsum"), (torch.tanh, "Tanh"), (lambda x: x.clamp(0, 1), "aten.clamp"),
    (lambda x: nn.functional.hardtanh(x, 0, 5), "Clip"), (lambda x: x * 2, "constant"),
    (lambda x: x.flatten(1), "larger than 1x1"), (lambda x: x.sum(1), "aten.sum"),
    (lambda x: torch.cat((x, x.sigmoid()), 1), "between 0 and 1"),
])
def test_what_has_no_rule_is_named(function: object, named: str) -> None:
    with pytest.raises(UserError, match=f"no rule for the operator .*{named}"):
        lower(Odd(function), in_ch=3, size=4)


class Foreign(nn.Module):
    """What other people's networks have: a padded max pool, hard swish in pieces, groups, a mean, a linear layer."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), pool)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=2), nn.Hardswish(), nn.Conv2d(8, 8, 1), nn.SiLU())
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Hardsigmoid())
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.body(x)
        return self.head((x * self.gate(x)).mean((2, 3)))


def from_onnx(module: nn.Module, x: torch.Tensor) -> bytes:
    exported = through_torch(module, in_ch=x.shape[1], size=x.shape[2])
    return convert(plain(exported, "input", (1, *x.shape[1:])), [x[:1], x[1:2]])


@pytest.mark.parametrize("pool", [nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2)], ids=str)
def test_a_foreign_onnx_file_is_within_8_bits_of_torch(pool: nn.Module) -> None:
    torch.manual_seed(0)
    module, x = scrambled(Foreign(pool)), images(2, 3, 24, 24)
    model = from_onnx(module, x)
    assert check_tflite(model, module, x).sqnr_db > 25
    assert {"MAX_POOL_2D", "HARD_SWISH", "LOGISTIC", "FULLY_CONNECTED"} <= set(operators(model))


@pytest.mark.parametrize(("module", "named"), [
    (nn.MaxPool2d(3, 2, 1), "below zero"), (nn.MaxPool2d(3, 2, ceil_mode=True), "MaxPool"),
    (nn.AvgPool2d(2), "AveragePool"), (nn.Hardtanh(0, 5), "Clip")], ids=str)
def test_a_foreign_operator_without_a_rule_is_named(module: nn.Module, named: str) -> None:
    with pytest.raises(UserError, match=f"no rule for the operator .*{named}"):
        from_onnx(nn.Sequential(nn.Conv2d(3, 4, 1), module), images(2, 3, 8, 8))


def test_bad_calibration_is_refused() -> None:
    with pytest.raises(UserError, match="no calibration images"):
        lower(nn.Conv2d(3, 4, 1), in_ch=3, size=4, calibration=[])
    with pytest.raises(UserError, match="not finite"):
        lower(nn.Conv2d(3, 4, 1), in_ch=3, size=4, calibration=[torch.full((1, 3, 4, 4), float("nan"))])
