"""Exits on a graph: where it may be cut, that the pieces are the whole, and that its exported exits agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from nas.errors import UserError
from nas.exits import Runtime
from nas.exits.export import export
from nas.exits.graft import Grafted, cuts, graft
from nas.exits.methods import method, methods
from nas.exits.net import Combine, Kept, MultiExit
from nas.exits.policy import between, calibrate, leaving
from nas.exits.runtime import confidences
from nas.latency.onnx_graph import read_graph
from nas.lower.onnx import lower, save


class Residual(nn.Module):
    """x + conv(widened x): inside, two maps go on, or a wide one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide, self.back = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(3 * channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(torch.relu(self.wide(x)))


def foreign(kind: type[nn.Module] = Residual) -> nn.Module:
    """Two residual blocks at 16, an inverted step to 8 and one to 4; 5 classes."""
    torch.manual_seed(0)
    step = nn.Sequential(nn.Conv2d(8, 24, 1), nn.ReLU(), nn.Conv2d(24, 12, 3, 2, 1))
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), kind(8), kind(8), step, kind(12), nn.Conv2d(12, 16, 3, 2, 1),
                         nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)).eval()


def grafted(folder: Path, net: nn.Module) -> Grafted:
    save(lower(net, in_ch=3, size=16), folder / "m.onnx", {})
    return grafted_file(folder / "m.onnx")


def grafted_file(path: Path) -> Grafted:
    graph = read_graph(path)
    return graft(graph.model, graph.entry, graph.shapes, hidden=8)


def test_cuts_are_where_one_map_goes_on_before_it_was_widened_for_a_smaller_one(tmp_path: Path) -> None:
    save(lower(foreign(), in_ch=3, size=16), tmp_path / "m.onnx", {})
    network = read_graph(tmp_path / "m.onnx")
    graph = network.model.graph
    found = cuts(graph, network.entry, network.shapes)
    assert [(cut.channels, cut.side) for cut in found] == [(8, 16), (12, 8)]
    makers = [graph.node[cut.node].op_type for cut in found]
    assert makers == ["Add", "Add"]  # the ends of the second and the third block
    adds = [i for i, node in enumerate(graph.node) if node.op_type == "Add"]
    assert [cut.node for cut in found] == adds[1:]


def test_the_pieces_are_the_network(tmp_path: Path) -> None:
    net, x = foreign(), torch.randn(3, 3, 16, 16)
    own = grafted(tmp_path, net)
    with torch.no_grad():
        assert torch.allclose(own(x), net(x), atol=1e-5)
        assert torch.allclose(own.logits(x)[-1], net(x), atol=1e-5)
    assert [len(own.exits), own.classes, sum(p.numel() for p in own.parts.parameters())] == [2, 5, 0]


@pytest.mark.parametrize("name", methods(frozen=True))
@pytest.mark.parametrize("kept", [(0, 1), (0,)])
def test_exported_exits_of_a_graph_agree(tmp_path: Path, name: str, kept: tuple[int, ...]) -> None:
    own = method(name, grafted(tmp_path, foreign())).eval()
    combine = own.net.combine.kept(kept)
    assert combine is not None
    model, x = MultiExit(Kept(own.net.net, kept), combine).eval(), torch.randn(40, 3, 16, 16)
    with torch.no_grad():
        for head in own.net.net.exits:
            head.classifier.weight.mul_(30)  # answers apart, as those of a trained network
        expected = torch.stack(model(x)).numpy()
    policy = calibrate(expected, np.arange(40) % 5, np.arange(len(kept) + 1) + 1.0, 1.5, points=3)
    export(model, tmp_path / "out", in_ch=3, size=16, policy=policy, metadata={"classes": "a"})
    sure = confidences("max-softmax", expected, np.array(policy.temperatures))
    medians = [*between(sure, np.median(sure, axis=1))[:-1], -np.inf]
    at = leaving(sure, medians)
    assert len(set(at.tolist())) == len(kept) + 1
    for path in (tmp_path / "out" / "model.onnx", tmp_path / "out"):
        run = Runtime(path)
        run.thresholds = list(map(float, medians))
        answer = run(x.numpy())
        assert answer.exits.tolist() == at.tolist()
        np.testing.assert_allclose(answer.logits, expected[at, np.arange(40)], atol=1e-4)


