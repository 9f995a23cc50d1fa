"""Every command and the program of docs/exits.md, on a search of seconds."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from pictures import noise
from PIL import Image
from tiny_search import SHORT
from tiny_space import TINY

from nas import cli

PAGE = (Path(__file__).parents[3] / "docs" / "exits.md").read_text()
COMMANDS = [line.strip() for line in PAGE.splitlines() if line.startswith("    nas ")]


def words(command: str, shop: Path) -> list[str]:
    """As on the page, with what makes it short."""
    ids = [path.name for path in sorted(shop.glob("archs/*"))]
    found = [ids[0] if word == "ID" else word for word in shlex.split(command)[1:]]
    if found[0] == "search":
        return [*found, "--space", "tiny.yaml", "--data", "digits", "--size", "16", "--limit", "160", "--threads",
                "1", *SHORT]
    return [*found, *(["--epochs", "2"] if found[0] == "exits" and "--list" not in found else [])]


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    from torchvision.models import resnet18

    from nas.latency import profile
    from nas.pipeline.exits import models

    monkeypatch.chdir(tmp_path)
    for module, name in ((models, "SECONDS"), (profile, "CHECKED_S")):
        monkeypatch.setattr(module, name, 0.01)  # figures are not what is tested
    Path("tiny.yaml").write_text(yaml.safe_dump(TINY))
    noise(Path("pictures"), 40)
    torch.manual_seed(0)
    torch.save(resnet18(num_classes=3).state_dict(), "resnet18.pth")
    before, order = signal.getsignal(signal.SIGTERM), ["search", "exits", "export"]
    try:
        for command in sorted(COMMANDS, key=lambda c: order.index(c.split()[1])):
            if "mynet.onnx" in command:
                shutil.copy(next(Path("shop").glob("archs/*/model.onnx")), "mynet.onnx")
            with pytest.raises(SystemExit) as end:
                cli.main(words(command, Path("shop")))
            out, errors = capfd.readouterr()
            assert not end.value.code and out, (command, errors)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(COMMANDS) == 6
    folders = [Path("mynet-exits"), Path("resnet18-exits"), next(Path("shop").glob("exits/*-cache"))]
    rng = np.random.default_rng(0)
    program = PAGE.partition("```python\n")[2].partition("```")[0]
    for folder in folders:
        listed = {name for line in PAGE.splitlines() if line.startswith("| `") for name in line.split("|")[1].split("`")
                  if "." in name and "..." not in name}
        assert listed <= {path.name for path in folder.iterdir()} and len(listed) == 9
        side = 64 if folder.name.startswith("resnet") else 16
        np.save(folder / "x.npy", rng.standard_normal((3, 3, side, side), dtype=np.float32))
        code = ("import sys; sys.modules.update({'nas': None, 'torch': None})\nimport numpy as np\n"
                f"images = np.load('x.npy')\n{program}")
        done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True,
                              env={**os.environ, "PYTHONPATH": ""})
        assert done.returncode == 0 and len(done.stdout.splitlines()) == 2, done.stderr
    assert Image.open(folders[0] / "curve.png").size[0] > 500
