"""Exits in a search and on finished networks: points of the front, folders that serve, kills, refusals."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from every import every
from searched_exits import FILES, OPTIONS, cards
from three_exits import network as three
from tiny_search import Quiet, comparable, config_of, searched, searched_in_pieces, selected
from tiny_space import TINY

from nas.arch import Arch
from nas.errors import UserError
from nas.exits import Runtime
from nas.exits.choice import ExitLogits, Pieces, choose
from nas.exits.net import Combine
from nas.files import write_json
from nas.latency.meta import Meta
from nas.latency.table import LatencyTable
from nas.lower.verify import Disagreement
from nas.pipeline import search as pipeline
from nas.pipeline.exits import existing, picks
from nas.pipeline.exits.add import _over_budget
from nas.pipeline.exits.card import UNMEASURED, Delivered
from nas.pipeline.exits.serve import Wishes, choose_exits
from nas.pipeline.setup import prepare_inputs
from nas.run import events
from nas.run.directory import Run
from nas.run.records import Excess
from nas.training.data import load, normalise

V100 = "gpu-v100"
PNG = b"\x89PNG\r\n\x1a\n"


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
    assert any(card["ms"][V100] < card["worst_ms"][V100] for card in early)  # of the mean image, some of which leave
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
    result, kills = searched_in_pieces(config_of(space_file, *OPTIONS), tmp_path / "broken", steps=60, most=30)
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
    write, calls = picks.write_files, list[Path]()

    def differing(folder: Path, *rest: Any) -> Delivered:
        calls.append(folder)
        if len(calls) == 1:
            raise Disagreement("model.onnx: differs")
        return write(folder, *rest)

    monkeypatch.setattr(picks, "write_files", differing)
    progress = Quiet()
    result = searched(config_of(space_file, *OPTIONS), tmp_path / "run", progress)
    left = [card for card in cards(finished[1]) if card["exits"] and Path(card["onnx"]).parent.parent.name
            != calls[0].parent.name]
    assert {c["id"] for c in cards(result) if c["exits"]} == {c["id"] for c in left} and len(left) == len(done) - 1
    assert any("no exits: model.onnx: differs" in note for note in progress.notes)


def test_int8_targets_are_refused(finished: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    run, int8 = Run.existing(finished[0]), LatencyTable("cpu-int8", Meta(device="cpu", precision="int8"))
    monkeypatch.setattr(existing.setup, "priced_exits", lambda *rest: int8)
    plain = next(card["id"] for card in cards(finished[1]) if not card["exits"])
    with pytest.raises(UserError, match="target=gpu-v100: files with exits are float, and gpu-v100 is int8"):
        existing.load_pick(run, plain, None, False, Quiet())

    def with_int8(inputs: Any, *rest: Any) -> Any:
        return replace(inputs, costs={"cpu-int8": int8})

    monkeypatch.setattr(pipeline, "complete_tables", lambda inputs, targets, *rest: dict.fromkeys(targets, int8))
    monkeypatch.setattr(pipeline, "with_targets", with_int8)
    with pytest.raises(UserError, match="exits=joint: files with exits are float, and cpu-int8 is int8"):
        selected(run, ["cpu-int8"], [], Quiet(), fine_tune=True)
    assert not (finished[0] / "selections").exists()


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
    served = choose_exits(trained, pieces, Wishes(rule=rule, lose=0.01))
    kept, point = choose(heard, pieces, accuracy=heard.accuracy - 0.01)
    assert served.kept == kept
    assert served.policy.point.accuracy >= min(point.accuracy, heard.accuracy - 0.01) - 1e-9
    if rule == "search":
        assert served.policy.point.mean_ms == pytest.approx(point.mean_ms)


def test_exits_that_are_measured_above_what_was_asked_say_so() -> None:
    times = UNMEASURED.model_copy(update={"measured_ms": 1.2, "measured_worst_ms": 2.05})
    assert _over_budget("cpu", times, Wishes(budget_ms=1.0, max_ms=2.0)) == {
        "cpu": Excess(budget_ms=1.0, measured_ms=1.2, above=0.2)}  # the worst is 2.5 % above
    assert _over_budget("cpu", times, Wishes(max_ms=1.9)) == {
        "cpu": Excess(budget_ms=1.9, measured_ms=2.05, above=0.0789)}
    assert _over_budget("cpu", times, Wishes()) == {}
    assert _over_budget("cpu", UNMEASURED, Wishes(budget_ms=1.0)) == {}


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
        assert not Run.existing(tmp_path / f"refused{number}").events(events.Epoch)  # before anything is trained
    assert picks._count_phases(prepare_inputs(config_of(space_file, "exits.method=cascade"), Run(tmp_path / "refused0"),
                                   ["gpu-v100"], Quiet()), three()) == 3
