"""Two processes over gloo train what one does in two micro-batches, also when they were stopped in between."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml
from tiny_search import Quiet, config_of
from tiny_space import TINY

from nas.config.search import Config
from nas.decision import largest
from nas.pipeline import supernet
from nas.pipeline.budgets import budgets_of_target
from nas.pipeline.setup import prepare_inputs
from nas.run import events
from nas.run.directory import Run
from nas.training import evaluation, torchrun
from nas.training.ranks import ALONE, Ranks, joined
from nas.training.supernet_training import SupernetTraining

ROOT = Path(__file__).parent.parent.parent


@contextmanager
def another_process(monkeypatch: pytest.MonkeyPatch) -> Iterator["subprocess.Popen[str]"]:
    """Makes this process the first of two, as torchrun would, and starts the second."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # at a port that nobody else has
    given = {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    command, path = [sys.executable, "-m", "nas", "search"], os.pathsep.join([str(ROOT), *sys.path])
    second = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              env={**os.environ, **given, "RANK": "1", "LOCAL_RANK": "1", "PYTHONPATH": path})
    with monkeypatch.context() as patch:
        for name, value in {**given, "RANK": "0", "LOCAL_RANK": "0"}.items():
            patch.setenv(name, value)
        try:
            yield second
        finally:
            second.kill()
            second.wait()


def test_without_torchrun_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")  # some other launcher's
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (torchrun.rank(), torchrun.processes(), torchrun.leads()) == (0, 1, True)
    tensor = torch.ones(2)
    ALONE.add_up([tensor])
    assert torch.equal(tensor, torch.ones(2)) and ALONE.broadcast("x") == "x" and ALONE.mean({"a": 3.0}) == {"a": 3.0}
    assert [list(range(5)[Ranks(rank, 2).share]) for rank in (0, 1)] == [[0, 2, 4], [1, 3]]


def trained(config: Config, path: Path, progress: Any = None) -> SupernetTraining:
    """A search as far as its supernet."""
    progress, run = progress or Quiet(), Run.open(path, config.to_json())
    with run.lock(), joined() as group:
        inputs = prepare_inputs(config, run, config.target, progress)
        limits = {t: budgets_of_target(inputs, inputs.layout, t, [], config.budgets) for t in config.target}
        return supernet.train_supernet(inputs, limits, group, progress)


@pytest.mark.parametrize("size", [16, [16, 8]], ids=str)
def test_two_processes_equal_two_micro_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: object) -> None:
    space = tmp_path / "tiny.yaml"  # with dropout: each micro-batch has its own, whoever computes it
    space.write_text(yaml.safe_dump({**TINY, "head": {"op": "head(hidden=16, dropout_percent=20)"}}))
    settings = config_of(space, "train.accumulate=2", "train.ema=0.5").to_json()
    config = Config.from_json({**settings, "size": size}, "test")
    one = trained(config, tmp_path / "one")
    monkeypatch.setattr(supernet, "CHECKPOINT_EVERY_S", 0.0)
    with another_process(monkeypatch) as second, pytest.raises(KeyboardInterrupt):
        trained(config, tmp_path / "two", Quiet(stop_at=15))
    assert Run.existing(tmp_path / "two").has("supernet.pt")
    with another_process(monkeypatch) as second:
        two = trained(config, tmp_path / "two")
        out, err = second.communicate()
    assert (second.returncode, out) == (0, ""), err
    assert one.average and two.average and one.supernet.layout == two.supernet.layout
    tensors = [{**t.gates.state_dict(), **t.supernet.state_dict(), **t.average.net.state_dict()} for t in (one, two)]
    for name, tensor in tensors[0].items():
        if "running_" not in name and "num_batches" not in name:  # batch norms are recomputed before judging
            assert torch.allclose(tensor, tensors[1][name], rtol=1e-4, atol=1e-6), name
    arch = largest(one.supernet.layout, one.prices[0])
    nets = [training.inherit(arch) for training in (one, two)]
    for net in nets:
        evaluation.recalibrate(net, evaluation.calibration_images(one.data, 64, 16, one.device, 0))
    for name, tensor in nets[0].state_dict().items():
        assert torch.allclose(tensor, nets[1].state_dict()[name], rtol=1e-4, atol=1e-5), name
    logged = [[event.loss_largest for event in Run.existing(tmp_path / name).events(events.Epoch)]
              for name in ("one", "two")]  # means over both processes; "two" has one epoch twice at most
    assert logged[0] == pytest.approx(logged[1][-len(logged[0]):], rel=1e-4)
