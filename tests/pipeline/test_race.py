"""The race of finalists: by hand on losses, and in a search that is interrupted at many moments."""

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from every import every
from tiny_search import comparable, config_of, searched, searched_in_pieces, weights

from nas import sampling
from nas.arch import Arch
from nas.config.search import Config
from nas.errors import UserError
from nas.pipeline import selection, supernet
from nas.pipeline.race import race, rounds_of
from nas.plan import Layout
from nas.run import timeline
from nas.run.directory import Run
from nas.run.events import Raced

Made = tuple[Config, Path, dict[str, Any]]


def archs(layout: Layout, count: int) -> list[Arch]:
    rng = random.Random(0)
    return list(dict.fromkeys(sampling.sample(layout, rng) for _ in range(9 * count)))[:count]


@pytest.mark.parametrize(("finalists", "epochs", "rounds"), [
    (1, 9, []), (2, 9, [3]), (2, 2, [1]), (3, 9, [3, 6]), (4, 9, [3, 6]), (5, 12, [4, 6, 8]), (8, 12, [4, 6, 8]),
    (2, 10, [4]), (4, 1, [1, 1])])
def test_they_are_compared_from_a_third_to_two_thirds_of_the_epochs(finalists: int, epochs: int,
                                                                    rounds: list[int]) -> None:
    assert rounds_of(finalists, epochs) == rounds


def test_the_better_half_of_each_budget_goes_on(tiny: Layout) -> None:
    a, b, c, d, e = archs(tiny, 5)
    losses = {3: {a: 0.9, b: 0.7, c: 0.8, d: 0.75}, 6: {b: 0.6, c: 0.5}}
    asked: list[tuple[int, list[Arch]]] = []

    def compare(racing: Sequence[Arch], end: int) -> Mapping[Arch, float]:
        asked.append((end, list(racing)))
        return losses[end]

    # three race for the first budget, two for the second, of which one is in both; the third has one network
    assert race([[a, b, c], [b, d], [e]], 9, compare) == [c, b, e]
    assert asked == [(3, [a, b, c, d]), (6, [b, c])]


def test_a_loss_that_is_no_number_comes_last_and_of_equal_ones_the_first_stays(tiny: Layout) -> None:
    a, b, c = archs(tiny, 3)
    assert race([[a, b]], 3, lambda racing, end: {a: math.nan, b: 9.0}) == [b]
    assert race([[a, b]], 3, lambda racing, end: {a: 1.0, b: 1.0}) == [a]
    assert race([[c]], 3, lambda racing, end: {}) == [c]


def test_the_finalists_of_a_budget_are_its_best_networks_those_that_use_it_first(tiny: Layout) -> None:
    ranked = archs(tiny, 4)
    cost: Any = SimpleNamespace(cost=lambda arch, target: 0.5 if arch in (ranked[0], ranked[2]) else 0.95)
    problems, losses = {ranked[0].size: cost}, dict(zip(ranked, (0.1, 0.2, 0.3, 0.4), strict=True))
    pick = selection._pick(problems, {"a": 1.0}, [*ranked, ranked[1]], losses, 3)
    assert [pick.arch, *pick.others] == [ranked[1], ranked[3], ranked[0]]
    assert selection._pick(problems, {"a": 1.0}, ranked, losses).others == []


def test_methods_that_train_more_than_the_pick_have_no_finalists(space_file: Path) -> None:
    with pytest.raises(UserError, match=r"finalists=2 is not there with train\.distill=hints.*take grow, kd"):
        config_of(space_file, "finalists=2", "train.distill=hints")


@pytest.fixture(scope="module")
def raced(space_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    path = tmp_path_factory.mktemp("raced") / "run"
    config = config_of(space_file, "finalists=3", "budgets=2", "train.finetune_epochs=3")
    return config, path, searched(config, path)


def test_what_wins_is_delivered_and_the_others_leave_their_lines(raced: Made) -> None:
    _, path, result = raced
    run = Run.existing(path)
    before, after = ([pick["arch"] for pick in json.loads(run.file(name).read_text())["budgets"]]
                     for name in ("picks.json", "finalists.json"))
    lines, tuned = run.events(Raced), timeline.tuned(run)
    assert lines and {line.epochs for line in lines} == {1, 2} and len(before) == len(after) == 2
    assert len({line.id for line in lines}) > len({budget["id"] for budget in result["budgets"]})
    delivered = {card["id"] for card in [*result["front"], *result["dominated"]]}
    assert delivered == {budget["id"] for budget in result["budgets"]} == set(weights(path))
    assert {folder.name for folder in (path / "archs").iterdir()} == delivered
    epochs = {id: [each.epoch for each in tuned if each.id == id] for id in {each.id for each in tuned}}
    assert every(seen == ([0, 1, 2] if id in delivered else list(range(len(seen)))) for id, seen in epochs.items())
    assert every(len(epochs[line.id]) >= line.epochs for line in lines)
    assert not list(path.rglob("finetune.pt"))


def test_interrupted_at_many_moments_the_same_networks_win(raced: Made, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supernet, "CHECKPOINT_EVERY_S", 0.0)
    result, kills = searched_in_pieces(raced[0], tmp_path / "broken", steps=23)
    assert kills >= 4 and comparable(result) == comparable(raced[2])
    assert weights(tmp_path / "broken") == weights(raced[1])
    judged = [(line.id, line.epochs) for line in Run.existing(tmp_path / "broken").events(Raced)]
    assert judged and len(judged) == len(set(judged))
