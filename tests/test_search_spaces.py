"""Every shipped space: weights shared exactly, searched to the end for a GPU and, but for the largest, for an NPU."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from batch_norms import scrambled
from every import every
from pictures import noise
from tiny_search import Quiet, searched

from nas import sampling
from nas.config.search import resolve
from nas.decision import one_hot
from nas.files import shipped
from nas.plan import Task, layout
from nas.space import Space
from nas.supernet.net import Supernet

SMOKE = ["train.warmup_epochs=1", "train.search_epochs=1", "train.settle_epochs=1", "train.finetune_epochs=1",
         "train.batch=16", "evaluations=4", "budgets=2"]
SPACES = shipped("search_spaces", ".yaml")
pytestmark = pytest.mark.usefixtures("few_views")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six of each of ten classes: all there is to see is that every step is taken."""
    folder = tmp_path_factory.mktemp("images")
    for label in range(10):
        noise(folder / str(label), 6, seed=label)
    return folder


def smoke(space: str, images: Path, path: Path, target: str, **more: Any) -> dict[str, Any]:
    flags = {"space": space, "target": [target], "data": str(images), "size": 32, "threads": 1, **more}
    return searched(resolve(None, SMOKE, flags), path, Quiet())


def check(result: dict[str, Any], path: Path) -> None:
    pairs = [(budget["ms"][target], bound) for budget in result["budgets"] for target, bound in
             budget["budget_ms"].items()]
    assert result["front"] and pairs and every(ms <= bound for ms, bound in pairs)
    for card in result["front"]:
        assert (path / card["onnx"]).stat().st_size > 1000 and min(card["ms"].values()) > 0 and card["params"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("space", SPACES)
def test_every_space_is_searched_for_a_gpu(space: str, images: Path, tmp_path: Path) -> None:
    check(smoke(space, images, tmp_path / "run", "gpu-v100", width=0.25), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("space", [space for space in SPACES if space not in ("gpunet", "resnet")])  # of 56 and 121 M
def test_a_space_is_searched_for_an_npu(space: str, images: Path, tmp_path: Path) -> None:
    check(smoke(space, images, tmp_path / "run", "ethos-u55-128"), tmp_path / "run")


@pytest.mark.parametrize("space", SPACES)
def test_weights_are_shared_exactly(space: str) -> None:
    """What a supernet runs for a network is what that network computes once it is taken out."""
    at = layout(Space.load(f"{space}@0.125"), Task(16, 3, 10))
    torch.manual_seed(0)
    supernet = scrambled(Supernet(at))
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    for seed in range(3):
        arch = sampling.sample(at, random.Random(seed))
        with torch.no_grad():
            assert torch.equal(supernet(x, one_hot(arch)), supernet.inherit(arch).eval()(x))
