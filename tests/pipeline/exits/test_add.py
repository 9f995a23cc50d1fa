"""Exits that are added to what is there: a finished pick, an ONNX file, a model of torchvision."""

from __future__ import annotations

import json
import math
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pictures import noise
from safetensors.torch import save_file
from searched_exits import FILES, cards
from three_exits import network as three
from tiny_search import Quiet

from nas import cli
from nas.config.search import resolve
from nas.errors import UserError
from nas.exits.choice import ExitLogits, Pieces
from nas.exits.net import Combine
from nas.lower.onnx import export as export_onnx
from nas.pipeline import train_one
from nas.pipeline.exits import existing
from nas.pipeline.exits.add import _choose_within_max_ms, _pieces, add
from nas.pipeline.exits.serve import Wishes, checked_wishes, with_prefix_ms
from nas.run import events
from nas.run.directory import Run
from nas.run.settings import Baseline
from nas.training.data import load
from nas.training.preprocessing import IMAGENET


def test_exits_are_not_added_to_exits(finished: tuple[Path, dict[str, Any]]) -> None:
    early = next(card for card in cards(finished[1]) if card["exits"])
    with pytest.raises(UserError, match=f"arch={early['id']}: has exits already; arch={early['of']} is the same"):
        existing.load_pick(Run.existing(finished[0]), early["id"], None, False, Quiet())


def test_a_baseline_takes_exits_for_a_target(space_file: Path, tmp_path: Path) -> None:
    flags = {"space": str(space_file), "arch": "smallest", "data": "digits", "size": 16, "limit": 160, "threads": 1}
    settings = resolve(None, ["train.finetune_epochs=1", "train.batch=16"], flags, Baseline)
    run, quiet = Run.open(tmp_path / "run", settings.to_json()), Quiet()
    train_one.train_network(settings, run, None, quiet)
    with pytest.raises(UserError, match=r"target: .*run has none; give one"):
        existing.load_pick(run, None, None, False, quiet)
    model = existing.load_pick(run, None, "gpu-v100", True, quiet)
    assert model.target == "gpu-v100" and len(model.net.exits) == 1 and len(model.data.learn)


def test_a_file_of_one_channel_is_refused(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
                              torch.nn.Flatten(), torch.nn.Linear(4, 3)).eval()
    export_onnx(net, tmp_path / "gray.onnx", in_ch=1, size=16, metadata={})
    with pytest.raises(UserError, match=r"gray.onnx: its input \[1, 1, 16, 16\] has 1 channel"):
        existing.load_file(str(tmp_path / "gray.onnx"), None, None, "gpu-v100", lambda side, whites: None, 0)


def test_the_measured_file_keeps_to_max_ms(tmp_path: Path) -> None:
    """Two exits; the file takes 1.25 times what is predicted."""
    net = three()
    labels = np.random.default_rng(0).integers(0, 4, 200)
    logits = np.stack([3 * np.eye(4)[labels]] * 3).astype(np.float32)
    heard = ExitLogits(logits, labels, Combine())
    trained: Any = SimpleNamespace(select=heard, test=heard, network=lambda kept: net)
    pieces = Pieces(np.array([1.0, 2.0, 4.0]), np.array([0.1, 0.2, 0.4]))
    asked: list[tuple[int, ...]] = []

    def final(trained: Any, served: Any, folder: Path) -> Any:
        asked.append(served.kept)
        return with_prefix_ms(served, [1.25 * ms for ms in pieces.prefix_ms(served.kept)])

    model, run = SimpleNamespace(timed=final), Run.open(tmp_path / "run", {})
    served, found = _choose_within_max_ms(model, run, trained, Wishes(max_ms=9.45), pieces)
    assert served.kept == (0,) and found.policy.prefix_ms[-1] == pytest.approx(1.25 * 7.5)
    with pytest.raises(UserError, match=r"none fit|max_ms=9\.3: the file of these exits takes 9\.375 ms"):
        _choose_within_max_ms(model, run, trained, Wishes(max_ms=9.3), pieces)
    assert _choose_within_max_ms(model, run, trained, Wishes(), pieces)[0].kept in asked
    assert len(asked) == len(set(asked))  # what was timed is not timed again
    (event, *_) = run.events(events.ExitsTimed)
    assert event.kept == list(asked[0])
    assert event.prefix_ms == pytest.approx(list(1.25 * pieces.prefix_ms(asked[0])))


