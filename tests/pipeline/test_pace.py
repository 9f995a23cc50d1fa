"""What a search says of itself before it begins, how long it takes, and what it took."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_search import Quiet, config_of, searched

from nas import text
from nas.cli import render
from nas.pipeline import pace
from nas.pipeline.header import in_short
from nas.pipeline.pace import DELIVERED_S, Delivery, Pace, Times, seconds_of
from nas.run import events, timeline
from nas.run.directory import Run
from nas.run.records import Front
from nas.training.recipes import SupernetRecipe


class Clock:
    """Seconds that pass only when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


RECIPE = SupernetRecipe(epochs={"warmup": 2, "search": 1, "settle": 1}, batch=8, lr=0.1, weight_decay=0.0,
                        label_smoothing=0.0, augment="none", largest_first=0.5, blockwise=0.25)


def test_seconds_are_images_times_seconds_of_one() -> None:
    times = Times(grown=5.0, large=8.0, middle=6.0, small=4.0, picks=(1.0, 2.0), known=(3.0,),
                  delivery=Delivery(measuring=7.0, evaluated=30, evaluation=0.1))
    learned = {"warmup": 20.0, "search": 10.0, "settle": 10.0}
    # a sandwich is 8 + 6 + 4 = 18; the gates take two random networks; a teacher looks on: a third of a step
    seconds = seconds_of(times, RECIPE, learned, judged=100, tuned=60, from_scratch=50, taught=True)
    assert seconds == {
        "supernet warmup": 20 * (0.5 * 5 + 0.25 * 14 + 0.25 * 18),
        "supernet search": 10 * (18 + 12),
        "supernet settle": 10 * 18, "selection": 100 * 1.5 / 3 + 2 * 7,
        "fine-tuning": pytest.approx(1.15 * 60 * 3 * 4 / 3),
        "known networks": pytest.approx(1.15 * 50 * 3), "export": pytest.approx(3 * (DELIVERED_S + 7) + 30 * 0.1 * 6)}
    for every, step in ((2, 12), (0, 6)):
        seconds = seconds_of(times, replace(RECIPE, sandwich_every=every), learned, 0, 0, 0, False)
        assert seconds["supernet settle"] == 10 * step
    # picks that grow train in proportion to their shares: 3 * 1 + 0.5 * 2 seconds an image
    growing = seconds_of(replace(times, shares=(3.0, 0.5)), RECIPE, learned, 100, 60, 50, False)
    assert growing["fine-tuning"] == pytest.approx(1.15 * 60 * 4)


@pytest.mark.parametrize(("device", "here", "expected"), [
    ("cpu", True, Delivery(2.0, 70, 1 / 9)),  # the file in ONNX Runtime, three times as fast as a third of a step
    ("cpu", False, Delivery(0.0, 70, 1 / 9)),
    ("meta", False, Delivery(0.0, 70, 1 / 3))])  # stands for a GPU, where it is PyTorch
def test_a_delivery_takes_longer_where_it_is_measured_and_in_pytorch(
        device: str, here: bool, expected: Delivery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "measured_here", lambda costs: (costs, None) if here else None)
    inputs: Any = SimpleNamespace(costs={"t": object()}, device=torch.device(device),
                                  data=SimpleNamespace(select=range(20), test=range(50)))
    made = Delivery.of(inputs)
    assert made == expected
    assert made.seconds(0.9) == pytest.approx(DELIVERED_S + made.measuring + 63 * made.evaluation)


def test_the_time_is_said_before_the_first_step_and_refined_after_a_phase() -> None:
    clock, progress = Clock(), Quiet()
    pace = Pace({"a": 100.0, "none": 0.0, "b": 300.0}, progress, clock)
    pace.begin()
    assert progress.notes == ["time: about 7 min in all where nothing changes, by a few steps: a 2 min, b 5 min"]
    pace.reach("a", 0.0)
    clock.now = 100.0
    pace.reach("a", 0.5)
    clock.now = 200.0
    pace.end("a")  # 100 in 200 s
    pace.end("none")  # nothing was done, so nothing is told
    assert progress.notes[1:] == ["time: about 10 min are left: b 10 min"]
    pace.end("b")
    assert len(progress.notes) == 2


