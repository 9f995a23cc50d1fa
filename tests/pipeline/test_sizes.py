"""Input size as a choice, end to end: a size each budget, costs of that size, files that take images of it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from every import every
from tiny_search import Quiet, comparable, config_of, searched, searched_in_pieces, selected
from tiny_space import TINY

from nas.arch import Arch
from nas.cli import render
from nas.config.search import Config, fingerprint, resolve
from nas.errors import UserError
from nas.latency.meta import Meta
from nas.latency.table import LatencyTable, Row
from nas.pipeline import search as pipeline
from nas.pipeline import supernet
from nas.pipeline.budgets import Bounds
from nas.pipeline.evaluate import evaluate
from nas.pipeline.setup import load_finished_inputs
from nas.plan import OpKey, Task, candidates, layouts, macs, plan
from nas.report.run_data import collect
from nas.run import events
from nas.run.directory import Run
from nas.run.records import Front
from nas.space import Space

SIZES = [16, 8]
AT = layouts(Space.parse(TINY, "tiny.yaml"), Task(16, 3, 10), SIZES)


def ms(key: OpKey) -> float:
    """Of the phone: a network at 8 pixels costs a good quarter of what it does at 16."""
    return 0.001 + macs(key) * 1e-6


def phone(file: Path, sizes: list[int]) -> Path:
    rows = [Row.of(key, ms=ms(key), raw_ms=ms(key), p10_ms=ms(key), p90_ms=ms(key), n=5, how="measured")
            for key in dict.fromkeys(key for size in sizes for key in candidates(AT[size]))]
    LatencyTable("phone", Meta(device="phone"), rows).save(file)
    return file


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(phone(tmp_path_factory.mktemp("tables") / "phone.json", SIZES))


def settings(space_file: Path, target: str, *more: str, size: Any = SIZES) -> Config:
    config = config_of(space_file, *more, target=target)
    return Config.from_json({**config.to_json(), "size": size}, "test")


@pytest.fixture(scope="module")
def finished(space_file: Path, target: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Any]]:
    path = tmp_path_factory.mktemp("run") / "whole"
    result = searched(settings(space_file, target), path)
    return Run.existing(path), result


def cards_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [*result["front"], *result["dominated"]]


def test_one_size_is_recorded_as_before_and_several_are_a_setting(space_file: Path) -> None:
    one, same, two = (resolve(None, [], {"target": ["cpu"], "size": size}) for size in (16, [16], [8, 16]))
    assert one == same and one.to_json()["size"] == 16 and (one.side, one.sizes) == (16, [])
    assert fingerprint(one) == fingerprint(same) != fingerprint(two)
    assert (two.to_json()["size"], two.side, two.sizes) == ([16, 8], 16, [16, 8])
    assert resolve(None, ["size=[8, 16]"], {"target": ["cpu"]}) == two == Config.from_json(two.to_json(), "test")


@pytest.mark.parametrize(("size", "more", "expected"), [
    ([16, 7, 16], [], "a whole number from 8 to 1024"), ([16, 16], [], "every size once"),
    ([16, 8.5], [], "a whole number"),
    ([8, 16], ["exits={method: boost}"], r"^exits.method=boost is not there for several sizes \(size=\[16, 8\]\)"),
    ([8, 16], ["sram_kb=200.0"], r"^sram_kb=200 is not there for several sizes \(size=\[16, 8\]\): give one size"),
    ([8, 16], ["selector=bayes", "objective=mnas-soft"], "^objective=mnas-soft is not there for several sizes")])
def test_what_is_not_there_is_refused(size: Any, more: list[str], expected: str) -> None:
    with pytest.raises(UserError, match=expected) as error:
        resolve(None, more, {"target": ["cpu"], "size": size})
    assert "\n" not in str(error.value)


def test_a_size_of_other_strides_is_refused_with_those_that_go(space_file: Path, target: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"size=8: tiny has other strides there than at 32.*from 13 on go with 32"):
        # with a first stride of 4 the last map is 4x4 or larger from 7 * 2 - 1 = 13 pixels on
        stem: Any = TINY["stem"]
        deep = {**TINY, "stem": {**stem, "stride": 2}}
        layouts(Space.parse(deep, "tiny.yaml"), Task(32, 3, 10), [32, 8])
    with pytest.raises(UserError, match=r"not in the table .*phone.json.*; run: profile\(.*size=8"):
        searched(settings(space_file, str(phone(tmp_path / "phone.json", [16]))), tmp_path / "run")
    with pytest.raises(UserError, match=r"size=16: its smallest network takes 0\.\d+ ms on .*leave this size out"):
        least = math.fsum((ms(AT[8].stem), ms(AT[8].head), *(min(ms(key) if (key := slot.key(op)) else 0.0
                                                               for op in slot.ops) for slot in AT[8].slots)))
        searched(settings(space_file, target, f"budget_ms=[{1.2 * least}]"), tmp_path / "idle")


def test_every_pick_costs_what_its_size_costs(finished: tuple[Run, dict[str, Any]]) -> None:
    run, result = finished
    assert result["sizes"] == SIZES and comparable(result) == run.read_json("front.json")
    sizes = {card["id"]: card["size"] for card in cards_of(result)}
    for card in cards_of(result):
        full = run.read_json(f"archs/{card['id']}/card.json")
        keys = plan(AT[card["size"]], Arch.from_json(full["arch"]))
        assert card["ms"] == {result["target"][0]: pytest.approx(math.fsum(map(ms, keys)))}
        assert (card["macs"], full["arch"]["size"]) == (sum(map(macs, keys)), card["size"])
    assert set(sizes.values()) == set(SIZES)  # what only one of them reaches: the smallest and the largest budget
    for one in (*result["budgets"], *run.read_json("picks.json")["budgets"]):
        ((target, bound),) = one["budget_ms"].items()
        assert one["ms"][target] <= bound and one["size"] == sizes[one["id"]]
    points = [(card["ms"][target], card["select_accuracy"]) for card in result["front"]]
    assert points == sorted(points) and len({accuracy for _, accuracy in points}) == len(points)


def test_budgets_reach_from_the_least_of_all_sizes_to_the_most(finished: tuple[Run, dict[str, Any]]) -> None:
    def end(size: int, of: Any) -> float:
        rows = ([ms(key) if (key := slot.key(op)) else 0.0 for op in slot.ops] for slot in AT[size].slots)
        return math.fsum((ms(AT[size].stem), ms(AT[size].head), *map(of, rows)))

    (log,) = finished[0].events(events.Selected)
    assert {name.rpartition(" at ")[2] for name in log.held_out} == {"16 pixels", "8 pixels"}
    least, most = end(8, min), end(16, max)
    picks = selected(finished[0], finished[1]["target"], [], Quiet())
    chosen, searched_for = ([ms for b in front["budgets"] for ms in b["budget_ms"].values()]
                            for front in (picks, finished[1]))
    assert least <= min(chosen) and max(chosen) <= most
    assert (searched_for[0], searched_for[-1]) == (pytest.approx(least), pytest.approx(most))


def test_files_take_images_of_the_size(finished: tuple[Run, dict[str, Any]], tmp_path: Path) -> None:
    run, result = finished
    exported = pipeline.export(run, None, None, tmp_path, Quiet()).to_json()["files"]
    assert len(exported) == len(cards_of(result))
    sizes = {card["id"]: card["size"] for card in cards_of(result)}
    for file in (*exported, *({"id": id, "onnx": str(run.file(f"archs/{id}/model.onnx"))} for id in sizes)):
        size = sizes[file["id"]]
        metadata = {p.key: p.value for p in onnx.load(file["onnx"]).metadata_props}
        assert metadata["size"] == str(size) and json.loads(metadata["arch"])["size"] == size
        session = onnxruntime.InferenceSession(file["onnx"], providers=["CPUExecutionProvider"])
        assert session.run(None, {"input": np.zeros((2, 3, size, size), np.float32)})[0].shape == (2, 10)
    for id, size in sizes.items():
        scored = evaluate(run.path, arch=id)
        assert 0 <= scored.top1.share <= 1, size
    inputs = load_finished_inputs(settings_of(run), run, [])
    assert [at.data.size for at in inputs.every] == [at.layout.task.size for at in inputs.every] == SIZES


def settings_of(run: Run) -> Config:
    return Config.from_json(run.config, "test")


def test_the_size_is_told_wherever_a_pick_is(finished: tuple[Run, dict[str, Any]],
                                             capsys: pytest.CaptureFixture[str]) -> None:
    run, result = finished
    render.front(Front.model_validate(result))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["id", "size"]
    for card in result["front"]:
        assert [line.split()[1] for line in lines if line.split()[:1] == [card["id"]]] == [str(card["size"])]
    page_data = collect(run)
    assert not page_data["notes"]
    for view in page_data["views"]:
        for point in view["points"]:
            rows = page_data["networks"][point["id"]]
            assert rows[0]["size"] == point["size"]  # of the stem's input
            assert sum(row["ms"][view["target"]] for row in rows if row["op"] != "skip") == pytest.approx(point["ms"])
    assert every(one["ms"] for one in page_data["judged"])


def test_interrupted_at_many_moments_it_ends_with_the_same_front(
        finished: tuple[Run, dict[str, Any]], space_file: Path, target: str, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supernet, "CHECKPOINT_EVERY_S", 0.0)
    result, kills = searched_in_pieces(settings(space_file, target), tmp_path / "broken", steps=31)
    assert kills >= 3  # what is judged again from the log counts as steps, too: 24 of them
    assert comparable(result) == comparable(finished[1])


def test_selection_for_a_target_needs_its_rows_at_every_size(finished: tuple[Run, dict[str, Any]],
                                                             tmp_path: Path) -> None:
    run = Run(Path(shutil.copytree(finished[0].path, tmp_path / "run")))
    other = phone(tmp_path / "other.json", SIZES)
    result = selected(run, [str(other)], [], Quiet(), points=3)
    assert {card["size"] for card in cards_of(result)} == set(SIZES)
    most = max(card["macs"] for card in cards_of(result) if card["size"] == 8)
    few = selected(run, [str(other)], [], Quiet(), points=2, bounds=Bounds.of(
        max_macs=most))
    assert every(card["macs"] <= most for card in cards_of(few))
    lacking = phone(tmp_path / "lacking.json", [16])
    with pytest.raises(UserError, match=r"lacking.json.*run: profile\(.*size=8"):
        selected(run, [str(lacking)], [], Quiet())
    with pytest.raises(UserError, match=r"max_macs=1 "):
        selected(run, [str(other)], [], Quiet(), bounds=Bounds.of(max_macs=1))


def test_the_same_network_at_two_sizes_is_two_candidates() -> None:
    ops = tuple(slot.ops[0] for slot in AT[16].slots)
    assert Arch("tiny", 16, ops).id != Arch("tiny", 8, ops).id


def test_several_targets_share_a_supernet_of_several_sizes(space_file: Path, target: str, tmp_path: Path) -> None:
    both = Config.from_json({**settings(space_file, target).to_json(), "target": [target, "gpu-v100"]}, "test")
    result = searched(both, tmp_path / "run")
    assert set(result["fronts"]) == {target, "gpu-v100"}
    state = torch.load(tmp_path / "run" / "supernet.pt", weights_only=True)
    assert len(state["gates"]["theta"]) == 1 + 2 * 2  # a row for all, and one for each size and target
