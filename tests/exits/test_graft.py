"""Exits on a graph: where it may be cut, that the pieces are the whole, and that its exported exits agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import Tensor, nn

from nas.errors import UserError
from nas.exits import Runtime
from nas.exits.export import export
from nas.exits.graft import Grafted, cuts, graft
from nas.exits.methods import method, methods
from nas.exits.net import Kept, MultiExit
from nas.exits.policy import between, calibrate, leaving
from nas.exits.runtime import confidences
from nas.latency.onnx_graph import read
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
    graph = read(path)
    return graft(graph.model, graph.entry, graph.shapes, hidden=8)


def test_cuts_are_where_one_map_goes_on_before_it_was_widened_for_a_smaller_one(tmp_path: Path) -> None:
    save(lower(foreign(), in_ch=3, size=16), tmp_path / "m.onnx", {})
    read_graph = read(tmp_path / "m.onnx")
    graph = read_graph.model.graph
    found = cuts(graph, read_graph.entry, read_graph.shapes)
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
