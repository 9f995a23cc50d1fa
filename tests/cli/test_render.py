"""What tables show of several targets, one of which is counted; what an id's beginning may be; where images lie."""

from __future__ import annotations

from pathlib import Path

import pytest
from cards import card, front

from nas.cli import render
from nas.config.search import Config, resolve
from nas.errors import UserError
from nas.pipeline.front import full_id
from nas.pipeline.search import refuse_settings
from nas.pipeline.train_one import refuse_settings as refuse_baseline
from nas.run.images import Images, with_images_at
from nas.run.records import Budget, Exported, ExportedFile
from nas.run.settings import Baseline
from nas.training.data import load

CARD = card(ms={"macs": 30.5, "cpu": 0.5}, measured_ms={"macs": None, "cpu": 0.75})
FRONT = front([CARD], budgets=[
    Budget(budget_ms={"macs": 31.0}, id=CARD.id, ms={"macs": 30.5}),
    Budget(budget_ms={"macs": 31.0, "cpu": 0.8}, id=CARD.id, ms=CARD.ms, measured_ms=CARD.measured_ms)])


def test_only_what_can_be_measured_has_a_measured_column(capsys: pytest.CaptureFixture[str]) -> None:
    render.front(FRONT)
    out = capsys.readouterr().out
    title = out.splitlines()[0].split("   ")
    assert [part.strip() for part in title if "measured" in part] == ["measured ms cpu"]
    assert "30.5 M multiply-adds and 0.5 ms on cpu   cpu: 0.75" in out and "macs: -" not in out


def test_drift_is_that_of_each_measured_target(capsys: pytest.CaptureFixture[str]) -> None:
    file = ExportedFile(id=CARD.id, predicted_ms=CARD.ms, measured_ms=CARD.measured_ms,
                        drift={"macs": None, "cpu": 1.25})
    render.exported(Exported(files=[file], target=["macs", "cpu"]))
    title, _, row = capsys.readouterr().out.splitlines()
    assert title.split("   ")[-1].strip() == "drift cpu" and row.split()[-1] == "1.25"
    alone = ExportedFile(id="x", predicted_ms={"cpu": 0.5}, measured_ms={"cpu": 0.75}, drift={"cpu": 1.5})
    render.exported(Exported(files=[alone], target=["cpu"]))
    title, _, row = capsys.readouterr().out.splitlines()
    assert title.split() == ["id", "predicted", "ms", "measured", "ms", "drift"]
    assert row.split() == ["x", "0.5", "0.75", "1.5"] and row.endswith(" " * 8 + "0.75     1.5")  # as numbers are


def test_the_beginning_of_an_id() -> None:
    fronts = {"": front([card("abcd00000000"), card("abcd11111111")], dominated=[card("ef0000000000")])}
    assert full_id(fronts, "abcd0") == "abcd00000000" and full_id(fronts, "ef00") == "ef0000000000"
    for text, message in (("ef0", "give at least 4 characters of an id; there are abcd00000000, "),
                          ("abcd", "is the beginning of abcd00000000 and abcd11111111; give more of it"),
                          ("x", "no such pick; there are abcd00000000, "), ("", "no such pick")):
        with pytest.raises(UserError, match=f"arch={text}: {message}"):
            full_id(fronts, text)


def test_the_folder_of_cifar10_is_refused_for_other_images(tmp_path: Path) -> None:
    asked = {"space": "ghost@0.25", "target": ["macs"], "data": "digits", "data_dir": "there"}
    for act in (lambda: load("digits", data_dir=Path("there"), size=None, seed=0),
                lambda: refuse_settings(resolve(None, [], asked)),
                lambda: refuse_baseline(resolve(None, [], {**asked, "arch": "largest"}, Baseline)),
                lambda: with_images_at(Config(target=["macs"], data="digits"), Images(data_dir="there"))):
        with pytest.raises(UserError, match="data_dir: has no effect on digits: it is the folder that cifar10 lies in"):
            act()
    kept = with_images_at(Config(target=["macs"], data="cifar10"), Images(data_dir=str(tmp_path)))
    assert kept.data_dir == str(tmp_path)
