"""The int8 ONNX file runs in integers, and computes, to 8 bits, what the module computes."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from batch_norms import scrambled
from onnx import numpy_helper
from optimised import node_kinds
from registry_cases import CASES, SHAPES, built
from torch import Tensor, nn

from nas import sampling
from nas.arch import Op
from nas.errors import UserError
from nas.lower.onnx import lower, through_torch
from nas.lower.qdq import quantise
from nas.ops import build, deployed
from nas.plan import Layout
from nas.subnet import build as build_network

FLOAT = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "Add", "Mul", "Concat", "GlobalAveragePool", "ReduceMean",
         "Relu", "HardSigmoid", "HardSwish"}


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def run(model: onnx.ModelProto | Path, x: Tensor) -> np.ndarray:
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x.numpy()})[0]


def sqnr_db(got: np.ndarray, expected: np.ndarray) -> float:
    return 10 * float(np.log10(np.square(expected).sum() / np.square(got - expected).sum()))


def of_module(module: nn.Module, x: Tensor) -> np.ndarray:
    with torch.no_grad():
        return module.eval()(x).numpy()


def kernels(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """Kinds of what ONNX Runtime runs; what only changes the layout is left out."""
    kinds = node_kinds(model, folder)
    return Counter({kind: n for kind, n in kinds.items() if kind not in ("Transpose", "Flatten", "Slice")})


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("name", "switch"), CASES, ids=str)
def test_every_operator_runs_in_integers_within_8_bits_of_torch(name: str, switch: dict, shape: tuple[int, int, int],
                                                                tmp_path: Path) -> None:
    module, x = built(name, switch, shape), images(8, 8, 12, 12)
    model = quantise(lower(module, in_ch=8, size=12), [x[:4], x[4:]])
    onnx.checker.check_model(model)
    assert sqnr_db(run(model, x), of_module(module, x)) > 30
    kinds = kernels(model, tmp_path)
    layers = [type(part) for part in deployed(module).modules()]
    in_float = layers.count(nn.Hardswish)  # it has no int8 kernel
    assert not FLOAT & set(kinds) - ({"HardSigmoid", "Mul"} if in_float else set()), kinds
    assert kinds["QuantizeLinear"] <= 1 + max(1, in_float), kinds
    assert kinds["QLinearConv"] + kinds["QGemm"] == sum(issubclass(kind, nn.Conv2d | nn.Linear) for kind in layers)


def test_the_kernels_of_a_squeeze_excite(tmp_path: Path) -> None:
    """Activations cost nothing: relu and hard sigmoid are the saturation of the convolution before them."""
    module = scrambled(build(Op.parse("mbconv(hidden=16, se=1)"), 8, 8, 1))
    model = quantise(lower(module, in_ch=8, size=8), [images(2, 8, 8, 8)])
    assert kernels(model, tmp_path) == {"QuantizeLinear": 1, "QLinearConv": 5, "QLinearGlobalAveragePool": 1,
                                        "QLinearMul": 1, "QLinearAdd": 1, "DequantizeLinear": 1}


def test_scales_worked_out_by_hand() -> None:
    """x in [-1, 1.55]: scale 0.01, zero 100. y = 2x + 0.1 in [-1.9, 3.2]: scale 0.02, zero 95. Weight: 127."""
    conv = nn.Conv2d(1, 1, 1)
    nn.init.constant_(conv.weight, 2.0)
    nn.init.constant_(conv.bias, 0.1)
    x = torch.tensor([-1.0, 0.0, 0.5, 1.55]).reshape(1, 1, 2, 2)
    model = quantise(lower(conv, in_ch=1, size=2), [x])
    constants = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    read = {node.output[0]: [constants.get(name) for name in node.input] for node in model.graph.node
            if node.op_type == "DequantizeLinear"}
    assert read["input/narrow"][1:] == [pytest.approx(0.01), 100] and read["output"][1:] == [pytest.approx(0.02), 95]
    assert read["output/weight"] == [127, pytest.approx(2 / 127), 0]
    assert read["output/bias"] == [round(0.1 / (0.02 / 127)), pytest.approx(0.02 / 127), 0]
    np.testing.assert_allclose(run(model, x).ravel(), [-1.9, 0.1, 1.1, 3.2], atol=0.011)
    narrow = quantise(lower(conv, in_ch=1, size=2), [x], weight_bits=7)
    assert [63] in [numpy_helper.to_array(w).ravel().tolist() for w in narrow.graph.initializer]


def test_relu6_is_cut_at_6_and_what_never_gets_there_at_its_largest() -> None:
    module = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU6())
    nn.init.constant_(module[0].weight, 1.0)
    graph = lower(module, in_ch=1, size=1)
    x = torch.tensor([-3.0, 1.0, 9.0]).reshape(3, 1, 1, 1)
    np.testing.assert_allclose(run(quantise(graph, [x]), x).ravel(), [0, 1, 6], atol=0.05)
    np.testing.assert_allclose(run(quantise(graph, [x / 3]), x / 3).ravel(), [0, 1 / 3, 3], atol=0.02)


def test_a_whole_network_is_as_near_as_onnx_runtimes_own_tool_gets(tiny: Layout, tmp_path: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Batches(CalibrationDataReader):
        def __init__(self, batches: list[Tensor]) -> None:
            self.left = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.left, None)
            return None if batch is None else {"input": batch.numpy()}

    torch.manual_seed(0)
    network, x = scrambled(build_network(tiny, sampling.sample(tiny, random.Random(3)))), images(8, 3, 16, 16)
    graph = lower(network, in_ch=3, size=16)
    onnx.save(graph, tmp_path / "float.onnx")
    quantize_static(tmp_path / "float.onnx", tmp_path / "theirs.onnx", Batches([x]), quant_format=QuantFormat.QDQ,
                    per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
    expected = of_module(network, x)
    ours, theirs = (sqnr_db(run(model, x), expected) for model in (quantise(graph, [x]), tmp_path / "theirs.onnx"))
    assert ours > theirs - 1 > 30
    assert ours - 9 < sqnr_db(run(quantise(graph, [x], weight_bits=7), x), expected) < ours  # a bit is 6 dB


class Mixed(nn.Module):
    """What no shipped operator has: a constant, a padded pool, a tanh, two readers, a relu that ends the network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(3, 2, 1)
        self.last, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(self.conv(x * 0.5))
        y = torch.cat((torch.tanh(y)[:, :4], self.last(y)[:, 4:]), 1) + 0.25
        y = y.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)
        y = torch.relu((y * torch.sigmoid(y) + nn.functional.avg_pool2d(y, 3, 1, 1)) + 1)
        return torch.relu(self.head(y.mean((2, 3))))


