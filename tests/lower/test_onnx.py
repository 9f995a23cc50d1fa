"""The written file computes what the module computes, for every registered operator and on both roads."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from batch_norms import scrambled
from optimised import node_kinds
from torch import nn

from nas import sampling
from nas.arch import Op
from nas.errors import UserError
from nas.lower.emit import NoRule, emit
from nas.lower.onnx import export, lower, plain, through_torch
from nas.ops import build, families
from nas.ops.registry import knobs_of
from nas.plan import Layout
from nas.subnet import build as build_network

SHAPES = [(8, 8, 1), (8, 16, 2)]
KNOBS = {"hidden": 16, "depth": 4}
SWITCHES = [{}, {"se": 1}, {"act": "hswish"}, {"act": "silu"}, {"act": "relu6"}, {"cheap": 5}, {"kernel": 5},
            {"groups": 2}, {"group_width": 4}, {"ratio": 4}, {"mix": 0}]


def run(model: onnx.ModelProto, x: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x.numpy()})[0]


def assert_same(model: onnx.ModelProto, module: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        expected = module(x).numpy()
    np.testing.assert_allclose(run(model, x), expected, rtol=0, atol=1e-5 * max(1.0, float(np.abs(expected).max())))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("switch", SWITCHES, ids=str)
@pytest.mark.parametrize("name", families())
def test_every_operator_equals_torch(name: str, switch: dict, shape: tuple[int, int, int]) -> None:
    knobs = knobs_of(name)
    if not set(switch) <= set(knobs):
        pytest.skip(f"{name} has no {switch}")
    needed = {knob: KNOBS.get(knob, 1) for knob, must in knobs.items() if must}
    try:
        module = build(Op.of(name, **needed, **switch), *shape)
    except UserError as error:
        pytest.skip(str(error))
    generator = torch.Generator().manual_seed(1)
    for batch in (1, 3):
        x = torch.randn(batch, 8, 12, 12, generator=generator)
        assert_same(lower(scrambled(module), in_ch=8, size=12), module, x)


class Pieces(nn.Module):
    """Calls of torchvision's networks: parts of channels, joined anew, GELU, a norm of channels last, coarse pooling.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side, self.norm, self.conv = side, nn.LayerNorm(5), nn.Conv2d(5, 5, 1)
        self.linear = nn.Linear(5, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second, third = x.chunk(3, dim=1)
        y = torch.cat([third, first[:, 0].unsqueeze(1) * 2 + 1, second[:, 0:1], first[:, 1:]], 1)
        y = y + self.conv(self.linear(self.norm(y.permute(0, 2, 3, 1))).permute(0, 3, 1, 2))
        y = nn.functional.gelu(y) + nn.functional.gelu(y, approximate="tanh")
        return nn.functional.adaptive_avg_pool2d(nn.functional.adaptive_avg_pool2d(y, self.side), 1).flatten(1)


@pytest.mark.parametrize("side", [12, 6, 3])
def test_pieces_of_channels_and_pooling_in_steps(side: int) -> None:
    torch.manual_seed(0)
    module = Pieces(side).eval()
    assert_same(emit(module, in_ch=6, size=12), module, torch.randn(3, 6, 12, 12))


@pytest.mark.parametrize("call", [lambda x: x[0:1] + x.chunk(1, 0)[0], lambda x: x.select(0, 0), lambda x: x[None],
                                  lambda x: nn.functional.adaptive_avg_pool2d(x, 5)])
def test_calls_that_mix_images_or_pool_unevenly_have_no_rule(call: Callable[[torch.Tensor], torch.Tensor]) -> None:
    class Called(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return call(x)

    with pytest.raises(NoRule):
        emit(Called(), in_ch=3, size=12)


def test_head_with_every_part() -> None:
    head = build(Op.parse("head(hidden=16, features=24, act=hswish, dropout_percent=20)"), 8, 5, 1)
    assert_same(emit(scrambled(head), in_ch=8, size=4), head, torch.randn(2, 8, 4, 4))


class Odd(nn.Module):
    """Calls that no shipped operator makes: a shuffle by views, scalars, a batch norm without a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv(self.bn(x)))
        shuffled = y.view(len(y), 2, 4, 6, 6).transpose(1, 2).reshape(len(y), 8, 6, 6)
        pooled = nn.functional.max_pool2d(shuffled, 2) + nn.functional.avg_pool2d(y, 2)
        return torch.sigmoid(nn.functional.relu6(pooled[:, 2:6] * 2.0)).flatten(1)


def test_shuffle_scalars_pools_and_a_lone_batch_norm() -> None:
    module = scrambled(Odd())
    model = emit(module, in_ch=8, size=6)
    for batch in (1, 4):
        assert_same(model, module, torch.randn(batch, 8, 6, 6))


class TwoReaders(nn.Module):
    """A convolution whose output is read before and after its batch norm must not be folded."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.bn(y) + torch.relu(y) if self.norm_first else torch.relu(y) + self.bn(y)


def test_a_convolution_that_is_read_after_its_batch_norm_is_left_to_pytorch() -> None:
    module = scrambled(TwoReaders(norm_first=True))
    with pytest.raises(NoRule, match="before and after"):
        emit(module, in_ch=4, size=4)


def test_a_convolution_with_another_reader_keeps_its_batch_norm() -> None:
    module = scrambled(TwoReaders(norm_first=False))
    model = emit(module, in_ch=4, size=4)
    assert "BatchNormalization" in {node.op_type for node in model.graph.node}
    assert_same(model, module, torch.randn(2, 4, 4, 4))


class Unknown(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cumsum(x, 1)


def test_a_call_without_a_rule_goes_through_torch_onnx(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NoRule):
        emit(Unknown(), in_ch=3, size=4)
    assert_same(lower(Unknown(), in_ch=3, size=4), Unknown(), torch.randn(3, 3, 4, 4))
    assert capfd.readouterr().out == ""


def optimised(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """Node kinds after ONNX Runtime's optimisation; layout changes and the two spellings of a mean are left out."""
    kinds = node_kinds(model, folder)
    kinds["mean"] = kinds.pop("ReduceMean", 0) + kinds.pop("GlobalAveragePool", 0)
    return Counter({k: n for k, n in kinds.items() if n and k not in ("ReorderInput", "ReorderOutput", "Flatten")})


@pytest.mark.parametrize("op", ["ghost(hidden=16, se=1)", "mbconv(hidden=16, se=1)"])
def test_same_nodes_as_pytorchs_exporter(op: str, tmp_path: Path) -> None:
    module = scrambled(build(Op.parse(op), 8, 8, 1))
    ours, theirs = emit(module, in_ch=8, size=8), through_torch(module, in_ch=8, size=8)
    x = torch.randn(2, 8, 8, 8)
    np.testing.assert_allclose(run(ours, x), run(theirs, x), atol=1e-5)
    assert optimised(ours, tmp_path) == optimised(theirs, tmp_path)


def test_export_is_one_file_with_metadata_and_open_batch(tiny: Layout, tmp_path: Path) -> None:
    network = scrambled(build_network(tiny, sampling.smallest(tiny)))
    network.train()
    export(network, tmp_path / "net.onnx", in_ch=3, size=16, metadata={"classes": "cat,dog", "mean": "0.5"})
    assert network.training and [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    model = onnx.load(tmp_path / "net.onnx", load_external_data=False)
    assert {p.key: p.value for p in model.metadata_props} == {"classes": "cat,dog", "mean": "0.5"}
    assert [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == ["N", 3, 16, 16]
    assert not any(w.HasField("data_location") and w.data_location for w in model.graph.initializer)
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert_same(model, network.eval(), torch.randn(5, 3, 16, 16))


def test_weights_beyond_what_one_file_holds_are_one_line_before_anything_is_converted(tmp_path: Path) -> None:
    giant = nn.Sequential(nn.Linear(2**15, 2**14, bias=False, device="meta"))  # 2^31 bytes, of which none is there
    with pytest.raises(UserError, match=r"m\.onnx: 2\.0 GiB of weights"):
        export(giant, tmp_path / "m.onnx", in_ch=3, size=8, metadata={})
    assert not list(tmp_path.iterdir())


def test_a_plain_graph_runs_whatever_its_input_was_called() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).eval()
    model = lower(module, in_ch=3, size=8)
    model.graph.input[0].name = "x.1"
    for node in model.graph.node:
        node.input[:] = ["x.1" if name == "input" else name for name in node.input]
    image = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(plain(model, "x.1", (1, 3, 8, 8)).SerializeToString())
    np.testing.assert_allclose(session.run(None, {"input": image.numpy()})[0], module(image).detach(), atol=1e-6)
