"""Weights of torchvision's classifiers: what is built answers as torchvision's own, whatever the file looks like."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from every import every
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from nas import cli
from nas.errors import UserError
from nas.lower import formats
from nas.lower.onnx import lower, save
from nas.lower.verify import check_onnx
from nas.pipeline.exits import weights as door
from nas.pipeline.exits.existing import load_file as network

FAST = ("densenet121", "efficientnet_b0", "googlenet", "inception_v3", "mnasnet0_5", "mobilenet_v2",
        "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1")
LARGE = 40e6  # parameters: above, minutes or gigabytes a network


def effort(name: str) -> Any:
    large = models.get_model_weights(name).DEFAULT.meta["num_params"] > LARGE
    return pytest.param(name, marks=[] if name in FAST else [pytest.mark.sweep if large else pytest.mark.slow])


ALL = list(map(effort, door.classifier_names()))
FIXED = ("vit", "maxvit", "swin")  # run at the side that they were made for


def untrained(name: str, **arguments: Any) -> nn.Module:
    slow = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    torch.manual_seed(0)
    made: nn.Module = models.get_model(name, weights=None, **slow, **arguments)
    return made


def random_state(net: nn.Module) -> dict[str, Tensor]:
    """Weights whose answers differ by image in every layer: batch norms have statistics of their own."""
    generator = torch.Generator().manual_seed(1)
    state = net.state_dict()
    for key, value in state.items():
        if "running" in key:
            state[key] = 0.5 + torch.rand(value.shape, generator=generator)
        elif value.is_floating_point() and value.ndim == 1:
            state[key] = value + 0.1 * torch.rand(value.shape, generator=generator)
    return state


def as_published(name: str, state: OrderedDict[str, Tensor]) -> OrderedDict[str, Tensor]:
    """With the names that torchvision's downloads have where they are others than the network's."""
    if name.startswith("vit"):
        new = {key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): key for key in state}
    elif name.startswith("densenet"):
        new = {key: key for key in state if not key.endswith("num_batches_tracked")}
        for kind in ("norm", "conv"):
            new = {key.replace(f"{kind}1.", f"{kind}.1.").replace(f"{kind}2.", f"{kind}.2.")
                   if "denselayer" in key else key: old for key, old in new.items()}
    else:
        return state
    return OrderedDict((key, state[old]) for key, old in new.items())


@pytest.mark.parametrize("name", ALL)
def test_what_is_built_is_what_torchvision_builds_for_its_weights(name: str, tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchvision's builder with ``weights=``, which would download them, is the truth."""
    meta = models.get_model_weights(name).DEFAULT
    sides = {"image_size": meta.meta["min_size"][0]} if name.startswith("vit") else {}
    torch.save(as_published(name, random_state(untrained(name, **sides))), tmp_path / "w.pth")
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url",
                        lambda *args, **kwargs: torch.load(tmp_path / "w.pth", weights_only=True))
    theirs, made = models.get_model(name, weights="DEFAULT").eval(), door.build_classifier(name, tmp_path / "w.pth")
    side = made.size if name.startswith(FIXED) else 128 if name == "inception_v3" else 96
    x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = theirs(x)
        assert expected.std() > 0 and torch.equal(expected, made.net(x))
    assert made.size == meta.transforms.keywords["crop_size"]
    save(lower(made.net, in_ch=3, size=side), tmp_path / "m.onnx", {})
    check_onnx(tmp_path / "m.onnx", made.net, in_ch=3, size=side, n=2)


@pytest.mark.slow
def test_a_transformer_has_the_side_of_its_weights(tmp_path: Path) -> None:
    """As those of vit_b_16 that were trained at 384."""
    net = untrained("vit_b_32", image_size=96, num_classes=3).eval()
    torch.save(net.state_dict(), tmp_path / "w.pth")
    made = door.build_classifier("vit_b_32", tmp_path / "w.pth")
    x = torch.randn(1, 3, 96, 96)
    with torch.inference_mode():
        assert made.size == 96 and torch.equal(made.net(x), net(x))
    with pytest.raises(UserError, match=r"size=64: vit_b_32 does not run on such images .*evaluates it at size 96"):
        door.check_size("vit_b_32", made, 64)