def test_what_an_earlier_command_did_says_nothing_of_the_speed() -> None:
    clock, progress = Clock(), Quiet()
    pace = Pace({"a": 100.0, "b": 100.0}, progress, clock)
    pace.end("a")
    assert progress.notes == []
    pace.reach("b", 0.5)
    clock.now = 10.0
    pace.reach("b", 0.6)
    assert pace.left_s() == {"b": pytest.approx(40.0)}


def test_what_was_spent_adds_up_over_calls_also_interrupted_ones(tmp_path: Path) -> None:
    run, clock = Run.open(tmp_path / "run", {}), Clock()
    with pytest.raises(KeyboardInterrupt), timeline.phase(run, "warm-up", clock=clock):
        clock.now += 90
        raise KeyboardInterrupt
    for name, place, seconds in (("warm-up", "", 30.0), ("export", "", 5.0), ("export", "selections/x/", 7.0),
                                 ("warm-up", "", 0.01)):
        with timeline.phase(run, name, place, clock):
            clock.now += seconds
    assert timeline.spent(run) == {"warm-up": 120.0, "export": 5.0, "total": 125.0}
    assert timeline.spent(run, "selections/x/") == {"export": 7.0, "total": 7.0}
    assert text.took(timeline.spent(run)) == "took 2 min in all: warm-up 2 min, export 5 s"
    assert len(run.events(events.Phase)) == 4  # what was done already is no line
    assert timeline.finished(run) == timeline.spent(run)
    with timeline.phase(run, "export", clock=clock):
        clock.now += 60  # a finished run that is read again
    assert timeline.finished(run)["total"] == timeline.spent(run)["total"] == 125.0


def test_a_number_of_networks_is_short() -> None:
    assert (in_short(999_999), in_short(31_415_926), in_short(10**400)) == ("999,999", "3.1e+7", "1.0e+400")


@pytest.fixture(scope="module")
def made(space_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Any], Quiet]:
    path, progress = tmp_path_factory.mktemp("head") / "run", Quiet()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timeline, "LEAST_S", 0.0)  # a phase is a line however fast the machine is
        result = searched(config_of(space_file, "budget_ms=[0.06]"), path, progress)
    return Run.existing(path), result, progress


def test_a_search_says_first_what_it_will_do(made: tuple[Run, dict[str, Any], Quiet]) -> None:
    _, _, progress = made
    notes = progress.notes
    first = next(index for index, note in enumerate(notes) if note.startswith("space: "))
    assert re.fullmatch(r"space: tiny at 16 pixels, 4 slots, [\d,]+ networks", notes[first])
    assert re.fullmatch(r"target: gpu-v100 \(.*\), budget 0\.06 ms on gpu-v100", notes[first + 1])
    assert notes[first + 2] == (
        "epochs: 1 of warm-up (60 % the largest network alone, 40 % blockwise), 2 of search, 1 to settle; "
        "12 networks are judged for each target, then each pick is fine-tuned for 2")
    assert any(note.startswith("memory: about") for note in notes)
    assert any("images of 10 classes" in note for note in notes[:first])


def test_what_is_pruned_is_one_line_and_the_log_has_each(made: tuple[Run, dict[str, Any], Quiet]) -> None:
    run, _, progress = made
    pruned = [drop for epoch in run.events(events.Epoch) if epoch.pruning for drop in epoch.pruning.dropped]
    said = [note for note in progress.notes if "pruned" in note]
    assert len(said) == bool(pruned)
    if pruned:
        assert sum(map(int, re.findall(r"(\d+) (?:block|layer)", said[0]))) == len(pruned)


def test_what_it_took_is_in_the_result(made: tuple[Run, dict[str, Any], Quiet],
                                       capsys: pytest.CaptureFixture[str]) -> None:
    run, result, _ = made
    seconds = result["seconds"]
    assert {"supernet warmup", "supernet search", "selection", "fine-tuning", "export", "total"} <= set(seconds)
    assert seconds["total"] == pytest.approx(sum(value for name, value in seconds.items() if name != "total"), abs=0.01)
    assert timeline.finished(run) == seconds and "seconds" not in run.read_json("front.json")
    render.front(Front.model_validate(result))
    assert any(line.startswith("took ") and " in all" in line for line in capsys.readouterr().out.splitlines())
