"""The arithmetic of ``benchmarks/apart.py``, with numbers by hand."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cards import card
from tiny_search import config_of, searched

from nas.config.search import resolve
from nas.run.directory import Run
from nas.run.records import Budget, Front

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
apart = pytest.importorskip("apart")

TEN = apart.Amounts(6.0, 4.0, 0.0, 0.0, 0.0, 36.0, 20.0)
EACH_S = dict.fromkeys(apart.PHASES, 30.0)


def test_the_amounts_are_those_of_the_settings() -> None:
    epochs = {"warmup": 10, "search": 2, "settle": 1, "finetune": 20}
    config = resolve(None, [f"train.{phase}_epochs={count}" for phase, count in epochs.items()],
                     {"space": "ghost", "target": ["gpu-v100"]})
    amounts = apart.Amounts.of(config)
    assert (amounts.gates, amounts.settle, amounts.judged, amounts.finetune) == (2, 1, 36, 20)
    assert (amounts.largest, amounts.blockwise, amounts.sandwich) == pytest.approx((6, 4, 0))
    again = resolve(None, amounts.settings(), {"space": "ghost", "target": ["gpu-v100"]})
    assert again.train.warmup_epochs == 10 and again.train.beginning(False) == pytest.approx((0.6, 0.4))
    assert apart.Amounts.of(again).finetune == 20 and again.evaluations == 36


@pytest.mark.parametrize(("phase", "by", "expected"), [
    ("largest", 5, 11.0), ("largest", -5, 1.0), ("largest", -50, 0.0), ("gates", 3, 3.0), ("gates", -3, None),
    ("finetune", -50, 1.0), ("judged", -50, 1.0), ("sandwich", 10, 10.0)])
def test_a_phase_has_no_less_than_nothing(phase: str, by: int, expected: float | None) -> None:
    changed = TEN.changed(phase, by)
    assert (changed and getattr(changed, phase)) == expected


def test_a_longer_part_of_the_warmup_leaves_the_others_as_long_as_they_were() -> None:
    changed = TEN.changed("blockwise", 10)
    assert changed and changed.settings()[:3] == ["train.warmup_epochs=20", "train.largest_first=0.300000000",
                                                  "train.blockwise=0.700000000"]


def test_every_phase_gets_more_and_as_far_as_there_is_less() -> None:
    names = list(apart.changes(TEN, EACH_S, minutes=2.5))  # 5 epochs of half a minute
    assert names == ["largest +5", "largest -5", "blockwise +5", "blockwise -4", "sandwich +5", "gates +5", "settle +5",
                     "judged +5", "judged -5", "finetune +5", "finetune -5"]


def test_a_front_is_worth_what_it_delivers_at_the_budgets() -> None:
    cards = [card("a", {"t": 1.0}, accuracy=0.5, select_accuracy=0.5), card("b", {"t": 2.0}, accuracy=0.6,
                                                                            select_accuracy=0.7)]
    worse = card("c", {"t": 4.0}, accuracy=0.9, select_accuracy=0.65)  # b is chosen for 4 ms, too
    budgets = [Budget(budget_ms={"t": ms}, id=id, ms={"t": ms}) for ms, id in ((1.0, "a"), (2.0, "b"), (4.0, "c"))]
    made = apart.figures(Front(space="s", target=["t"], front=cards, dominated=[worse], budgets=budgets))
    assert made["at"] == {"1.0000": 0.5, "2.0000": 0.6, "4.0000": 0.6}
    assert made["accuracy"] == pytest.approx(1.7 / 3)
    assert made["hypervolume"] == pytest.approx(0.6931 * (0.5 + 0.6), rel=1e-3)  # an octave of each


def line(part: str, seed: int, accuracy: float, minutes: float) -> dict[str, Any]:
    return {"part": part, "seed": seed, "accuracy": accuracy, "hypervolume": accuracy, "test_images": 100,
            "seconds": {"total": 60 * minutes}}


def test_changes_are_against_the_baseline_of_the_same_seed() -> None:
    lines = [line("baseline", 0, 0.5, 10), line("baseline", 1, 0.6, 10), line("gates +3", 0, 0.6, 15),
             line("gates +3", 1, 0.74, 15), line("settle +1", 1, 0.6, 10)]
    gates, settle = apart.table(lines).splitlines()[2:]
    # 10 and 14 points: 12 +- 2; errors of 0.5, 0.6, 0.6, 0.74 on 100 images: root of (25 + 24 + 24 + 19.24) / 2
    assert gates == "| gates +3 | 2 | +5.0 | +12.0 +- 2.0 | +- 4.8 | +24.0 | +0.1200 +- 0.0200 |"
    assert settle == "| settle +1 | 1 | +0.0 | +0.0 | +- 6.9 | - | +0.0000 |"


def test_a_search_is_taken_apart_and_what_stands_is_not_run_again(space_file: Path, tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch,
                                                                  capsys: pytest.CaptureFixture[str]) -> None:
    ran: list[str] = []

    def short(name: str, seed: int, how: Sequence[str], options: Any) -> Run:
        ran.append(name)
        path = tmp_path / f"{name.replace(' ', '')}-{seed}"
        searched(config_of(space_file, *(word for word in how if "=" in word)), path)
        return Run.existing(path)

    monkeypatch.setattr(apart, "search", short)
    monkeypatch.setattr(sys, "argv", ["apart.py", "--change", "0.00001", "--seeds", "0", "--phases", "gates", "--work",
                                      str(tmp_path), "--out", str(tmp_path / "apart.jsonl")])
    apart.main()
    said = capsys.readouterr().out
    lines = [json.loads(text) for text in (tmp_path / "apart.jsonl").read_text().splitlines()]
    assert ran == [line["part"] for line in lines] == ["baseline", "gates +1", "gates -1"]
    assert [line["amounts"]["gates"] for line in lines] == [2, 3, 1]
    assert len({(line["amounts"]["finetune"], line["amounts"]["judged"], *line["at"]) for line in lines}) == 1
    assert [row.split(" | ")[0] for row in said.splitlines()[2:]] == ["| gates +1", "| gates -1"]
    apart.main()
    assert len(ran) == 3 and capsys.readouterr().out == said
