"""The curves for TensorBoard: every number of every epoch once, as TensorBoard itself reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from nas.errors import UserError
from nas.report.tensorboard import write_scalars
from nas.run.directory import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run.open(tmp_path / "run", {"space": "x"})
    run.log("epoch", phase="warmup", epoch=0, loss_largest=2.0, entry_passed=True)
    run.log("epoch", phase="search", epoch=0, loss_largest=9.0, pruned=[])
    run.log("epoch", phase="search", epoch=0, loss_largest=1.5, pruned=[])  # again, after a kill
    run.log("finetune", id="abc", epoch=0, loss=0.5)
    run.log("finetune", id="abc", epoch=1, loss=0.25)
    run.log("judged", id="abc", loss=3.0)
    return run


def test_tensorboard_reads_every_curve_once(run: Run, tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for _ in range(2):  # the second time replaces the first
        assert write_scalars(run, tmp_path / "curves") == 4
    read = {}
    for place in ("supernet", "finetune/abc"):
        curves = reader.EventAccumulator(str(tmp_path / "curves" / place)).Reload()
        for tag in curves.Tags()["scalars"]:
            read[tag] = [(event.step, event.value) for event in curves.Scalars(tag)]
    assert read == {"supernet/loss_largest": [(0, 2.0), (1, 1.5)], "finetune/loss": [(0, 0.5), (1, 0.25)]}


def test_without_the_package_it_says_what_to_install(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        write_scalars(run, tmp_path / "curves")
    assert not (tmp_path / "curves").exists()
