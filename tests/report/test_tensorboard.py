"""The curves for TensorBoard: every number of every epoch once, as TensorBoard itself reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from nas.errors import UserError
from nas.report.tensorboard import write_scalars
from nas.run import events
from nas.run.directory import Run
from nas.supernet.drop import Drop
from nas.training.epochs import Pruning


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run.open(tmp_path / "run", {"space": "x"})
    pruning = Pruning(dropped=(Drop("block", 0, "skip", 0.5, ((0.25,),)),), branches=7, parameters=70, skip_share=0.5)
    run.log(events.Epoch(phase="warmup", epoch=0, loss_largest=2.0, seconds=8.0))
    run.log(events.Epoch(phase="search", epoch=0, loss_largest=9.0, seconds=6.0))
    run.log(events.Epoch(phase="search", epoch=0, loss_largest=1.5, pruning=pruning, seconds=4.0))  # after a kill
    run.log(events.FineTuned(id="abc", epoch=0, loss=0.5, seconds=2.0))
    run.log(events.FineTuned(id="abc", epoch=1, loss=0.25, seconds=1.0))
    run.log(events.Stage(name="picks.json", seconds=3.0))
    return run


def test_tensorboard_reads_every_curve_once(run: Run, tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for _ in range(2):  # the second time replaces the first
        assert write_scalars(run, tmp_path / "curves") == 11
    read = {}
    for place in ("supernet", "finetune/abc"):
        curves = reader.EventAccumulator(str(tmp_path / "curves" / place)).Reload()
        for tag in curves.Tags()["scalars"]:
            read[tag] = [(event.step, event.value) for event in curves.Scalars(tag)]
    assert read == {
        "supernet/loss_largest": [(0, 2.0), (1, 1.5)], "supernet/seconds": [(0, 8.0), (1, 4.0)],
        "supernet/pruning/branches": [(1, 7.0)], "supernet/pruning/parameters": [(1, 70.0)],
        "supernet/pruning/skip_share": [(1, 0.5)],
        "finetune/loss": [(0, 0.5), (1, 0.25)], "finetune/seconds": [(0, 2.0), (1, 1.0)]}


def test_without_the_package_it_says_what_to_install(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        write_scalars(run, tmp_path / "curves")
    assert not (tmp_path / "curves").exists()
