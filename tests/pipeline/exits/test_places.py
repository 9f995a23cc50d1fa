"""Where exits could stand: by hand, as torchvision counts, without images or weights, from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from onnx import helper
from torch import nn
from torchvision import models

from nas import cli
from nas.errors import UserError
from nas.latency.onnx_counts import multiply_adds
from nas.lower.onnx import lower, save
from nas.pipeline.exits.places import places_of_file

FAST = ("mobilenet_v3_small", "regnet_x_400mf", "squeezenet1_1")


def call(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        cli.main(["exits", *words, "--list"])
    return int(end.value.code or 0), *capfd.readouterr()


def small(path: Path) -> Path:
    """At 16 pixels: convolutions to 8 x 8^2 and 4 x 4^2, then 5 classes."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 3, 2, 1, groups=2), nn.ReLU(),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).eval()
    save(lower(net, in_ch=3, size=16), path, {})
    return path


def test_by_hand(tmp_path: Path) -> None:
    found = places_of_file(str(small(tmp_path / "net.onnx")), None, None, None)
    first, second, last = 8 * 64 * 3 * 9, 4 * 16 * 4 * 9, 4 * 5
    (place,) = found.places
    assert found.macs == first + second + last and found.classes == 5 and found.size == 16
    assert place.shape == (8, 8, 8) and place.macs == first and place.behind.startswith("Relu")
    assert place.macs_share == pytest.approx(first / found.macs)
    assert place.head_macs == 8 * 9 * 4**2 + 8 * 128 * 4**2 + 128 * 5  # depthwise 3x3, strided; 1x1; linear
    assert found.ms is place.ms is None and found.weights is None
    priced = places_of_file(str(tmp_path / "net.onnx"), None, None, "gpu-v100")
    leaving_ms = priced.places[0].ms
    assert leaving_ms and priced.ms and leaving_ms > 0 and priced.ms > 0 and priced.target == "gpu-v100"


@pytest.mark.parametrize("size", [0, -8, 5_000, 10**12])
def test_a_side_that_no_network_has_is_one_line(tmp_path: Path, size: int) -> None:
    for model in ("squeezenet1_1", str(small(tmp_path / "net.onnx"))):
        with pytest.raises(UserError, match=rf"size={size}: the input side must be from 1 to 4096"):
            places_of_file(model, None, size, None)


@pytest.mark.parametrize(("node", "shapes", "expected"), [
    (helper.make_node("Conv", ["x", "w"], ["y"]), {"x": (1, 4, 8, 8), "w": (6, 2, 3, 3), "y": (1, 6, 8, 8)}, 6912),
    (helper.make_node("ConvTranspose", ["x", "w"], ["y"]), {"x": (1, 4, 2, 2), "w": (4, 3, 2, 2), "y": (1, 3, 4, 4)},
     192),
    (helper.make_node("Gemm", ["x", "w"], ["y"], transB=1), {"x": (1, 7), "w": (5, 7), "y": (1, 5)}, 35),
    (helper.make_node("Gemm", ["x", "w"], ["y"], transA=1), {"x": (7, 1), "w": (7, 5), "y": (1, 5)}, 35),
    (helper.make_node("MatMul", ["x", "w"], ["y"]), {"x": (1, 3, 9, 7), "w": (1, 3, 7, 2), "y": (1, 3, 9, 2)}, 378),
    (helper.make_node("Relu", ["x"], ["y"]), {"x": (1, 7), "y": (1, 7)}, 0),
    (helper.make_node("Einsum", ["x", "w"], ["y"]), {"x": (1, 7), "w": (7, 5), "y": (1, 5)}, None),
    (helper.make_node("Gemm", ["x", "w"], ["y"]), {"x": (1, 7), "w": (7, 5)}, None),
])
def test_multiply_adds_by_hand(node: Any, shapes: dict[str, tuple[int, ...]], expected: int | None) -> None:
    assert multiply_adds(node, shapes) == expected


@pytest.mark.parametrize("name", FAST)
def test_torchvision_by_name_alone(name: str) -> None:
    """All of them: benchmarks/torchvision_exits.py."""
    found = places_of_file(name, None, None, None)
    assert found.places and found.weights == "random" and found.classes == 1000
    assert found.macs / 1e9 == pytest.approx(models.get_model_weights(name).DEFAULT.meta["_ops"], rel=0.02, abs=6e-4)
    shares = [place.macs_share for place in found.places]
    assert shares == sorted(shares) and shares[0] > 0 and shares[-1] < 1


def test_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = str(small(tmp_path / "net.onnx"))
    code, out, _ = call(capfd, path, "--json")
    found = json.loads(out)
    assert code == 0 and found["places"][0]["shape"] == [8, 8, 8]
    code, out, _ = call(capfd, path)
    assert code == 0 and "8x8x8" in out and "net.onnx at 16x16, 5 classes: 0.01615 M MACs" in out
    for words, message in ((("--lose", "3"), "--lose: has no effect with --list"),
                           (("--data", "digits"), "--data: has no effect with --list"),
                           (("--arch", "a"), "--arch: has no effect with --list"),
                           (("--out", "x"), "--out: has no effect with --list"),
                           (("--target", "cpu-emerald-rapids"), "has rows for operators of search spaces")):
        code, _, errors = call(capfd, path, *words)
        assert code == 2 and message in errors and len(errors.strip().splitlines()) == 1, errors
    assert not list(tmp_path.glob("*-exits"))


def test_of_a_pick(finished: tuple[Path, dict[str, Any]], capfd: pytest.CaptureFixture[str]) -> None:
    card = next(card for card in finished[1]["front"] + finished[1]["dominated"] if not card["exits"])
    code, out, errors = call(capfd, str(finished[0]), "--arch", card["id"], "--json")
    assert code == 0, errors
    found = json.loads(out)
    assert found["macs"] == card["macs"] and found["ms"] == pytest.approx(card["ms"]["gpu-v100"]) and found["places"]
    code, out, _ = call(capfd, str(finished[0]), "--arch", card["id"])
    assert code == 0 and found["places"][0]["behind"] in out


def test_a_network_without_places_says_why(tmp_path: Path) -> None:
    flat = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    save(lower(flat, in_ch=3, size=16), tmp_path / "flat.onnx", {})
    with pytest.raises(UserError, match=r"flat\.onnx: the network has no place for an exit"):
        places_of_file(str(tmp_path / "flat.onnx"), None, None, None)
