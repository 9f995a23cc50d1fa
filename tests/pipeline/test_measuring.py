"""Measuring: networks of one size in the same rounds, each by the file of the target's precision, beside its layout."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from nas.arch import Arch
from nas.pipeline import measuring
from nas.pipeline.inputs import Inputs
from nas.pipeline.measuring import Measured, Network, measure, measure_on_all, parts
from nas.plan import Task, layout
from nas.space import Space

LARGE, LARGER, SMALL = Arch("tiny", 16, ()), Arch("tiny", 16, (), (1,)), Arch("tiny", 8, ())


@dataclass
class Reader:
    """A device on which a file takes as many ms as its name says, and a module ten times its side."""

    reads_onnx: bool

    def load(self, path: Path) -> Any:
        return lambda: float(path.stem)

    def prepare(self, module: nn.Module, *, in_ch: int, size: int) -> Any:
        return lambda: 10.0 * size


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Calls of ``time_networks``: side of the layout whose yardsticks run beside, and number of networks."""
    calls = list[tuple[int, int]]()

    def timed(prepare: Any, count: int, at: Any, table: Any, device: Any) -> Any:
        calls.append((at.task.size, count))
        return {name: run() for name, run in prepare().items()}, 1.5

    monkeypatch.setattr(measuring, "time_networks", timed)
    monkeypatch.setattr(measuring, "measured_here", lambda costs: costs.here)
    return calls


def inputs(tiny_space: Space, **costs: Any) -> Inputs:
    """Inputs of two sizes."""
    nothing = cast(Any, None)
    at = {size: Inputs(nothing, nothing, nothing, layout(tiny_space, Task(size, 3, 10)), costs, {},
                       torch.device("cpu")) for size in (16, 8)}
    return Inputs(nothing, nothing, nothing, at[16].layout, costs, {}, torch.device("cpu"), others={8: at[8]})


def target(device: Reader | None, int8: bool = False) -> Any:
    return SimpleNamespace(here=(None, device) if device else None, int8_on_cpu=int8)


def network(**files: int) -> Network:
    return Network(nn.Identity(), {kind: Path(f"{ms}.onnx") for kind, ms in files.items()})


def test_networks_of_a_size_are_timed_together_and_by_the_file_of_the_target(
        rounds: list[tuple[int, int]], tiny_space: Space) -> None:
    networks = {LARGE: network(float=3, int8=1), SMALL: network(float=5, int8=2), LARGER: network(float=4)}
    at = inputs(tiny_space, fp32=target(Reader(True)), int8=target(Reader(True), int8=True), far=target(None))
    times = measure_on_all(at, networks)
    assert times == {
        LARGE: {"fp32": Measured(3.0, 1.5), "int8": Measured(1.0, 1.5), "far": Measured(None, None)},
        SMALL: {"fp32": Measured(5.0, 1.5), "int8": Measured(2.0, 1.5), "far": Measured(None, None)},
        LARGER: {"fp32": Measured(4.0, 1.5), "int8": Measured(None, None), "far": Measured(None, None)}}
    assert rounds == [(16, 2), (8, 1), (16, 1), (8, 1)]


def test_a_device_that_reads_no_files_times_the_module_at_its_size(rounds: list[tuple[int, int]],
                                                                   tiny_space: Space) -> None:
    networks = {LARGE: network(float=3), SMALL: network(float=5)}
    times = measure(inputs(tiny_space, gpu=target(Reader(False))), "gpu", networks)
    assert times == {LARGE: Measured(160.0, 1.5), SMALL: Measured(80.0, 1.5)}


def test_nothing_is_timed_where_there_is_nothing_to_time(rounds: list[tuple[int, int]], tiny_space: Space) -> None:
    assert measure(inputs(tiny_space, fp32=target(Reader(True))), "fp32", {}) == {} and rounds == []


def test_many_networks_are_timed_in_parts() -> None:
    assert [list(part) for part in parts(range(11))] == [[*range(8)], [8, 9, 10]]
    assert list(parts([])) == []
