"""Exits in a search and on finished networks: points of the front, folders that serve, kills, refusals."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml
from every import every
from PIL import Image
from safetensors.torch import save_file
from three_exits import network as three
from tiny_search import Quiet, comparable, config_of, searched, selected
from tiny_space import TINY

from nas import cli
from nas.arch import Arch
from nas.config.search import resolve
from nas.errors import UserError
from nas.exits import Runtime
from nas.exits.choice import ExitLogits, Pieces, choose
from nas.exits.net import Combine
from nas.files import write_json
from nas.latency.table import LatencyTable
from nas.lower.onnx import export as export_onnx
from nas.lower.verify import Disagreement
from nas.pipeline import search as pipeline
from nas.pipeline import train_one
from nas.pipeline.exits import existing, picks
from nas.pipeline.exits.add import _over_budget, _pieces, _within, add
from nas.pipeline.exits.serve import CLASSES, THRESHOLDS, Wishes, chosen, repriced
from nas.pipeline.setup import prepare
from nas.run.directory import Run
from nas.run.settings import Baseline
from nas.train.data import load, normalise
from nas.train.preprocessing import IMAGENET

OPTIONS = ["exits.method=joint", "exits.epochs=2", "exits.lose=5"]
FILES = {"model.onnx", "segment-0.onnx", "segment-1.onnx", "runtime.py", "curve.png", "shares.png",
         "first-and-last.png", THRESHOLDS, CLASSES, "exits.safetensors", "card.json"}
V100 = "gpu-v100"
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def finished(space_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("run") / "whole"
    return path, searched(config_of(space_file, *OPTIONS), path)


def cards(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [*result["front"], *result["dominated"]]


def test_a_front_has_points_with_and_without_exits_and_says_which(finished: tuple[Path, dict[str, Any]]) -> None:
    path, result = finished
    plain, early = ([card for card in cards(result) if bool(card["exits"]) is wanted] for wanted in (False, True))
    assert plain and len(early) == len(plain)
    at = {card["id"]: card for card in plain}
    for card in early:
        own = at[card["of"]]
        n, a = len(load("digits", data_dir=None, size=16, seed=0, limit=160).select), card["select_accuracy"]
        assert card["select_accuracy_se"] == pytest.approx((a * (1 - a) / n) ** 0.5)
        assert card["exits"] == [1] and card["id"] != own["id"] and card["worst_ms"][V100] > own["ms"][V100]
        assert card["prefix_ms"][V100][0] <= card["ms"][V100] <= card["worst_ms"][V100]
        assert card["worst_ms"][V100] == pytest.approx(card["prefix_ms"][V100][-1])
        assert sum(card["shares"]) == pytest.approx(1) and card["measured_ms"] == {V100: None}  # not here
        folder = path / Path(card["onnx"]).parent
        assert {p.name for p in folder.iterdir()} == FILES
        assert every((folder / name).read_bytes()[:8] == PNG for name in FILES if name.endswith(".png"))
        full = json.loads((folder / "card.json").read_text())
        assert Arch.from_json(full["arch"]).id == card["id"] and full["relative_diff"] < 1e-4
    assert every(card["ms"] == card["worst_ms"] for card in plain)
    assert {b["id"] for b in result["budgets"]} == set(at)


def test_what_the_runtime_says_is_what_the_card_says(finished: tuple[Path, dict[str, Any]]) -> None:
    path, result = finished
    card = next(card for card in cards(result) if card["exits"])
    data = load("digits", data_dir=None, size=16, seed=0, limit=160)
    for file in (path / card["onnx"], (path / card["onnx"]).parent):
        run = Runtime(file)
        answer = run(normalise(data.test.images, data).numpy())
        assert np.mean(answer.classes == data.test.labels.numpy()) == pytest.approx(card["accuracy"])
        assert run.counts / len(data.test) == pytest.approx(card["shares"])
        assert run.names == [str(n) for n in range(10)]


def test_interrupted_it_ends_the_same(finished: tuple[Path, dict[str, Any]], space_file: Path, tmp_path: Path) -> None:
    result, kills = None, 0
    while result is None:
        try:
            result = searched(config_of(space_file, *OPTIONS), tmp_path / "broken", Quiet(stop_at=60))
        except KeyboardInterrupt:
            kills += 1
            assert kills < 30
    assert kills >= 1
    assert comparable(result) == comparable(finished[1])


def test_export_writes_exits_anew(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    run, card = Run.existing(finished[0]), next(card for card in cards(finished[1]) if card["exits"])
    (file,) = pipeline.export(run, card["id"], None, tmp_path, Quiet()).to_json()["files"]
    assert file["relative_diff"] < 1e-4 and file["predicted_ms"] == card["ms"] and file["compared"] == 64
    old = onnx.load(finished[0] / card["onnx"]).SerializeToString()
    assert onnx.load(file["onnx"]).SerializeToString() == old
    names = {path.name for path in (finished[0] / card["onnx"]).parent.iterdir()} - {"exits.safetensors"}
    assert {"runtime.py", "card.json", "thresholds.json", "classes.txt", "curve.png"} <= names  # as docs/exits.md says
    assert names <= {path.name for path in (tmp_path / card["id"]).iterdir()}
    with pytest.raises(UserError, match=f"has early exits, which format=tflite does not; arch={card['of']}"):
        pipeline.export(run, card["id"], None, tmp_path, Quiet(), "tflite")


def test_one_pick_whose_files_differ_leaves_the_others_and_the_search(
        finished: tuple[Path, dict[str, Any]], space_file: Path, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(finished[0], tmp_path / "run")
    done = [tmp_path / "run" / Path(c["onnx"]).parent / "card.json" for c in cards(finished[1]) if c["exits"]]
    for file in (*done, tmp_path / "run" / "front.json"):
        file.unlink()
    write, calls = picks.write, list[Path]()

    def differing(folder: Path, *rest: Any) -> dict[str, Any]:
        calls.append(folder)
        if len(calls) == 1:
            raise Disagreement("model.onnx: differs")
        return write(folder, *rest)

    monkeypatch.setattr(picks, "write", differing)
    progress = Quiet()
    result = searched(config_of(space_file, *OPTIONS), tmp_path / "run", progress)
    left = [card for card in cards(finished[1]) if card["exits"] and Path(card["onnx"]).parent.parent.name
            != calls[0].parent.name]
    assert {c["id"] for c in cards(result) if c["exits"]} == {c["id"] for c in left} and len(left) == len(done) - 1
    assert any("no exits: model.onnx: differs" in note for note in progress.notes)


def test_int8_targets_are_refused(finished: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    run, int8 = Run.existing(finished[0]), LatencyTable("cpu-int8", {"device": "cpu", "precision": "int8"})
    monkeypatch.setattr(existing.setup, "priced_exits", lambda *rest: int8)
    plain = next(card["id"] for card in cards(finished[1]) if not card["exits"])
    with pytest.raises(UserError, match="target=gpu-v100: files with exits are float, and gpu-v100 is int8"):
        existing.pick(run, plain, None, False, Quiet())

    def with_int8(inputs: Any, *rest: Any) -> Any:
        return replace(inputs, costs={"cpu-int8": int8})

    monkeypatch.setattr(pipeline, "complete_tables", lambda inputs, targets, *rest: dict.fromkeys(targets, int8))
    monkeypatch.setattr(pipeline, "with_targets", with_int8)
    with pytest.raises(UserError, match="exits=joint: files with exits are float, and cpu-int8 is int8"):
        selected(run, ["cpu-int8"], [], Quiet(), fine_tune=True)
    assert not (finished[0] / "selections").exists()


def test_exits_are_not_added_to_exits(finished: tuple[Path, dict[str, Any]]) -> None:
    early = next(card for card in cards(finished[1]) if card["exits"])
    with pytest.raises(UserError, match=f"arch={early['id']}: has exits already; arch={early['of']} is the same"):
        existing.pick(Run.existing(finished[0]), early["id"], None, False, Quiet())


def test_a_baseline_takes_exits_for_a_target(space_file: Path, tmp_path: Path) -> None:
    flags = {"space": str(space_file), "arch": "smallest", "size": 16, "limit": 160, "threads": 1}
    settings = resolve(None, ["train.finetune_epochs=1", "train.batch=16"], flags, Baseline)
    run, quiet = Run.open(tmp_path / "run", settings.to_json()), Quiet()
    train_one.train(settings, run, None, quiet)
    with pytest.raises(UserError, match=r"target: .*run has none; give one"):
        existing.pick(run, None, None, False, quiet)
    model = existing.pick(run, None, "gpu-v100", True, quiet)
    assert model.target == "gpu-v100" and len(model.net.exits) == 1 and len(model.data.learn)


def test_a_file_of_one_channel_is_refused(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
                              torch.nn.Flatten(), torch.nn.Linear(4, 3)).eval()
    export_onnx(net, tmp_path / "gray.onnx", in_ch=1, size=16, metadata={})
    with pytest.raises(UserError, match=r"gray.onnx: its input \[1, 1, 16, 16\] has 1 channel"):
        existing.file(str(tmp_path / "gray.onnx"), None, None, "gpu-v100", lambda side, whites: None, 0)


def test_formats_without_exits_choose_among_picks_without(finished: tuple[Path, dict[str, Any]],
                                                          tmp_path: Path) -> None:
    """Where exits are best within a budget, and where all picks have them."""
    whole = tmp_path / "run"
    shutil.copytree(finished[0], whole)
    front = json.loads((whole / "front.json").read_text())
    for card in cards(front):
        card["select_accuracy"] = 1.0 if card["exits"] else card["select_accuracy"]
    early, plain = ([c for c in cards(front) if bool(c["exits"]) is wanted] for wanted in (True, False))
    write_json(whole / "front.json", {**front, "front": early, "dominated": plain})  # exits dominate what is without
    budget = max(card["ms"][V100] for card in plain)
    best = max(plain, key=lambda card: (card["select_accuracy"], -card["ms"][V100]))
    run, quiet = Run.existing(whole), Quiet()
    (file,) = pipeline.export(run, None, budget, tmp_path / "out", quiet, "features").to_json()["files"]
    assert file["id"] == best["id"] and Path(file["onnx"]).is_file()
    files = pipeline.export(run, None, None, tmp_path / "all", quiet, "features").to_json()["files"]
    assert {file["id"] for file in files} == {card["id"] for card in plain}
    write_json(whole / "front.json", {**front, "front": early, "dominated": []})
    with pytest.raises(UserError, match="format=features: has no early exits, and all picks"):
        pipeline.export(run, None, None, tmp_path / "out", quiet, "features")


def test_max_ms_bounds_the_worst_case(finished: tuple[Path, dict[str, Any]], space_file: Path, tmp_path: Path) -> None:
    limit = sorted(card["worst_ms"][V100] for card in cards(finished[1]))[-1] * 0.8
    result = searched(config_of(space_file, *OPTIONS, f"max_ms={limit}"), tmp_path / "run")
    assert cards(result) and every(card["worst_ms"][V100] <= limit for card in cards(result))
    for more, message in ((f"max_ms={limit / 1000}", r"max_ms=.* is below the smallest reachable"),
                          (f"budget_ms=[{2 * limit}]", r"budget_ms=.* is above max_ms=")):
        asked = [f"max_ms={limit}", more] if "budget" in more else [more]
        with pytest.raises(UserError, match=message):
            searched(config_of(space_file, *asked), tmp_path / more.split("=")[0])


def test_cascade_takes_an_epoch_a_phase_where_fine_tuning_has_fewer(space_file: Path, tmp_path: Path) -> None:
    result = searched(config_of(space_file, "exits.method=cascade", "train.finetune_epochs=1", "budgets=1",
                                "train.search_epochs=1"), tmp_path / "run")
    assert any(card["exits"] for card in cards(result))


@pytest.mark.parametrize("rule", ["search", "geometric"])
@pytest.mark.parametrize("seed", range(8))
def test_shipped_thresholds_are_as_right_as_those_that_were_chosen(seed: int, rule: str) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, 150)
    logits = np.stack([3 * np.eye(4)[labels] + level * rng.normal(0, 1, (150, 4)) for level in (4, 2.5, 2, 1.5)])
    heard = ExitLogits(logits.astype(np.float32), labels, Combine())
    pieces = Pieces(np.array([1.0, 2.0, 4.0, 3.0]), np.array([0.1, 0.2, 0.4, 0.5]))
    trained: Any = SimpleNamespace(select=heard, test=heard)
    served = chosen(trained, pieces, Wishes(rule=rule, lose=0.01))
    kept, point = choose(heard, pieces, accuracy=heard.accuracy - 0.01)
    assert served.kept == kept
    assert served.policy.point.accuracy >= min(point.accuracy, heard.accuracy - 0.01) - 1e-9
    if rule == "search":
        assert served.policy.point.mean_ms == pytest.approx(point.mean_ms)


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
        return repriced(served, [1.25 * ms for ms in pieces.prefix_ms(served.kept)])

    model, run = SimpleNamespace(final=final), Run.open(tmp_path / "run", {})
    served, found = _within(model, run, trained, Wishes(max_ms=9.45), pieces)
    assert served.kept == (0,) and found.policy.prefix_ms[-1] == pytest.approx(1.25 * 7.5)
    with pytest.raises(UserError, match=r"none fit|max_ms=9\.3: the file of these exits takes 9\.375 ms"):
        _within(model, run, trained, Wishes(max_ms=9.3), pieces)
    assert _within(model, run, trained, Wishes(), pieces)[0].kept in asked
    assert len(asked) == len(set(asked))  # what was timed is not timed again
    (event, *_) = run.events("timed")
    assert event["kept"] == list(asked[0])
    assert event["prefix_ms"] == pytest.approx(list(1.25 * pieces.prefix_ms(asked[0])))


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


def test_exits_that_are_measured_above_what_was_asked_say_so() -> None:
    times = {"measured_ms": 1.2, "measured_worst_ms": 2.05}
    assert _over_budget("cpu", times, Wishes(budget_ms=1.0, max_ms=2.0)) == {
        "over_budget": {"cpu": {"budget_ms": 1.0, "measured_ms": 1.2, "above": 0.2}}}  # the worst is 2.5 % above
    assert _over_budget("cpu", times, Wishes(max_ms=1.9)) == {
        "over_budget": {"cpu": {"budget_ms": 1.9, "measured_ms": 2.05, "above": 0.0789}}}
    assert _over_budget("cpu", times, Wishes()) == {}
    assert _over_budget("cpu", dict.fromkeys(times), Wishes(budget_ms=1.0)) == {}


def test_heads_for_a_finished_pick_without_labels(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    path, result = finished
    plain = next(card for card in result["front"] + result["dominated"] if not card["exits"])
    before = (path / "archs" / plain["id"] / "weights.safetensors").read_bytes()
    pictures(tmp_path / "any", 60)
    model = existing.pick(Run.existing(path), plain["id"], None, False, Quiet())
    run = Run.open(tmp_path / "out", {})
    card = add(model, run, Quiet(), images=tmp_path / "any", epochs=2, wishes=Wishes(lose=0.3))
    assert card["accuracy_without"] == 1.0 and card["labels"] == "the network's answers" and card["n"] == 12
    assert {p.name for p in (tmp_path / "out").iterdir()} >= FILES and card["kept"] == [0]
    assert card["select_accuracy"] <= 1 and card["measured_ms"] is None
    assert (path / "archs" / plain["id"] / "weights.safetensors").read_bytes() == before
    with pytest.raises(UserError, match="method=boost: known are cache, ztw"):
        add(model, run, Quiet(), method="boost")
    with pytest.raises(UserError, match="data or images"):
        add(model, run, Quiet())


def pictures(folder: Path, n: int) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for index in range(n):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / f"{index}.png")


def test_heads_for_any_onnx_file(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """A pick's file as if it were somebody else's, priced by a kernel model."""
    plain = next(card for card in cards(finished[1]) if not card["exits"])
    source = str(finished[0] / plain["onnx"])
    data = load("digits", data_dir=None, size=16, seed=0, limit=160)
    model = existing.file(source, None, None, "gpu-v100", lambda side, whites: data, 0)
    assert model.name == "model" and model.data.mean == pytest.approx(data.mean, rel=1e-5)
    run = Run.open(tmp_path / "out", {})
    card = add(model, run, Quiet(), method="ztw", epochs=2, wishes=Wishes(lose=0.2))
    assert card["accuracy_without"] == pytest.approx(plain["accuracy"]) and card["kept"] == [0]
    assert card["mean_ms"] <= card["worst_ms"] and card["target"] == "gpu-v100"
    assert {p.name for p in (tmp_path / "out").iterdir()} >= FILES
    again = add(model, run, Quiet(), method="ztw", epochs=2, wishes=Wishes(lose=0.2))
    assert again == card
    with pytest.raises(UserError, match="target=cpu-emerald-rapids: has rows for operators of search spaces"):
        existing.file(source, None, None, "cpu-emerald-rapids", lambda side, whites: data, 0)
    with pytest.raises(UserError, match="10 outputs without names, but the images have 4 classes"):
        existing.file(source, None, None, None, lambda side, whites: _four(data), 0)


def _four(data: Any) -> Any:
    return replace(data, classes=("a", "b", "c", "d"))


def test_a_torchvision_model_by_its_weights(tmp_path: Path) -> None:
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    save_file(squeezenet1_1(num_classes=7).state_dict(), tmp_path / "w.safetensors")
    model = existing.file("squeezenet1_1", tmp_path / "w.safetensors", 64, "gpu-v100", lambda side, whites: None, 0)
    assert len(model.net.exits) == 3 and model.net.classes == 7 and model.data.mean == IMAGENET[0]
    own = model.pieces()
    assert own.trunk.shape == own.heads.shape == (4,) and (own.trunk > 0).all() and own.heads[-1] == 0
    for name, weights, message in (("squeezenet", None, "did you mean 'squeezenet"),
                                   ("squeezenet1_1", None, "give its trained weights"),
                                   ("resnet18", tmp_path / "w.safetensors", "not weights of resnet18")):
        with pytest.raises(UserError, match=message):
            existing.file(name, weights, 64, None, lambda side, whites: None, 0)


def test_a_command_that_was_refused_does_not_block_the_mended_one(
        finished: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str]) -> None:
    plain = next(card for card in cards(finished[1]) if not card["exits"])
    pictures(tmp_path / "any", 40)
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


def test_what_a_search_with_exits_refuses(space_file: Path, tmp_path: Path) -> None:
    flat = {**TINY, "stages": [{"out": 8, "depth": 2, "stride": 1}]}
    (tmp_path / "flat.yaml").write_text(yaml.safe_dump(flat))
    with pytest.raises(UserError, match="exits=joint: tiny has no stride change behind its first slot"):
        searched(config_of(tmp_path / "flat.yaml", *OPTIONS), tmp_path / "run")
    with pytest.raises(UserError, match="epochs has no effect without a method"):
        config_of(space_file, "exits.epochs=3")
    for number, (words, message) in enumerate((
            (["exits.method=cascade", "exits.epochs=1"], "exits.epochs=1: cascade trains in 2 phases, each an epoch"),
            (["exits.method=boost", "exits.settings={tt: 1}"], "exits: boost: unknown setting 'tt'"),
            (["exits.method=boost", "exits.settings={t: [1.0]}"], r"exits: boost: t: expected a number, got \[1.0\]"),
            (["exits.method=boost", "exits.settings={t: 2}"], "exits: boost: t 2: a factor from 0 to 1"),
            (["exits.method=boost", "train.finetune_epochs=0"], "exits=boost: exits are trained with fine-tuned"))):
        with pytest.raises(UserError, match=message):
            searched(config_of(space_file, *words), tmp_path / f"refused{number}")
        assert not Run.existing(tmp_path / f"refused{number}").events("epoch")  # before anything is trained
    assert picks._phases(prepare(config_of(space_file, "exits.method=cascade"), Run(tmp_path / "refused0"),
                                   ["gpu-v100"], Quiet()), three()) == 3
    assert "exits" not in config_of(space_file).to_json() and "max_ms" not in config_of(space_file).to_json()
