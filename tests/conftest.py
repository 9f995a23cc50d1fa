"""What most tests share: one thread, a tiny space of two stages, 16-pixel inputs."""

import os
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
import yaml
from tiny_space import TINY

from nas.files import write_text
from nas.plan import Layout, Task, layout
from nas.space import Space
from nas.training import evaluation


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: no process is left alone with one while the others are done."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """PyTorch's and, unless a session's options say otherwise, ONNX Runtime's: other cores have other tests."""
    torch.set_num_threads(1)
    make = onnxruntime.InferenceSession.__init__

    def made(session: Any, model: Any, options: Any = None, *rest: Any, **named: Any) -> None:
        if options is None and "sess_options" not in named:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
        make(session, model, *([] if options is None else [options]), *rest, **named)

    onnxruntime.InferenceSession.__init__ = made


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> None:
    """Files of tests need not outlast a power cut."""
    os.fsync = lambda fd: None


@pytest.fixture
def few_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search sees its few held-out images twice, not until they are a thousand: most of its time otherwise."""
    monkeypatch.setattr(evaluation, "VIEWED", 20)


@pytest.fixture
def tiny_space() -> Space:
    return Space.parse(TINY, "tiny.yaml")


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of this run of the suite, the same one for all of its processes."""
    base = tmp_path_factory.getbasetemp()  # of one process, in that of all where there are several
    path = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    path.mkdir(exist_ok=True)
    return path


@pytest.fixture(scope="session")
def space_file(shared: Path) -> Path:
    """The tiny space as a file, which other processes read, too: not to be changed."""
    path = shared / "tiny.yaml"
    write_text(path, yaml.safe_dump(TINY))
    return path


@pytest.fixture
def tiny(tiny_space: Space) -> Layout:
    """4 slots at 16 pixels, 4 classes: (3 widths x 3 branches [+ skip]) each."""
    return layout(tiny_space, Task(16, 3, 4))


@pytest.fixture
def tiny_exits(tiny_space: Space) -> Layout:
    """The same with the exit that it can have, behind slot 1."""
    return layout(tiny_space, Task(16, 3, 4), exits=True)
