"""A comparison of spaces: one grid that all reach, networks within it, resumable, figures that can be recomputed."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from every import every
from tiny_search import Quiet, comparable
from tiny_space import TINY

from nas.config.search import Config, resolve
from nas.errors import UserError
from nas.pipeline import compare_spaces as comparison
from nas.pipeline.compare_spaces import ComparisonSettings
from nas.run.directory import Run

STAGES: Any = TINY["stages"]
TARGET = "gpu-v100"
FLAGS = {"target": TARGET, "data": "digits", "size": 16, "limit": 120, "threads": 1, "budget_ms": [0.12, 0.2],
         "train.finetune_epochs": 2, "train.batch": 16}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two spaces whose latencies overlap."""
    folder = tmp_path_factory.mktemp("spaces")
    for name, depth in (("one", 3), ("two", 4)):
        space = {**TINY, "name": name, "stages": [{**stage, "depth": depth} for stage in STAGES]}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(space))
    return [str(folder / "one.yaml"), str(folder / "two.yaml")]


def configs_of(files: list[str], **flags: Any) -> list[Config]:
    return [resolve(None, [], {**FLAGS, **flags, "space": file}) for file in files]


def compared(files: list[str], path: Path, progress: Any = None, **flags: Any) -> dict[str, Any]:
    settings = ComparisonSettings.of(configs_of(files, **flags), 3)
    run = Run.open(path, settings.to_json())
    with run.lock():
        return comparison.compare(settings, run, progress or Quiet()).to_json()


@pytest.fixture(scope="module")
def finished(files: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("run") / "whole"
    shown = Quiet()
    result = compared(files, path, shown)
    (path / "said").write_text("\n".join(shown.notes))
    return path, result


def test_the_images_are_introduced_once(finished: tuple[Path, dict[str, Any]]) -> None:
    lines = (finished[0] / "said").read_text().splitlines()
    assert sum(line.startswith("splits: ") for line in lines) == 1


def test_spaces_are_compared_whole(finished: tuple[Path, dict[str, Any]]) -> None:
    kept = json.loads((finished[0] / "spaces" / "one" / "config.json").read_text())
    assert kept["gates"]["granularity"] == "space"  # every width


def test_every_space_has_its_networks_within_every_budget(finished: tuple[Path, dict[str, Any]]) -> None:
    _, result = finished
    (target,), ((low, high),) = result["target"], result["budget_ms"].values()
    assert [part["space"] for part in result["spaces"]] == ["one", "two"]
    for part in result["spaces"]:
        least, most = part["reach_ms"][target]
        assert least < low < high < most
        cards = [*part["front"], *part["dominated"]]
        assert len({card["id"] for card in cards}) == len(cards) == sum(row["n"] for row in part["budgets"]) == 6
        near = [sum(0.9 * b <= card["ms"][target] <= b for card in cards) for b in (low, high)]
        assert near == [3, 3]


def test_the_figures_are_those_of_the_cards(finished: tuple[Path, dict[str, Any]]) -> None:
    path, result = finished
    for part in result["spaces"]:
        place = path / "spaces" / part["space"]
        cards = {one.parent.name: json.loads(one.read_text()) for one in place.glob("archs/*/card.json")}
        archs = json.loads((place / "networks.json").read_text())
        assert len(cards) == 6 and every(card["fine_tuned"] for card in cards.values())
        for row, of in zip(part["budgets"], archs, strict=True):
            ids = [name for name, card in cards.items() if card["arch"] in of]
            values = [cards[name]["accuracy"] for name in ids]
            assert row["mean"] == pytest.approx(sum(values) / 3)
            assert row["sd"] == pytest.approx(statistics.stdev(values))
        front = part["front"]
        assert front and every(a["ms"][TARGET] < b["ms"][TARGET] and a["select_accuracy"] < b["select_accuracy"]
                             for a, b in itertools.pairwise(front))
        beaten = [any(f["ms"][TARGET] <= card["ms"][TARGET] and f["select_accuracy"] >= card["select_accuracy"]
                      for f in front)
                  for card in part["dominated"]]
        assert every(beaten) and part["hypervolume"] >= 0
    assert (path / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_one_that_is_stopped_continues_to_the_same_result(files: list[str], tmp_path: Path,
                                                          finished: tuple[Path, dict[str, Any]]) -> None:
    path = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        compared(files, path, Quiet(stop_at=25))
    assert not (path / "compare.json").exists()
    begun = [*path.glob("spaces/*/archs/*/finetune.pt"), *path.glob("spaces/*/archs/*/weights.safetensors")]
    assert 0 < len(begun) < 12
    assert comparable(compared(files, path)) == comparable(finished[1])


def test_other_settings_need_another_run(files: list[str], finished: tuple[Path, dict[str, Any]]) -> None:
    with pytest.raises(UserError, match=r"began with seed = 0, now 1; give another run"):
        compared(files, finished[0], seed=1)


def test_what_has_no_effect_is_refused(files: list[str]) -> None:
    with pytest.raises(UserError, match=r"train\.lr: has no effect on a comparison"):
        ComparisonSettings.of(configs_of(files, **{"train.lr": 0.1}), 3)
    with pytest.raises(UserError, match="selector: has no effect"):
        ComparisonSettings.of(configs_of(files, selector="random"), 3)
    with pytest.raises(UserError, match="two or more"):
        ComparisonSettings.of(configs_of(files[:1]), 3)
    with pytest.raises(UserError, match="two of them are called one: change the name"):
        ComparisonSettings.of(configs_of([files[0], files[0]]), 3)
    with pytest.raises(UserError, match="gost"):
        ComparisonSettings.of(configs_of([files[0], "gost"]), 3)


def test_the_grid_lies_in_what_all_spaces_reach() -> None:
    """1 .. 10 ms and 2 .. 20 ms have 2 .. 10 in common; a factor of 1.2 inside that, in geometric steps."""
    def space(name: str, smallest: float, largest: float) -> tuple[Any, Any]:
        cost = SimpleNamespace(smallest=smallest, largest=largest)
        return SimpleNamespace(layout=SimpleNamespace(space=name)), SimpleNamespace(costs=[cost])

    config = resolve(None, [], {"target": "cpu", "budgets": 3})
    loaded, problems = zip(space("a", 1, 10), space("b", 2, 20), strict=True)
    assert comparison._budget_grid(config, loaded, problems) == pytest.approx([2.4, math.sqrt(20), 10 / 1.2])
    loaded, problems = zip(space("a", 1, 2), space("b", 3, 4), strict=True)
    with pytest.raises(UserError, match=r"no budget on cpu that all of them reach \(a 1 \.\. 2 ms, b 3 \.\. 4 ms\)"):
        comparison._budget_grid(config, loaded, problems)


def test_a_budget_above_what_any_space_takes_is_refused(files: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"budget_ms=50: no network of these spaces takes more than 0\.\d+ ms on"):
        compared(files, tmp_path / "loose", budget_ms=[0.12, 50.0])


def test_where_no_network_is_found_it_is_said(files: list[str], tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "random_within", lambda *_: None)
    with pytest.raises(UserError, match=r"no network .* takes 90 to 100 % of 0\.12, 0\.2 ms on gpu-v100: give others"):
        compared(files, tmp_path / "none")


def test_a_budget_that_one_space_cannot_meet_is_refused(files: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"0\.0001"):
        compared(files, tmp_path / "tight", budget_ms=[0.0001])
