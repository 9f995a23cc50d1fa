"""Delivery: accuracies are those of the file, whatever number of images is left at the end; on a GPU PyTorch's."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest
import torch
from torch import nn

from nas.lower.onnx import export
from nas.pipeline import deliver
from nas.pipeline.measuring import Network
from nas.training.data import Data, Split, without_images


class Brightest(nn.Module):
    """Says which of the three channels of an image is the brightest."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))


class Silent(nn.Module):
    """Is not to be asked for anything."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise AssertionError("PyTorch was asked")


def coloured(count: int, wrong: int) -> Split:
    """Images of one bright channel, the first ``wrong`` of them with the label of another one."""
    bright = torch.arange(count) % 3
    images = torch.zeros(count, 3, 8, 8, dtype=torch.uint8)
    images[torch.arange(count), bright] = 200
    return Split(images, (bright + (torch.arange(count) < wrong)) % 3)


def inputs(device: str = "cpu") -> Any:
    data: Data = replace(without_images("colours", "rgb", 8, (0.0,) * 3, (1.0,) * 3), select=coloured(1000, 250),
                         test=coloured(2 * deliver.AT_ONCE + 5, 6))
    return SimpleNamespace(data=data, device=torch.device(device), seed=0,
                           config=SimpleNamespace(train=SimpleNamespace(augment=None)))


def written(path: Path) -> Path:
    export(Brightest(), path / "model.onnx", in_ch=3, size=8, metadata={})
    return path / "model.onnx"


def test_accuracies_are_those_of_the_file_down_to_the_last_images(tmp_path: Path) -> None:
    here, network = inputs(), Network(Silent(), {"float": written(tmp_path)})
    select, test = deliver._evaluate_splits(here, deliver._to_evaluate(here, network))
    assert (select.right, select.n, test.right, test.n) == (750, 1000, 63, 69)


def test_a_file_sees_few_images_at_once_and_all_of_them_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    run = onnxruntime.InferenceSession.run

    def counted(session: Any, outputs: None, feeds: dict[str, Any]) -> Any:
        seen.append(len(feeds["input"]))
        return run(session, outputs, feeds)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", counted)
    images = torch.rand(2 * deliver.AT_ONCE + 1, 3, 8, 8)
    answers = deliver._onnx_model(written(tmp_path))(images)
    assert seen == [deliver.AT_ONCE, deliver.AT_ONCE, 1]
    torch.testing.assert_close(answers, images.mean((2, 3)))


def test_on_a_gpu_a_copy_of_the_network_is_asked_there() -> None:
    network = nn.Conv2d(3, 3, 1)
    placed = deliver._to_evaluate(inputs("meta"), Network(network, {}))  # meta stands for a GPU
    assert isinstance(placed, nn.Conv2d) and placed.weight.device.type == "meta"
    assert network.weight.device.type == "cpu"
