"""Fine-tuning of the picks side by side: the same weights as one after the other, in whatever order they end."""

import copy
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from every import every
from tiny_search import Quiet, config_of, searched, weights
from tiny_space import TINY
from torch import Tensor, nn

from nas.arch import Arch
from nas.config.search import Config
from nas.decision import grown, largest
from nas.errors import UserError
from nas.ops.layers import Dropout
from nas.pipeline import finetune
from nas.pipeline.setup import prepare_inputs
from nas.plan import macs, plan
from nas.run import events
from nas.run.directory import Run
from nas.subnet import Subnet
from nas.supernet.net import Supernet
from nas.training import randomness
from nas.training.recipes import FineTuningRecipe, shares_of_growth

Made = tuple[Config, Path]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A finished run of a space whose head drops out, every pick learning from labels and changed images alone."""
    home = tmp_path_factory.mktemp("picks")
    space = copy.deepcopy(TINY) | {"head": {"op": "head(hidden=16, dropout_percent=50)"}}
    (home / "dropout.yaml").write_text(yaml.safe_dump(space))
    config = config_of(home / "dropout.yaml", "train.distill=none", "budgets=2", "train.policy=trivialaugment",
                       "train.erase=0.25")
    searched(config, home / "run")
    return config, home / "run"


@pytest.fixture
def untuned(trained: Made, tmp_path: Path) -> Made:
    """The same run before its picks were fine-tuned."""
    shutil.copytree(trained[1], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "archs")
    for name in ("front.json", "front.png"):
        (tmp_path / "run" / name).unlink()
    return trained[0], tmp_path / "run"


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """``--threads 1`` is part of the run that is continued here; two are given to its picks."""
    own = finetune.train_picks

    def on_two(*given: Any) -> None:
        torch.set_num_threads(2)
        try:
            own(*given)
            assert torch.get_num_threads() == 2
        finally:
            torch.set_num_threads(1)

    monkeypatch.setattr("nas.pipeline.search.train_picks", on_two)


def test_side_by_side_ends_as_one_after_the_other(trained: Made, untuned: Made, two_threads: None,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    used = list[int]()
    own = finetune.side_by_side
    monkeypatch.setattr(finetune, "side_by_side", lambda work, at_once, stop: (used.append(at_once),
                                                                            own(work, at_once, stop)))
    searched(*untuned)
    assert used == [2] and len(weights(trained[1])) >= 2
    assert weights(untuned[1]) == weights(trained[1])


@pytest.mark.parametrize("step", [1, 12, 25])
def test_interrupted_side_by_side_it_continues(trained: Made, untuned: Made, two_threads: None, step: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        searched(*untuned, Quiet(stop_at=step))
    assert not (untuned[1] / "front.json").exists()
    searched(*untuned)
    assert weights(untuned[1]) == weights(trained[1])
    assert not list(untuned[1].rglob("finetune.pt"))


def test_one_that_fails_stops_the_others_and_is_what_is_raised(untuned: Made, two_threads: None,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    write = Run.write

    def full(run: Run, name: str, fill: Callable[[Any], object]) -> None:
        if name.endswith(finetune.CHECKPOINT):
            raise UserError(f"{name}: No space left on device")
        write(run, name, fill)

    monkeypatch.setattr(Run, "write", full)
    with pytest.raises(UserError, match="No space left"):
        searched(*untuned)
    assert not weights(untuned[1])


def test_an_operator_with_randomness_of_its_own_trains_alone(untuned: Made, two_threads: None,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*given: Any) -> None:
        raise AssertionError("side by side")

    monkeypatch.setattr(finetune, "side_by_side", forbidden)
    monkeypatch.setattr("nas.ops.heads.Dropout", nn.Dropout)
    searched(*untuned)
    assert len(weights(untuned[1])) >= 2


def test_dropout_draws_from_the_generator_that_it_was_given() -> None:
    layer, x = Dropout(0.25).train(), torch.ones(4, 1000)

    def dropped(seed: int) -> Tensor:
        with randomness.drawing_from(nn.Sequential(layer), randomness.generator(seed)):
            return layer(x)

    before = torch.get_rng_state()
    first = dropped(0)
    assert torch.equal(first, dropped(0)) and not torch.equal(first, dropped(1))
    assert torch.equal(before, torch.get_rng_state())
    kept = first[first > 0]
    assert torch.allclose(kept, torch.tensor(4 / 3)) and 0.72 < len(kept) / x.numel() < 0.78
    layer(x)  # without a generator it is nn.Dropout
    assert not torch.equal(before, torch.get_rng_state())
    assert torch.equal(layer.eval()(x), x)


@pytest.mark.parametrize("method", ["hints", "mutual", "assistant", "born-again"])
def test_who_teaches_whom_and_it_continues(trained: Made, untuned: Made, tmp_path: Path, method: str,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(Path(trained[0].space), f"train.distill={method}", "budgets=2")
    Run(untuned[1]).write_json("config.json", config.to_json())
    whole = Path(shutil.copytree(untuned[1], tmp_path / "whole"))
    taught = dict[str, tuple[list[Any], list[Any] | None]]()
    own = finetune.FineTuning

    def noted(name: str, model: Any, teacher: Any, *more: Any) -> Any:
        taught[name] = model.keys, teacher.keys if teacher is not None else None
        tuning = own(name, model, teacher, *more)
        assert (tuning.distiller is None) == (teacher is None)  # who has a teacher learns from it
        return tuning

    monkeypatch.setattr(finetune, "FineTuning", noted)
    searched(config, whole)
    size = {name: sum(map(macs, keys)) for name, (keys, _) in taught.items()}
    delivered = sorted((name for name in taught if "/" not in name), key=lambda name: (-size[name], name))
    assert len(delivered) >= 2
    keys, teachers = ([taught[name][i] for name in delivered] for i in (0, 1))
    if method == "born-again":
        assert teachers == keys and every(taught[f"{name}/first"] == (taught[name][0], None) for name in delivered)
    else:
        assert teachers == [None, *(keys[:-1] if method == "assistant" else [keys[0]] * (len(keys) - 1))]
    with pytest.raises(KeyboardInterrupt):
        searched(config, untuned[1], Quiet(stop_at=25))
    searched(config, untuned[1])
    assert weights(untuned[1]) == weights(whole)
    assert not [file for file in untuned[1].rglob("*.pt") if file.name != "supernet.pt"]


class Shared:
    """Gives networks weights that they share, and notes who inherited them, and when."""

    def __init__(self, net: Supernet) -> None:
        self.net, self.begun = net, dict[str, dict[str, Tensor]]()

    def inherit(self, arch: Arch) -> nn.Module:
        network = self.net.inherit(arch)
        self.begun[arch.id] = {name: p.detach().clone() for name, p in network.named_parameters()}
        return network

    def take_back(self, arch: Arch, network: Subnet) -> None:
        self.net.take_back(arch, network)


@pytest.mark.parametrize(("counts", "shares"), [
    ([], []), ([5.0], [1.0]),
    ([1.0, 2.0, 4.0], [3.5, 0.875, 0.4375]),  # of 7 the first computes a half, each other one a quarter
    ([3.0, 3.0], [4 / 3, 2 / 3]),
])
def test_picks_that_grow_compute_as_much_as_each_other_and_the_first_twice(counts: list[float],
                                                                           shares: list[float]) -> None:
    assert shares_of_growth(counts) == pytest.approx(shares)


def test_picks_grow_from_the_smallest_to_the_largest(trained: Made, tmp_path: Path) -> None:
    """Each begins with the head that the one before ended with, also where another call has trained that one.

    Of two, the smaller one computes twice as much as the larger one.
    """
    config, progress = trained[0], Quiet()
    inputs = prepare_inputs(config, Run.open(tmp_path / "run", config.to_json()), config.target, progress)
    prices = inputs.prices["gpu-v100"]
    archs = [largest(inputs.layout, prices), *grown(inputs.layout, prices, 2)]  # the largest twice
    recipe = FineTuningRecipe(epochs=1, batch=16, lr=0.01, weight_decay=0.0, label_smoothing=0.0, augment="none",
                              distill="grow", distill_weight=0.0)

    def trained_by(stop_at: int | None) -> Shared:
        with randomness.seeded("shared"):
            origin = Shared(Supernet(inputs.layout))
        finetune.train_picks(inputs, origin, list(dict.fromkeys(archs)), "", recipe, Quiet(stop_at))
        return origin

    small, large = archs[1], archs[0]
    counts = [sum(map(macs, plan(inputs.layout, arch))) for arch in (small, large)]
    longer = round(2 / 3 * sum(counts) / counts[0])
    assert longer > 1
    with pytest.raises(KeyboardInterrupt):
        trained_by(9 * longer + 3)  # nine steps an epoch: in the second network
    origin = trained_by(None)
    trained_epochs = Counter(event.id for event in inputs.run.events(events.FineTuned))
    assert trained_epochs == {small.id: longer, large.id: 1}
    assert list(origin.begun) == [large.id]  # the small one was trained before
    ended = finetune.load_weights(inputs, small, "").head.state_dict()
    begun = {name.removeprefix("head."): p for name, p in origin.begun[large.id].items() if name.startswith("head.")}
    assert begun and every(torch.equal(p, ended[name]) for name, p in begun.items())