@pytest.mark.parametrize("name", ["inception_v3", "squeezenet1_1"])
def test_images_that_are_too_small_are_one_line_with_a_side_that_works(name: str) -> None:
    made = door.build_classifier(name, None, untrained=True)
    with pytest.raises(UserError, match=f"size=8: {name} does not run on such images") as refused:
        door.check_size(name, made, 8)
    door.check_size(name, made, int(str(refused.value).rpartition("at size ")[2]))


STATE = random_state(untrained("squeezenet1_1", num_classes=5))


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in STATE.items()}


@pytest.mark.parametrize(("content", "place"), [
    (STATE, ""), ({"state_dict": STATE}, "state_dict/"), ({"model": STATE, "optimizer": {"state": {}}}, "model/"),
    ({"model_state_dict": STATE, "epoch": 3}, "model_state_dict/"), ({"model_ema": STATE}, "model_ema/"),
    (prefixed("module."), "module."), (prefixed("_orig_mod.module."), "_orig_mod.module."),
    ({"state_dict": {**prefixed("model."), "loss.weight": torch.ones(3)}}, "state_dict/model."),
    ({"net": {"weights": prefixed("backbone.")}}, "net/weights/backbone."),
    ({"model": STATE, "model_ema": {**prefixed("module."), "n_averaged": torch.tensor(3)}}, "model/"),
    ({"model": STATE, "args": argparse.Namespace(lr=0.1), "best": np.float64(0.7)}, "model/"),
    ({key: value.half() if value.is_floating_point() else value for key, value in STATE.items()}, ""),
    ({key: nn.Parameter(value) for key, value in STATE.items()}, ""),
])
def test_weights_are_found_where_they_lie(content: Any, place: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    made = door.build_classifier("squeezenet1_1", tmp_path / "w.pth")
    assert made.weights == place
    assert every(torch.allclose(made.net.state_dict()[key], value.float(), atol=1e-2) for key, value in STATE.items())


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin", "w"])
def test_a_file_is_what_it_holds_not_what_it_is_called(name: str, tmp_path: Path) -> None:
    save_file(STATE, tmp_path / name)
    assert torch.equal(door.build_classifier("squeezenet1_1", tmp_path / name).net.state_dict()["classifier.1.bias"],
                       STATE["classifier.1.bias"])
    torch.save(STATE, tmp_path / "torch.safetensors")
    assert door.build_classifier("squeezenet1_1", tmp_path / "torch.safetensors").weights == ""
    torch.save(STATE, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert door.build_classifier("squeezenet1_1", tmp_path / "old.pth").weights == ""


def without(*keys: str, **more: Tensor) -> dict[str, Tensor]:
    return {**{key: value for key, value in STATE.items() if key not in keys}, **more}


@pytest.mark.parametrize(("content", "message"), [
    (without("features.0.bias"), r"not weights of squeezenet1_1: 1 of 52 tensors are missing \(features\.0\.bias"),
    (without(**{"extra": torch.ones(2)}), r"1 of 53 are of no layer of it \(extra\)$"),
    (without(**{"features.0.bias": torch.ones(3)}), r"have other shapes \(features\.0\.bias is \[3\], not \[64"),
    (without(**{"features.0.bias": torch.full((64,), torch.nan)}), r"1 tensors hold values that are no numbers"),
    ({"conv1.weight": torch.ones(2), "fc.bias": torch.ones(2)}, r"no classifier\.1\.bias among 2 tensors \(conv1"),
    ({"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}, r"no classifier\.1\.bias among 1 tensors"),
    ({"epoch": 3}, "no state dict, it holds no tensors by name"), (torch.ones(3), "no state dict"),
    ({"student": STATE, "other": STATE}, r"holds 2 such networks \(student/, other/\); save one"),
])
def test_what_does_not_fit_is_named(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=message):
        door.build_classifier("squeezenet1_1", tmp_path / "w.pth")


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def write(kind: str, path: Path) -> None:
    if kind == "module":
        torch.save(Small(), path)
    elif kind == "script":
        torch.jit.trace(Small(), torch.ones(1, 3, 8, 8)).save(path)
    elif kind == "program":
        torch.export.save(torch.export.export(Small(), (torch.ones(1, 3, 8, 8),)), path)
    elif kind == "onnx":
        onnx.save(lower(nn.Sequential(nn.Conv2d(3, 4, 3)), in_ch=3, size=8), path)
    elif kind == "cut off":
        torch.save(STATE, path)
        path.write_bytes(path.read_bytes()[:5000])
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes({"empty": b"", "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
                          "page": b"\n<!DOCTYPE html><html></html>", "tflite": b"\x1c\0\0\0TFL3" + bytes(90),
                          "hdf5": b"\x89HDF\r\n\x1a\n", "json": b'{"metadata": {}}', "gzip": b"\x1f\x8b\x08\0",
                          "numpy": b"\x93NUMPY", "text": b"hello"}[kind])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("kind", "text"), [
    ("module", "a whole module was pickled, .*torch.save"), ("script", "a TorchScript archive, .*torch.save"),
    ("program", "a program of torch.export, not weights; "), ("onnx", "an ONNX file, not weights; give it in place"),
    ("cut off", "a file of torch.save that cannot be read, broken or cut off"), ("folder", "a directory, not weights$"),
    ("empty", "an empty file, not weights; fetch"), ("lfs", "a pointer of Git LFS, .*: git lfs pull"),
    ("page", "a web page, not weights; the download failed"), ("tflite", "a TensorFlow Lite file"),
    ("hdf5", "a Keras or HDF5 file"), ("json", "a JSON file"), ("gzip", "an archive"), ("numpy", "a file of NumPy"),
    ("text", "a file of no known format"),
])
def test_other_files_are_said_to_be_what_they_are(kind: str, text: str, tmp_path: Path) -> None:
    write(kind, tmp_path / "w.pth")
    with pytest.raises(UserError, match=rf"weights=.*w\.pth: {text}"):
        door.build_classifier("squeezenet1_1", tmp_path / "w.pth")
    if kind in ("onnx", "folder"):
        return
    with pytest.raises(UserError, match=r"w\.pth: .*not an ONNX file"):  # in place of the network
        network(str(tmp_path / "w.pth"), None, None, None, lambda side, whites: None, 0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["script", "program"])
def test_the_advice_for_archives_gives_weights(kind: str, tmp_path: Path) -> None:
    write(kind, tmp_path / "a.pt")
    advice = formats.format_of(tmp_path / "a.pt").for_weights.partition("torch.save(")[2]
    code = f"torch.save({advice}".replace("FILE", repr(str(tmp_path / "a.pt"))).replace("'weights.pth'",
                                                                                      repr(str(tmp_path / "w.pth")))
    exec(code, {"torch": torch})
    assert set(door.read_weights(tmp_path / "w.pth")) == {"conv.weight", "conv.bias"}


def test_names_and_files_that_are_not_there() -> None:
    with pytest.raises(UserError, match="did you mean 'resnet18'"):
        door.build_classifier("resnet_18", None)
    with pytest.raises(UserError, match="give its trained weights: weights=FILE"):
        door.build_classifier("resnet18", None)
    with pytest.raises(UserError, match="weights=none: no such file"):
        door.build_classifier("resnet18", Path("none"))
    with pytest.raises(UserError, match=r"none\.onnx: no such file"):
        network("none.onnx", None, None, None, lambda side, whites: None, 0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("command", [["evaluate", "--data", "digits"], ["measure"], ["predict", "--target", "gpu-v100"],
                                     ["exits", "--list"]])
@pytest.mark.parametrize(("kind", "text"), [("tflite", "a TensorFlow Lite file"), ("module", "a file of torch.save"),
                                            ("lfs", "a pointer of Git LFS"), ("empty", "an empty file"),
                                            ("page", "a web page")])
def test_every_command_says_what_a_file_is_that_is_no_onnx(kind: str, text: str, command: list[str], tmp_path: Path,
                                                           capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("net.onnx", "net.bin"):
        write(kind, tmp_path / name)
        with pytest.raises(SystemExit) as end:
            cli.main([command[0], str(tmp_path / name), *command[1:]])
        errors = capfd.readouterr().err
        assert end.value.code == 2 and f"{tmp_path / name}: {text}, not" in errors, errors
        assert len(errors.strip().splitlines()) == 1