def test_what_has_no_place_for_an_exit(tmp_path: Path) -> None:
    flat = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    with pytest.raises(UserError, match="no place for an exit"):
        grafted(tmp_path, flat)
    with pytest.raises(UserError, match=r"not one output \[N, classes\]"):
        grafted(tmp_path, nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)))
    fixed = lower(foreign(), in_ch=3, size=16, batch=1)
    reshape = next(node for node in fixed.graph.node if node.op_type in ("Flatten", "Reshape"))
    fixed.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 16]), "shape"))
    reshape.op_type, reshape.input[1:] = "Reshape", ["shape"]
    del reshape.attribute[:]
    save(fixed, tmp_path / "m.onnx", {})
    with pytest.raises(UserError, match="does not run in batches"):
        grafted_file(tmp_path / "m.onnx")


def test_a_graph_with_branches_is_refused() -> None:
    inner = helper.make_graph([], "inner", [], [])
    node = helper.make_node("If", ["c"], ["y"], name="if_0", then_branch=inner, else_branch=inner)
    graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("y", 1, [1, 2])])
    with pytest.raises(UserError, match=r"If \(if_0\): exits cannot be added"):
        graft(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), "x", {})


class ByBatch(nn.Module):
    """As exporters write it: sides and the batch, read once from the input, shape every map behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.linear = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        n, _, side, _ = x.shape
        y = torch.relu(self.first(x)).reshape(n, 8, side // 2 * side // 2).reshape(n, 8, side // 2, side // 2)
        y = self.second(y + torch.ones(n, 8, 1, 1)).reshape(n, 8, -1).mean(2)
        return self.linear(y).reshape(n, 5)


def by_batch(kind: str) -> onnx.ModelProto:
    """The network above with a node for each shape: the batch alone, or all of the input's sides."""
    net = ByBatch().eval()
    weight = {key: onnx.numpy_helper.from_array(value.detach().numpy(), key) for key, value in net.named_parameters()}
    const = {name: onnx.numpy_helper.from_array(np.array(value, np.int64), name) for name, value in {
        "rest": [8, 64], "map": [8, 8, 8], "flat": [8, -1], "five": [5], "zero": 0, "row": [0], "axis": [2],
        "one": [1, 1], "eight": [8]}.items()}
    node = helper.make_node
    batch = [node("Shape", ["x"], ["n"], start=0, end=1)] if kind == "batch" else [
        node("Shape", ["x"], ["sides"]), node("Gather", ["sides", "zero"], ["n0"]),
        node("Unsqueeze", ["n0", "row"], ["n"])]
    shapes = [node("Concat", ["n", name], [f"to_{name}"], axis=0) for name in ("rest", "map", "flat", "five")]
    nodes = [*batch, *shapes, node("Concat", ["n", "eight", "one"], ["to_ones"], axis=0),
             node("Conv", ["x", "first.weight", "first.bias"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1]),
             node("Relu", ["a"], ["b"]), node("Reshape", ["b", "to_rest"], ["c"]),
             node("Reshape", ["c", "to_map"], ["d"]),
             node("ConstantOfShape", ["to_ones"], ["e"], value=helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])),
             node("Add", ["d", "e"], ["f"]),
             node("Conv", ["f", "second.weight", "second.bias"], ["g"], strides=[2, 2], pads=[1, 1, 1, 1]),
             node("Reshape", ["g", "to_flat"], ["h"]), node("ReduceMean", ["h", "axis"], ["i"], keepdims=0),
             node("Gemm", ["i", "linear.weight", "linear.bias"], ["j"], transB=1),
             node("Reshape", ["j", "to_five"], ["y"])]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 16, 16])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])],
                              [*weight.values(), *const.values()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize("kind", ["batch", "all sides"])
def test_pieces_compute_the_batch_by_themselves(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    onnx.save(by_batch(kind), tmp_path / "m.onnx")
    torch.manual_seed(0)
    net, x = ByBatch().eval(), torch.randn(3, 3, 16, 16)
    graph = read_graph(tmp_path / "m.onnx")
    assert not cuts(graph.model.graph, graph.entry, graph.shapes)  # the batch goes on beside every map
    own = graft(graph.model, graph.entry, graph.shapes, hidden=8)
    assert [(cut.channels, cut.side) for cut in own.places] == [(8, 8)]
    model = MultiExit(method("cache", own).net.net, Combine()).eval()
    with torch.no_grad():
        assert torch.allclose(own(x), net(x), atol=1e-5)
        expected = torch.stack(model(x)).numpy()
    policy = calibrate(expected, np.arange(3), np.arange(2) + 1.0, 1.5, points=3)
    export(model, tmp_path / "out", in_ch=3, size=16, policy=policy, metadata={"classes": "a"})
    for path in (tmp_path / "out" / "model.onnx", tmp_path / "out"):
        for threshold, at in ((-np.inf, 0), (np.inf, 1)):
            run = Runtime(path)
            run.thresholds = [threshold]
            np.testing.assert_allclose(run(x.numpy()).logits, expected[at], atol=1e-4)
