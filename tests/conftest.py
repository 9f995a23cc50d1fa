"""What most tests share: one thread, a tiny space of two stages, 16-pixel inputs."""

from pathlib import Path

import pytest
import torch
import yaml
from tiny_space import TINY

from nas.plan import Layout, Task, layout
from nas.space import Space


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def tiny_space() -> Space:
    return Space.parse(TINY, "tiny.yaml")


@pytest.fixture(scope="module")
def space_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("space") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture
def tiny(tiny_space: Space) -> Layout:
    """4 slots at 16 pixels, 4 classes: (3 widths x 3 branches [+ skip]) each."""
    return layout(tiny_space, Task(16, 3, 4))


@pytest.fixture
def tiny_exits(tiny_space: Space) -> Layout:
    """The same with the exit that it can have, behind slot 1."""
    return layout(tiny_space, Task(16, 3, 4), exits=True)
