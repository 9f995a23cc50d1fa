"""A network as the backbone of a detector: what docs/backbones.md shows, on real images where they are at hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from batch_norms import scrambled
from every import every
from PIL import Image
from torchvision.transforms.functional import to_tensor

from nas import sampling
from nas.files import shipped
from nas.lower.onnx import export
from nas.lower.verify import Disagreement, check_onnx
from nas.plan import Task, layout
from nas.space import Space
from nas.subnet import Backbone, FeatureMap, build

ROOT = Path(__file__).resolve().parent.parent
COCO = ROOT.parent / "shared" / "data" / "coco128_320"


def network(name: str, size: int) -> Any:
    at = layout(Space.load(name), Task(size, 3, 10))
    return build(at, sampling.smallest(at))


@pytest.mark.parametrize("name", [*shipped("search_spaces/presets", ".yaml"), *shipped("search_spaces", ".yaml")])
def test_features_are_what_maps_says(name: str) -> None:
    model = network(name, 224)
    with torch.no_grad():
        found = Backbone(model.eval())(torch.zeros(1, 3, 96, 128))
    assert [one.stride for one in model.maps] == sorted({one.stride for one in model.maps})
    for y, one in zip(found, model.maps, strict=True):
        assert tuple(y.shape) == (1, one.channels, 96 // one.stride, 128 // one.stride)


def test_maps_by_hand() -> None:
    assert network("resnet18", 224).maps == [FeatureMap(64, 4), FeatureMap(128, 8), FeatureMap(256, 16),
                                             FeatureMap(512, 32)]
    assert network("mobilenet_v2", 32).maps == [FeatureMap(24, 1), FeatureMap(32, 2), FeatureMap(96, 4),
                                                FeatureMap(320, 8)]


def test_a_map_of_one_pixel_still_changes_its_stride() -> None:
    """Smaller inputs than the network was laid out for: two maps of 1x1, not one."""
    model = network("mobilenet_v2@0.25", 224).eval()
    with torch.no_grad():
        assert [y.shape[-1] for y in model.features(torch.zeros(1, 3, 16, 16))] == [8, 4, 2, 1, 1]


def test_the_maps_as_onnx_equal_pytorchs(tmp_path: Path) -> None:
    model, path = Backbone(scrambled(network("ghostnet@0.25", 64))), tmp_path / "m.onnx"
    names = [f"stride{one.stride}" for one in model.maps]
    export(model, path, in_ch=3, size=64, metadata={}, outputs=names)
    assert check_onnx(path, model, in_ch=3, size=64).relative < 1e-4
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_outputs()] == names == ["stride1", "stride2", "stride4", "stride8",
                                                                    "stride16"]
    with torch.no_grad():
        model.stem.conv.bn.bias += 0.1
    with pytest.raises(Disagreement):
        check_onnx(path, model, in_ch=3, size=64)
    assert len(onnx.load(path).graph.output) == 5


def detector() -> Any:
    """What the page's own code makes."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "backbones.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {"__name__": "docs"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(compile(code, "backbones.md", "exec", dont_inherit=True), names)
    return names["detector"]


def sample(n: int) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """The first images of the COCO sample that have boxes: [3, H, W] each, corners in pixels."""
    images, targets = [], []
    for path in sorted((COCO / "images" / "train2017").glob("*.jpg")):
        label = COCO / "labels" / "train2017" / f"{path.stem}.txt"
        lines = label.read_text().splitlines() if label.exists() else []  # class and box, centre and sides in shares
        rows = [[float(part) for part in line.split()] for line in lines]
        if rows and len(images) < n:
            image = to_tensor(Image.open(path).convert("RGB"))
            table, side = torch.tensor(rows), torch.tensor([image.shape[2], image.shape[1]])
            centre, half = table[:, 1:3] * side, table[:, 3:5] * side / 2
            images.append(image)
            targets.append({"boxes": torch.cat((centre - half, centre + half), 1), "labels": table[:, 0].long()})
    return images, targets


@pytest.mark.skipif(not COCO.is_dir(), reason="the COCO sample is not at hand")
def test_a_detector_learns_from_real_images() -> None:
    model, (images, targets) = detector(), sample(4)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for _ in range(5):
        parts = model.train()(images, targets)
        loss = sum(parts.values())
        optimizer.zero_grad()
        loss.backward()
        assert every(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and set(parts) == {"classification", "bbox_regression"}


def test_a_detector_gets_the_maps_that_it_was_promised() -> None:
    model = detector().eval()
    with torch.no_grad():
        maps = model.backbone(torch.zeros(1, 3, 320, 320))
        found = model([torch.rand(3, 240, 320)])
    assert {name: tuple(y.shape) for name, y in maps.items()} == {
        "8": (1, 64, 40, 40), "16": (1, 64, 20, 20), "32": (1, 64, 10, 10)}
    assert set(found[0]) == {"boxes", "scores", "labels"} and found[0]["boxes"].shape[1] == 4


def test_what_a_detector_trains_has_no_classifier() -> None:
    model = network("mobilenet_v3_small@0.5", 224)
    names = set(Backbone(model).state_dict())
    assert names == {name for name in model.state_dict() if not name.startswith("head.")}
