"""Selection for several devices: a front each, what is on several, the best under all limits at once."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cards import card
from every import every
from tiny_search import SHORT, Quiet, comparable, config_of, searched, searched_once, selected

from nas.cli import render
from nas.cli.output import named_budgets
from nas.config.search import resolve
from nas.errors import UserError
from nas.pipeline.budgets import NOTHING, Bounds, divide_budgets
from nas.pipeline.front import _with_ties
from nas.run import events
from nas.run.directory import Run
from nas.run.records import Front

TARGETS = ["gpu-v100", "gpu-v100-b32"]


@pytest.fixture(scope="module")
def finished(space_file: Path, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("together") / "run"
    searched_once(config_of(space_file), path, shared)
    return Run.existing(path)


def select(run: Run, targets: list[str], budget_ms: list[float], **more: Any) -> dict[str, Any]:
    return selected(run, targets, budget_ms, Quiet(), **more)


def test_a_front_each_and_the_best_under_all_budgets(finished: Run, capsys: pytest.CaptureFixture[str]) -> None:
    whole = select(finished, TARGETS, [])
    assert set(whole["fronts"]) == set(TARGETS) and every(whole["fronts"].values())
    cards = {card["id"]: card for card in [*whole["front"], *whole["dominated"]]}
    for target, ids in whole["fronts"].items():
        accuracies = [cards[id]["select_accuracy"] for id in ids]
        ms = [cards[id]["ms"][target] for id in ids]
        assert ms == sorted(ms) and accuracies == sorted(set(accuracies))
    both = [id for id in cards if all(id in front for front in whole["fronts"].values())]
    assert set(whole["on_several"]) == set(both)
    together = {t: sorted(card["ms"][t] for card in cards.values())[len(cards) // 2] for t in TARGETS}
    result = select(finished, TARGETS, [], bounds=Bounds.of(together=together))
    joint = result["budgets"][-1]
    assert list(joint["budget_ms"]) == TARGETS and joint["budget_ms"] == together
    assert every(joint["ms"][t] <= together[t] for t in TARGETS)
    render.front(Front.model_validate(result))
    said = capsys.readouterr().out
    assert "front of gpu-v100-b32: " in said and "on several fronts: " in said and "gpu-v100: " in said


def test_parameters_and_macs_are_hard_limits(finished: Run) -> None:
    free = select(finished, TARGETS[:1], [], points=2)
    cards = [*free["front"], *free["dominated"]]
    most = max(card["params"] for card in cards) - 1
    macs = sorted(card["macs"] for card in cards)[-1] - 1
    held = select(finished, TARGETS[:1], [], bounds=Bounds.of(most, macs), points=4)
    assert len(held["budgets"]) >= 3
    assert every(c["params"] <= most and c["macs"] <= macs for c in [*held["front"], *held["dominated"]])


def test_a_named_budget_of_one_target_is_that_target_s(finished: Run) -> None:
    whole = select(finished, TARGETS, [], points=3)
    ms = sorted(ms for b in whole["budgets"] for target, ms in b["budget_ms"].items() if target == TARGETS[1])[1]
    result = select(finished, TARGETS, [], bounds=Bounds.of(together={TARGETS[1]: ms}), points=2)
    assert [b["budget_ms"] for b in result["budgets"] if TARGETS[1] in b["budget_ms"]] == [{TARGETS[1]: ms}]
    assert len([b for b in result["budgets"] if list(b["budget_ms"]) == TARGETS[:1]]) == 2


def test_the_run_s_worst_case_holds_beside_other_limits(finished: Run, tmp_path: Path) -> None:
    other = tmp_path / "copy"
    shutil.copytree(finished.path, other, ignore=shutil.ignore_patterns("selections", "lock"))
    ends = sorted(b["budget_ms"][TARGETS[0]] for b in json.loads((other / "picks.json").read_text())["budgets"])
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "max_ms": ends[-2]}))
    result = select(Run.existing(other), TARGETS[:1], [], bounds=Bounds.of(1e9), points=3)
    pairs = [(b["ms"][TARGETS[0]], b["budget_ms"][TARGETS[0]]) for b in result["budgets"]]
    assert max(ms for ms, _ in pairs) <= max(bound for _, bound in pairs) <= ends[-2]


def test_the_worst_case_of_the_first_target_bounds_the_picks_for_the_others(finished: Run, tmp_path: Path) -> None:
    picks = json.loads((finished.path / "picks.json").read_text())
    ends = sorted(b["budget_ms"][TARGETS[0]] for b in picks["budgets"])
    flags = {"space": finished.config["space"], "target": TARGETS, "data": "digits", "size": 16, "limit": 160,
             "threads": 1, "max_ms": ends[1]}
    result = searched(resolve(None, SHORT, flags), tmp_path / "run")
    assert {target for b in result["budgets"] for target in b["budget_ms"]} == set(TARGETS)
    cards = [*result["front"], *result["dominated"]]
    assert every(card["ms"][TARGETS[0]] <= ends[1] for card in cards)
    again = select(Run.existing(tmp_path / "run"), TARGETS[::-1], [], points=2)
    assert every(card["ms"][TARGETS[0]] <= ends[1] for card in (*again["front"], *again["dominated"]))


def test_what_cannot_be_met_names_the_smallest_that_can(finished: Run) -> None:
    with pytest.raises(UserError, match=r"^max_params=10 is below the smallest reachable \d+ parameters: "):
        select(finished, TARGETS[:1], [], bounds=Bounds.of(max_params=10))
    with pytest.raises(UserError, match=r"^budget_ms=0.0001 is below the smallest reachable .* with max_macs="):
        select(finished, TARGETS[:1], [0.0001], bounds=Bounds.of(max_macs=1e9))
    with pytest.raises(UserError, match=r"^budget_ms=0.0001 is below the smallest reachable .* ms on gpu-v100-b32"):
        select(finished, TARGETS, [], bounds=Bounds.of(together={"gpu-v100": 9.0, "gpu-v100-b32": 0.0001}))
    with pytest.raises(UserError, match=r"budget_ms=cpu=\.\.\.: no target=cpu is given"):
        select(finished, TARGETS, [], bounds=Bounds.of(together={"cpu": 1.0}))


def test_the_same_question_finds_the_same_folder(finished: Run) -> None:
    before = {path.name for path in finished.path.glob("selections/*")}
    result = select(finished, TARGETS[:1], [], bounds=Bounds.of(1e9))
    new = {path.name for path in finished.path.glob("selections/*")} - before
    assert len(new) == 1
    assert select(finished, TARGETS[:1], [], bounds=Bounds.of(1e9)) == result
    assert json.loads((finished.path / "selections" / new.pop() / "front.json").read_text())["budgets"]


def test_a_budget_of_the_only_target_is_one_question_however_it_is_written(finished: Run) -> None:
    plain = select(finished, TARGETS[:1], [9.0])
    folders = set(finished.path.glob("selections/*"))
    assert select(finished, TARGETS[:1], [], bounds=Bounds.of(together={TARGETS[0]: 9.0})) == plain
    assert set(finished.path.glob("selections/*")) == folders
    one_of_a, one_of_b = Bounds.of(together={"a": 2.0}), Bounds.of(together={"b": 3.0})
    assert divide_budgets(["a", "b"], [2.0, 1.0], one_of_a) == ({"a": [1.0, 2.0], "b": []}, NOTHING)
    assert divide_budgets(["a", "b"], [2.0], one_of_b) == ({"a": [2.0], "b": [3.0]}, NOTHING)
    both = Bounds.of(together={"a": 2.0, "b": 1.0})
    assert divide_budgets(["a", "b"], [3.0], both) == ({"a": [3.0], "b": []}, both)


def test_budgets_by_name() -> None:
    assert named_budgets(["2", "cpu=1.5", "0.5", "my=dir/a.json=3"]) == ([0.5, 2.0], {"cpu": 1.5, "my=dir/a.json": 3.0})
    assert named_budgets(None) == ([], {})
    for text, what in (("cpu=x", "write a number"), ("cpu=-1", "above 0"), ("nan", "above 0")):
        with pytest.raises(UserError, match=what):
            named_budgets([text])
    with pytest.raises(UserError, match="cpu is given twice"):
        named_budgets(["cpu=1", "cpu=2"])


def test_points_within_the_error_of_a_faster_one_are_marked() -> None:
    cards = [card(id, {"any": ms}, select_accuracy=accuracy, select_accuracy_se=0.03)
             for id, ms, accuracy in (("a", 1.0, 0.80), ("b", 2.0, 0.84), ("c", 3.0, 0.90))]
    # errors of differences: 0.042; b is 0.04 above a; c is 0.06 above b
    assert [card.within_error_of for card in _with_ties(cards, "any")] == [None, "a", None]
    exact = [card(id, {"any": ms}, select_accuracy=share) for id, ms, share in (("a", 1.0, 0.8), ("b", 2.0, 0.81))]
    assert [card.within_error_of for card in _with_ties(exact, "any")] == [None, None]


@pytest.mark.slow
def test_two_workers_choose_what_one_process_chooses(finished: Run, tmp_path: Path) -> None:
    alone = select(finished, TARGETS[:1], [], points=4)
    judged = len(finished.events(events.Judged))
    other = tmp_path / "copy"
    shutil.copytree(finished.path, other, ignore=shutil.ignore_patterns("selections", "lock"))
    lines = finished.file("log.jsonl").read_bytes().splitlines(keepends=True)
    (other / "log.jsonl").write_bytes(b"".join(line for line in lines if not events.read(events.Judged, line)))
    storage = f"sqlite:///{tmp_path / 'all.db'}"
    shared = select(Run.existing(other), TARGETS[:1], [], points=4, storage=storage, workers=2)
    assert comparable(shared) == comparable(alone)
    assert 0 < len(Run.existing(other).events(events.Judged)) <= judged
