"""The file with ``If``, the segments and PyTorch: same exit, same class, same logits; and what ONNX Runtime runs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from every import every
from three_exits import images, network

from nas.errors import UserError
from nas.exits import Runtime
from nas.exits import policy as policies
from nas.exits.export import branched, check, export, segments
from nas.exits.files import Handover
from nas.exits.methods import method, methods
from nas.exits.net import Kept, MultiExit
from nas.exits.policy import calibrate, leaving
from nas.exits.runtime import DriftWarning, confidences
from nas.exits.thresholds import Policy
from nas.lower.verify import Disagreement
from nas.pipeline.exits.serve import check_files
from nas.training.data import load, normalise

MS = np.array([1.0, 2.0, 3.0])
LABELS = torch.arange(64) % 4


def net(name: str = "boost") -> MultiExit:
    """Its answers as far apart as a trained network's: an initial one says nearly the same of all images."""
    subnet, x = network(), images(64, seed=5)
    with torch.no_grad():
        for trunk, head in subnet.stages():
            x = trunk(x)
            head.classifier.weight.mul_(100)
            head.classifier.bias.sub_(head(x).mean(0))
    return method(name, subnet).eval().net


def predictions(model: MultiExit, x: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return torch.stack(model(x)).numpy()


def made(folder: Path, name: str = "boost", kind: str = "max-softmax", budget: float = 2.0) -> tuple[MultiExit, Policy]:
    model = net(name)
    policy = calibrate(predictions(model, images(64, seed=9)), LABELS.numpy(), MS, budget, kind=kind, points=3)
    export(model, folder, in_ch=3, size=16, policy=policy, metadata={"classes": "a\nb\nc\nd"})
    return model, policy


@pytest.mark.parametrize(("name", "kind"), [*((name, "max-softmax") for name in methods()),
                                            ("boost", "entropy"), ("boost", "patience")])
def test_file_segments_and_pytorch_agree(tmp_path: Path, name: str, kind: str) -> None:
    model, policy = made(tmp_path, name, kind)
    x = images(60)
    expected = predictions(model, x)
    single, batches = Runtime(tmp_path / "model.onnx"), Runtime(tmp_path)
    sure, left = confidences(kind, expected, np.array(policy.temperatures)), np.zeros(3, int)
    forced = [(np.inf, np.inf), (-np.inf, 0.0), (np.inf, -np.inf)]
    halves = [policies.between(sure, [*np.quantile(sure[:2], share, axis=1, method="nearest"), -np.inf])
              for share in (0.3, 0.5, 0.8)]
    for thresholds in (policy.point.thresholds, *(p.thresholds for p in policy.points), *forced, *halves):
        at = leaving(sure, [*thresholds[:2], -np.inf])
        for run in (single, batches):
            run.thresholds = list(thresholds)
            answer = run(x.numpy())
            assert answer.exits.tolist() == at.tolist()
            np.testing.assert_allclose(answer.logits, expected[at, np.arange(60)], atol=1e-4)
            assert answer.classes.tolist() == expected[at, np.arange(60)].argmax(1).tolist()
            assert run.counts.tolist() == np.bincount(at, minlength=3).tolist()
        left += np.bincount(at, minlength=3) > 0
    assert left.min() >= 2  # or the comparison says little


class Summed(torch.nn.Module):
    """Something that ``nas.lower.emit`` has no rule for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.cumsum(1)


def test_an_operator_without_a_rule_is_told_before_training_and_in_one_line() -> None:
    subnet = network()
    check(subnet, in_ch=3, size=16)
    head = subnet.stages()[0][1]
    head.classifier = torch.nn.Sequential(head.classifier, Summed())
    subnet.train()
    with pytest.raises(UserError, match=r"exits: no rule for .*cumsum.* in nas/lower/emit.py: files with exits cannot"):
        check(subnet, in_ch=3, size=16)
    assert subnet.training  # as it was


def with_point(policy: Policy, **changed: tuple[float, ...]) -> Policy:
    return policy.model_copy(update={"point": policy.point.model_copy(update=changed)})


def test_within_rounding_of_a_threshold_either_exit_is_right(tmp_path: Path) -> None:
    """The file's threshold is a little below the confidence of an image, PyTorch's a little above."""
    model, policy = made(tmp_path)
    x = images(60)
    sure = float(confidences("max-softmax", predictions(model, x), np.array(policy.temperatures))[0, 7])

    def at(threshold: float) -> Policy:
        return with_point(policy, thresholds=(threshold, 0.9, -np.inf))

    export(model, tmp_path, in_ch=3, size=16, policy=at(sure - 2e-6), metadata={})
    found = check_files(tmp_path, model, at(sure + 2e-6), x)
    assert found.compared == 60 and 1 <= found.at_threshold < 10 and found.relative_diff < 1e-4
    with pytest.raises(Disagreement, match=r"1 of 60 images leave elsewhere .* \(not counting 0 within rounding"):
        check_files(tmp_path, model, at(sure + 2e-5), x)


def test_they_agree_on_digits(tmp_path: Path) -> None:
    model, policy = made(tmp_path)
    data = load("digits", data_dir=None, size=16, seed=0, limit=400)
    x = normalise(data.test.images[:100], data)
    expected = predictions(model, x)
    at = leaving(confidences("max-softmax", expected, np.array(policy.temperatures)), policy.point.thresholds)
    for run in (Runtime(tmp_path / "model.onnx"), Runtime(tmp_path)):
        answer = run(x.numpy())
        assert answer.exits.tolist() == at.tolist()
        np.testing.assert_allclose(answer.logits, expected[at, np.arange(100)], atol=1e-4)


def kinds(graph: onnx.GraphProto) -> Counter[tuple[str, str]]:
    """(domain, kind) of the nodes, by the depth of the graph they are in."""
    return Counter((node.domain, node.op_type) for node in graph.node)


def levels(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """The graph and, from branch to branch, those in which the network goes on."""
    inner = [a.g for node in graph.node if node.op_type == "If" for a in node.attribute if a.name == "else_branch"]
    return [graph, *(level for one in inner for level in levels(one))]


def test_weights_are_in_their_branch_and_convolutions_blocked(tmp_path: Path) -> None:
    _, policy = made(tmp_path)
    model = branched(net(), policy, in_ch=3, size=16)
    within = levels(model.graph)
    assert len(within) == 3
    for index, graph in enumerate(within):
        own = {weight.name for weight in graph.initializer}
        used = {name for node in graph.node for name in node.input if "_w_" in name}
        assert used and used <= own and every(name.startswith(f"s{index}_") for name in used)
        assert sum(node.op_type == "Conv" for node in graph.node) > 2
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimised.onnx"), 3
    onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    ran = [kinds(graph) for graph in levels(onnx.load(tmp_path / "optimised.onnx").graph)]
    plain = tmp_path / "plain.onnx"
    blocked = []
    for part in segments(net(), in_ch=3, size=16, batch=1):
        options.optimized_model_filepath = str(plain)
        onnxruntime.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])
        blocked.append(kinds(onnx.load(plain).graph)["com.microsoft.nchwc", "Conv"])
    assert [graph["com.microsoft.nchwc", "Conv"] for graph in ran] == blocked


def test_what_is_written(tmp_path: Path) -> None:
    model, policy = made(tmp_path / "new")
    written = export(model, tmp_path / "new", in_ch=3, size=16, policy=policy, metadata={"classes": "a\nb"})
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "model.onnx", "runtime.py", "segment-0.onnx", "segment-1.onnx", "segment-2.onnx"]
    # 8 maps of 16x16 behind the first exit, 12 of 8x8 behind the second; with boost the 4 logits go along
    assert written.cuts == [Handover(map=[8, 16, 16], state=[4], bytes=4 * (2048 + 4)),
                            Handover(map=[12, 8, 8], state=[4], bytes=4 * (768 + 4))]
    for name in ("model.onnx", "segment-2.onnx"):
        props = {p.key: p.value for p in onnx.load(tmp_path / "new" / name).metadata_props}
        assert props["classes"] == "a\nb" and json.loads(props["exits"]) == json.loads(json.dumps(policy.to_json()))
    alone = export(net("joint"), tmp_path, in_ch=3, size=16, policy=policy, metadata={}).cuts[0]
    assert alone.to_json() == {"map": [8, 16, 16], "bytes": 4 * 2048}


def test_a_folder_that_had_more_exits_has_no_segment_of_them(tmp_path: Path) -> None:
    model, policy = made(tmp_path)
    fewer = MultiExit(Kept(model.net, (1,)), model.combine.kept((1,)) or model.combine).eval()
    one = with_point(policy, thresholds=(0.5, -math.inf), shares=(0.5, 0.5)).model_copy(update={
        "temperatures": policy.temperatures[1:], "prefix_ms": policy.prefix_ms[1:], "points": ()})
    (tmp_path / "mine.onnx").write_bytes(b"")
    assert export(fewer, tmp_path, in_ch=3, size=16, policy=one, metadata={}).segments == [
        "segment-0.onnx", "segment-1.onnx"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mine.onnx", "model.onnx", "runtime.py", "segment-0.onnx", "segment-1.onnx"]
    assert Runtime(tmp_path).exits == 2


def test_the_runtime_stands_alone(tmp_path: Path) -> None:
    """Run by itself, where neither nas nor torch can be imported."""
    made(tmp_path)
    np.save(tmp_path / "x.npy", images(8).numpy())
    code = ("import sys; sys.modules.update({'nas': None, 'torch': None, 'onnx': None, 'scipy': None})\n"
            "import numpy as np\nfrom runtime import Runtime\nx = np.load('x.npy')\n"
            "print(Runtime('model.onnx')(x).exits.tolist(), Runtime('.')(x).exits.tolist())")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = Runtime(tmp_path)(images(8).numpy()).exits.tolist()
    assert done.stdout.strip() == f"{expected} {expected}"


def test_budgets_deadlines_and_thresholds_at_run_time(tmp_path: Path) -> None:
    _, policy = made(tmp_path)
    run, x = Runtime(tmp_path), images(64, seed=9).numpy()
    assert run.names == ["a", "b", "c", "d"] and run.thresholds == pytest.approx(policy.point.thresholds)
    shares = np.bincount(run(x).exits, minlength=3) / 64
    assert shares == pytest.approx(policy.point.shares)  # these are the images of the calibration
    assert run.budget(3.0) == max(p.mean_ms for p in (policy.point, *policy.points))
    assert run.budget(1.0) == 1.0 and set(run(x).exits) == {0} and run.counts.tolist() == [64, 0, 0]
    assert run.deadline(2.9) == 1 and set(run(x).exits) == {1}
    run.thresholds = [float("inf")] * 2
    assert set(run(x).exits) == {2} and run.drift() is None
    for wrong in (lambda: run.budget(0.9), lambda: run.deadline(0.9), lambda: setattr(run, "thresholds", [0.5])):
        with pytest.raises(ValueError, match=r"0\.9 ms|1 thresholds: the network has 2 exits"):
            wrong()


def test_other_images_are_a_drift_and_the_same_are_none(tmp_path: Path) -> None:
    _, policy = made(tmp_path)
    run, x = Runtime(tmp_path), images(64, seed=9).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(10):
            run(x)
    leaver = x[[int(np.flatnonzero(run(x).exits == run(x).exits.max())[0])]]
    run.reset()
    with pytest.warns(DriftWarning, match=r"100\.0% of the last 512 images left at exit . of|100.0% of the last 512"):
        for _ in range(8):
            run(np.repeat(leaver, 64, 0))
    assert run.counts.sum() == 512 and policy.n == 64


def test_a_file_without_exits_and_a_folder_without_segments(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / "segment-2.onnx").unlink()
    with pytest.raises(FileNotFoundError, match="2 segments of 3"):
        Runtime(tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no segment-0\.onnx"):
        Runtime(tmp_path / "none")
    bare = onnx.load(tmp_path / "segment-0.onnx")
    del bare.metadata_props[:]
    onnx.save(bare, tmp_path / "bare.onnx")
    with pytest.raises(ValueError, match=r"bare\.onnx: no early exits"):
        Runtime(tmp_path / "bare.onnx")


def test_thresholds_between_images_change_nothing() -> None:
    sure: Any = np.array([[0.9, 0.5, 0.7], [0.2, 0.3, 0.4], [1, 1, 1]])
    assert policies.between(sure, [0.7, 0.2, -np.inf]).tolist() == [pytest.approx(0.6), 0.2, -np.inf]
    assert policies.between(sure, [np.inf, 0.4, -np.inf]).tolist() == [np.inf, pytest.approx(0.35), -np.inf]
