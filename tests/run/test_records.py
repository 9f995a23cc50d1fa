"""What a card and a front say of themselves, and that a file holds the very record that was written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cards import card, front
from pydantic import ValidationError

from nas.arch import SKIP, Arch
from nas.errors import UserError
from nas.run.directory import Run
from nas.run.records import Card, Front, Pick

FAST, SLOW, LARGE = "a" * 12, "b" * 12, "c" * 12
TWO = front([card(FAST, {"cpu": 1.0, "gpu": 4.0}, select_accuracy=0.8),
             card(SLOW, {"cpu": 2.0, "gpu": 3.0}, select_accuracy=0.9, dominated_on_test=True)],
            too_large=[card(LARGE, {"cpu": 3.0, "gpu": 5.0})], fronts={"cpu": [FAST, SLOW], "gpu": [SLOW]},
            on_several=[SLOW])


def test_the_best_within_a_budget_is_the_most_accurate_that_keeps_it_as_measured() -> None:
    assert (TWO.best(2.0).id, TWO.best(1.9).id, TWO.best(3.0, "gpu").id) == (SLOW, FAST, SLOW)
    measured = front([card(FAST, {"cpu": 1.0}, select_accuracy=0.8),
                      card(SLOW, {"cpu": 2.0}, measured_ms={"cpu": 2.5}, select_accuracy=0.9)])
    assert measured.best(2.4).id == FAST and measured.best(2.43).id == SLOW  # 2.5 / 1.03 is 2.427
    with pytest.raises(UserError, match=r"budget_ms=0\.5: the cheapest pick of this run takes 1 ms on cpu"):
        TWO.best(0.5)


def test_each_target_has_its_own_front() -> None:
    assert [[found.id for found in TWO.of(target)] for target in ("cpu", "gpu")] == [[FAST, SLOW], [SLOW]]
    assert [TWO.standing(id, "gpu") for id in (FAST, SLOW, LARGE)] == [
        "dominated", "front, dominated on test", "too large"]
    assert TWO.standing(FAST, "cpu") == "front" and TWO.card(SLOW) is TWO.cards[1]
    with pytest.raises(KeyError):
        TWO.card(LARGE)


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    run = Run.open(tmp_path / "run", {})
    assert run.record("front.json", Front, lambda: TWO) == TWO == run.read("front.json", Front)
    written = json.loads(run.file("front.json").read_text())
    assert written["target"] == ["cpu", "gpu"] and written["front"][0]["ms"] == {"cpu": 1.0, "gpu": 4.0}
    assert written["front"][0]["measured_ms"] == {"cpu": None, "gpu": None}  # not measured is said
    assert "within_error_of" not in written["front"][0]  # not known is left out


@pytest.mark.parametrize(("change", "said"), [
    ({"ms": 1.0}, r"ms: Input should be a valid dictionary"), ({"accuracy": 1.5}, "accuracy: "),
    ({"colour": "red"}, "colour: Extra inputs"), ({"exits": [1]}, "file: exits, of and onnx do not go together"),
    ({"onnx": "../../model.onnx"}, "onnx: ")])
def test_a_card_that_is_none_is_refused_by_file_and_key(tmp_path: Path, change: dict[str, object], said: str) -> None:
    run, name = Run.open(tmp_path / "run", {}), f"archs/{FAST}/card.json"
    run.write_json(name, {**card(FAST).to_json(), **change})
    with pytest.raises(UserError, match=rf"card\.json: {said}.*; put it back, or delete it"):
        run.read(name, Card)


def test_a_front_knows_every_id_and_cost_that_it_names() -> None:
    with pytest.raises(ValidationError, match="is no pick"):
        Front.model_validate({**TWO.to_json(), "on_several": [LARGE]})
    with pytest.raises(ValidationError, match=f"{FAST} has no ms on npu"):
        Front.model_validate({**TWO.to_json(), "target": ["cpu", "npu"]})


def test_a_pick_has_the_id_of_its_arch() -> None:
    arch = Arch("tiny", 16, (SKIP,))
    pick = Pick(budget_ms={"cpu": 1.0}, id=arch.id, arch=arch, ms={"cpu": 0.5})
    assert Pick.model_validate(pick.to_json()) == pick and pick.budget().id == arch.id
    with pytest.raises(ValidationError, match="is not that of its arch"):
        Pick.model_validate({**pick.to_json(), "id": FAST})
