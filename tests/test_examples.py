"""The examples run, on settings that take seconds."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from own_ops import forgotten
from PIL import Image
from tiny_space import TINY

EXAMPLES = Path(__file__).parent.parent / "examples"
SECONDS = {"train.warmup_epochs": 1, "train.search_epochs": 1, "train.settle_epochs": 1, "train.finetune_epochs": 1,
           "train.batch": 16, "evaluations": 4, "threads": 1, "baselines": 0}


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def photos(folder: Path, colours: tuple[str, ...]) -> Path:
    """Images of one colour a class, 24 each, darker and brighter."""
    draw = random.Random(0)
    for colour in colours:
        (folder / colour).mkdir(parents=True)
        for i in range(24):
            shade = tuple(draw.randint(150, 250) if channel in colour else draw.randint(0, 90) for channel in "rgb")
            image = Image.new("RGB", (20, 24), shade)
            image.putpixel((i % 20, i), (128, 128, 128))
            image.save(folder / colour / f"{i}.png")
    return folder


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 60 and path.name in (EXAMPLES / "README.md").read_text()


@pytest.mark.slow
def test_own_images_and_a_pick_that_is_trained_further(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    run = tmp_path / "run"
    answer = script("own_images").main(photos(tmp_path / "photos", ("r", "g", "b")), ms=0.2, run=run,
                                       space=str(tmp_path / "tiny.yaml"), settings=SECONDS)
    assert answer in ("r", "g", "b")
    others = photos(tmp_path / "others", ("rg", "gb"))
    fine_tune, out = script("fine_tune_pick").main, tmp_path / "tuned.pt"
    torch.manual_seed(0)
    assert fine_tune(run, others, ms=0.2, out=out, epochs=6) < fine_tune(run, others, ms=0.2, out=out, epochs=1)
    assert torch.load(out)


@pytest.mark.slow
def test_own_operator(tmp_path: Path) -> None:
    with forgotten():
        picks = script("own_operator").main(tmp_path / "run", {**SECONDS, "limit": 160, "size": 16, "budgets": 2})
    assert picks and (tmp_path / "run" / "own_operator.png").stat().st_size > 1000
