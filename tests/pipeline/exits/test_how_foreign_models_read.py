"""Exits on a network of somebody else, on folders that are some of its classes in another order: figures that agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from tiny_search import Quiet
from torch import nn

from nas.lower.onnx import lower, save
from nas.pipeline.evaluate import evaluate
from nas.pipeline.exits import existing
from nas.pipeline.exits.add import add
from nas.pipeline.exits.serve import Wishes
from nas.run.directory import Run
from nas.training.data import load
from nas.training.preprocessing import Preprocessing

CLASSES = ["eel", "ant", "dog", "cat", "bee"]


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """Untrained, with the first bias of its classifier so that answers differ by image; names its classes."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    save(lower(net, in_ch=3, size=16), tmp_path / "net.onnx", {"classes": "\n".join(CLASSES)})
    return tmp_path / "net.onnx"


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Twenty images each of three of the five classes, sorted otherwise than the network's."""
    rng = np.random.default_rng(0)
    for level, name in enumerate(("ant", "cat", "dog")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for k in range(20):
            noise = rng.integers(60 * level, 60 * level + 80, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "images" / name / f"{k}.png")
    return tmp_path / "images"


@pytest.mark.parametrize("flags", [(None, None, None), ("0.1,0.2,0.3", "0.2", None), (None, None, 255.0)])
def test_evaluate_exits_and_the_exported_file_agree(network: Path, folders: Path, tmp_path: Path,
                                                    flags: tuple[str | None, str | None, float | None]) -> None:
    how = Preprocessing.from_flags(*flags)
    model = existing.load_file(str(network), None, None, "gpu-v100",
                        lambda side, whites: load(str(folders), data_dir=None, size=side, seed=0), 0, how)
    card = add(model, Run.open(tmp_path / "out", {}), Quiet(), epochs=1, wishes=Wishes(lose=0.5))
    plain = evaluate(network, data=str(folders), preprocessing=how)
    assert card.accuracy_without == pytest.approx(plain.top1.share)
    assert card.preprocessing == plain.preprocessing
    assert card.classes_by == plain.classes_by == "by name"
    exported = evaluate(tmp_path / "out" / "model.onnx", data=str(folders))  # by its own metadata, without flags
    assert card.kept and exported.top1.share == pytest.approx(card.accuracy)
    assert exported.preprocessing.source == "the file's metadata" and exported.classes_by == "by name"
    assert [part.name for part in exported.classes if part.n] == ["ant", "dog", "cat"]  # the network's order


def test_names_from_a_file_stand_in_what_is_exported(network: Path, folders: Path) -> None:
    bare = onnx.load(network)
    del bare.metadata_props[:]
    onnx.save(bare, network)
    model = existing.load_file(str(network), None, None, "gpu-v100",
                        lambda side, whites: load(str(folders), data_dir=None, size=side, seed=0), 0, classes=CLASSES)
    assert model.metadata["classes"].split("\n") == CLASSES and model.data.classes == tuple(CLASSES)
    assert sorted(set(model.data.learn.labels.tolist())) == [1, 2, 3]


@pytest.mark.parametrize("augment", [None, "crop"])
def test_images_and_augmentation_are_said_before_heads_are_trained(network: Path, folders: Path, tmp_path: Path,
                                                                   augment: str | None) -> None:
    model = existing.load_file(str(network), None, None, "gpu-v100",
                        lambda side, whites: load(str(folders), data_dir=None, size=side, seed=0), 0)
    shown = Quiet()
    add(model, Run.open(tmp_path / "out", {}), shown, epochs=1, augment=augment)
    assert shown.notes[0] == f"images: 60 images of 3 classes at 16x16, from {folders}"
    (line,) = [note for note in shown.notes if note.startswith("augmentation")]
    assert f"({augment or 'flip-crop'}); augment=" in line


def test_images_without_labels_are_said_too(network: Path, folders: Path, tmp_path: Path) -> None:
    (folders / "notes.txt").write_text("x")
    shown = Quiet()
    model = existing.load_file(str(network), None, None, "gpu-v100", lambda side, whites: None, 0)
    add(model, Run.open(tmp_path / "out", {}), shown, images=folders, epochs=1)
    assert shown.notes[0] == (f"images: 60 images without labels at 16x16, from {folders}: 36 to learn from, "
                              "12 for thresholds, 12 to report on")
    assert "left out: .txt files (1)" in shown.notes