@pytest.mark.parametrize("road", [lower, through_torch])
def test_what_has_no_int8_kernel_stays_in_float(road: object, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Mixed().eval(), images(4, 3, 8, 8)
    model = quantise(road(module, in_ch=3, size=8), [x])
    assert sqnr_db(run(model, x), of_module(module, x)) > 25
    kinds = kernels(model, tmp_path)
    assert kinds["QLinearConv"] == 2 and kinds["Tanh"] == 1


def test_maps_and_channels_that_are_zero_have_a_scale() -> None:
    first, second = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
    nn.init.constant_(first.bias, -100.0)
    nn.init.zeros_(second.weight)
    nn.init.constant_(second.bias, 3.0)
    x = images(2, 2, 4, 4)
    model = quantise(lower(nn.Sequential(first, nn.ReLU(), second), in_ch=2, size=4), [x])
    np.testing.assert_allclose(run(model, x), 3.0, atol=0.02)


def test_bad_calibration_is_refused() -> None:
    graph = lower(nn.Conv2d(3, 4, 1), in_ch=3, size=4)
    with pytest.raises(UserError, match="int8: there are no calibration images"):
        quantise(graph, [])
    with pytest.raises(UserError, match=r"int8: .* not finite"):
        quantise(graph, [torch.full((1, 3, 4, 4), float("nan"))])