def test_what_exits_are_chosen_by_is_measured_once(tmp_path: Path) -> None:
    calls: list[int] = []

    def measure() -> Pieces:
        calls.append(1)
        return Pieces(np.array([0.1, 0.2, 1 / 3]), np.array([0.01, 0.02, 0.0]))

    run, model = Run.open(tmp_path / "run", {}), SimpleNamespace(pieces=measure)
    for _ in range(2):
        pieces = _pieces(model, run)
        assert pieces.trunk.tolist() == [0.1, 0.2, 1 / 3] and pieces.heads.tolist() == [0.01, 0.02, 0.0]
    assert calls == [1]


def test_heads_for_a_finished_pick_without_labels(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    path, result = finished
    plain = next(card for card in result["front"] + result["dominated"] if not card["exits"])
    before = (path / "archs" / plain["id"] / "weights.safetensors").read_bytes()
    noise(tmp_path / "any", 60)
    model = existing.load_pick(Run.existing(path), plain["id"], None, False, Quiet())
    run = Run.open(tmp_path / "out", {})
    card = add(model, run, Quiet(), images=tmp_path / "any", epochs=2, wishes=Wishes(lose=0.3))
    assert card.accuracy_without == 1.0 and card.labels == "the network's answers" and card.n == 12
    assert {p.name for p in (tmp_path / "out").iterdir()} >= FILES and card.kept == [0]
    assert card.compared == card.n  # with PyTorch, on every image that was judged
    assert card.select_accuracy <= 1 and card.measured_ms is None
    assert (path / "archs" / plain["id"] / "weights.safetensors").read_bytes() == before
    with pytest.raises(UserError, match="method=boost: known are cache, ztw"):
        add(model, run, Quiet(), method="boost")
    with pytest.raises(UserError, match="data or images"):
        add(model, run, Quiet())


def test_heads_for_any_onnx_file(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """A pick's file as if it were somebody else's, priced by a kernel model."""
    plain = next(card for card in cards(finished[1]) if not card["exits"])
    source = str(finished[0] / plain["onnx"])
    data = load("digits", data_dir=None, size=16, seed=0, limit=160)
    model = existing.load_file(source, None, None, "gpu-v100", lambda side, whites: data, 0)
    assert model.name == "model" and model.data.mean == pytest.approx(data.mean, rel=1e-5)
    run = Run.open(tmp_path / "out", {})
    card = add(model, run, Quiet(), method="ztw", epochs=2, wishes=Wishes(lose=0.2))
    assert card.accuracy_without == pytest.approx(plain["accuracy"]) and card.kept == [0]
    assert card.mean_ms <= card.worst_ms and card.target == "gpu-v100"
    assert {p.name for p in (tmp_path / "out").iterdir()} >= FILES
    again = add(model, run, Quiet(), method="ztw", epochs=2, wishes=Wishes(lose=0.2))
    assert again == card
    with pytest.raises(UserError, match="target=cpu-emerald-rapids: has rows for operators of search spaces"):
        existing.load_file(source, None, None, "cpu-emerald-rapids", lambda side, whites: data, 0)
    with pytest.raises(UserError, match="10 outputs without names, but the images have 4 classes"):
        existing.load_file(source, None, None, None, lambda side, whites: _four(data), 0)


def _four(data: Any) -> Any:
    return replace(data, classes=("a", "b", "c", "d"))


@pytest.mark.parametrize(("wishes", "message"), [
    (Wishes(budget_ms=0.0), "budget_ms=0: not a number of milliseconds above 0"),
    (Wishes(max_ms=math.inf), "max_ms=inf: not a number of milliseconds above 0"),
    (Wishes(kind="votes"), "confidence=votes: known are max-softmax, entropy, patience"),
    (Wishes(lose=1.0), "lose=100: points of accuracy, from 0 to below 100"),
])
def test_wishes_that_cannot_be_are_one_line(wishes: Wishes, message: str) -> None:
    with pytest.raises(UserError) as error:
        checked_wishes(wishes)
    assert str(error.value) == message
    assert checked_wishes(Wishes(budget_ms=1.0, max_ms=2.0)) == Wishes(budget_ms=1.0, max_ms=2.0)


def test_a_torchvision_model_by_its_weights(tmp_path: Path) -> None:
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    save_file(squeezenet1_1(num_classes=7).state_dict(), tmp_path / "w.safetensors")
    model = existing.load_file("squeezenet1_1", tmp_path / "w.safetensors", 64, "gpu-v100",
                               lambda side, whites: None, 0)
    assert len(model.net.exits) == 3 and model.net.classes == 7 and model.data.mean == IMAGENET[0]
    own = model.pieces()
    assert own.trunk.shape == own.heads.shape == (4,) and (own.trunk > 0).all() and own.heads[-1] == 0
    for name, weights, message in (("squeezenet", None, "did you mean 'squeezenet"),
                                   ("squeezenet1_1", None, "give its trained weights"),
                                   ("resnet18", tmp_path / "w.safetensors", "not weights of resnet18")):
        with pytest.raises(UserError, match=message):
            existing.load_file(name, weights, 64, None, lambda side, whites: None, 0)


def test_a_command_that_was_refused_does_not_block_the_mended_one(
        finished: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str]) -> None:
    plain = next(card for card in cards(finished[1]) if not card["exits"])
    noise(tmp_path / "any", 40)
    monkeypatch.chdir(tmp_path)
    shutil.copy(finished[0] / plain["onnx"], "net.onnx")

    def call(*more: str) -> tuple[int, str]:
        before = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as end:
                cli.main(["exits", "net.onnx", "--target", "gpu-v100", "--epochs", "1", "--lose", "60", *more])
        finally:
            signal.signal(signal.SIGTERM, before)
        return int(end.value.code or 0), capfd.readouterr().err

    code, errors = call("--images", "any", "--method", "boost")
    assert code == 2 and "--method boost: known are" in errors and not Path("net-exits").exists()
    code, errors = call()
    assert code == 2 and "--data or --images" in errors
    code, errors = call("--images", "any", "--max-ms", "0.00001")
    assert code == 2 and Path("net-exits/exits.safetensors").exists(), errors
    trained = Path("net-exits/exits.safetensors").stat().st_mtime_ns
    code, errors = call("--images", "any", "--seed", "1")
    assert code == 2 and "net-exits: began with --seed = 0, now 1; give another --out" in errors
    assert call("--images", "any", "--max-ms", "5")[0] == 0
    assert Path("net-exits/exits.safetensors").stat().st_mtime_ns == trained
    assert json.loads(Path("net-exits/config.json").read_text())["max_ms"] == 5
    code, errors = call("--images", "any")
    assert code == 2 and "began with --max-ms = 5.0, now null; give another --out" in errors


def test_what_files_cannot_hold_is_refused_before_anything_is_trained(tmp_path: Path,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, int, int]] = []

    def refuse(net: Any, in_ch: int, size: int) -> None:
        asked.append((net, in_ch, size))
        raise UserError("exits: no rule for cumsum")

    def fail(*_: object, **__: object) -> None:
        pytest.fail("trained")

    monkeypatch.setattr("nas.pipeline.exits.add.check", refuse)
    monkeypatch.setattr("nas.pipeline.exits.add.train_exits", fail)
    model: Any = SimpleNamespace(net="net", data=SimpleNamespace(in_ch=3, size=16, augment="none"))
    run = Run.open(tmp_path / "run", {})
    with pytest.raises(UserError, match="no rule for cumsum"):
        add(model, run, Quiet())
    assert asked == [("net", 3, 16)] and not run.events(events.AnyEvent)
