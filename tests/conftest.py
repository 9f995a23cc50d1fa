"""What most tests share: one thread, a tiny space of two stages, 16-pixel inputs."""

import pytest
import torch

from nas.plan import Layout, Task, layout
from nas.space import Space

TINY = {
    "name": "tiny",
    "stem": {"op": "stem(kernel=3, act=relu)", "out": 8, "stride": 1},
    "stages": [{"out": 8, "depth": 2, "stride": 1}, {"out": 16, "depth": 2, "stride": 2}],
    "ops": {
        "ghost": {"cheap": [3], "kernel": [3], "se": [0, 1], "hidden": {"min": 1, "max": 3, "step": 8}},
        "mbconv": {"kernel": [3], "se": [0], "hidden": {"min": 1, "max": 3, "step": 8}},
    },
    "skip": True,
    "head": {"op": "head(hidden=16)"},
}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def tiny_space() -> Space:
    return Space.parse(TINY, "tiny.yaml")


@pytest.fixture
def tiny(tiny_space: Space) -> Layout:
    """4 slots at 16 pixels, 4 classes: (3 widths x 3 branches [+ skip]) each."""
    return layout(tiny_space, Task(16, 3, 4))
