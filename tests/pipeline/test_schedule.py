"""A search and a training of so many minutes: what they are divided into, and that a stopped one keeps to it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_search import SHORT, Quiet, comparable, config_of, searched, weights

from nas.config.search import SCHEDULED, Config, resolve
from nas.decision import largest
from nas.errors import UserError
from nas.pipeline import schedule, setup
from nas.pipeline.begin import begin_training
from nas.pipeline.inputs import Inputs, multiply_adds
from nas.pipeline.pace import WATCHED, Times
from nas.pipeline.schedule import SUPERNET, Division, within_minutes
from nas.pipeline.setup import prepare_inputs
from nas.pipeline.speed import Speed, measure_speed
from nas.progress import NoProgress
from nas.run import events, timeline
from nas.run.directory import Run
from nas.run.schedule import SCHEDULE, Schedule
from nas.run.settings import Baseline, settings_of

SPEED_HERE = Speed(macs=[1e5, 1e6], alone=[0.001, 0.002], beside=[0.002, 0.004])


def in_minutes(space_file: Path, minutes: float, *more: str) -> Config:
    flags = {"space": str(space_file), "target": ["gpu-v100"], "data": "digits", "size": 16, "limit": 160, "threads": 1}
    short = [text for text in SHORT if "epochs" not in text]
    return resolve(None, [*short, f"minutes={minutes}", *more], flags)


def inputs_of(config: Config, path: Path) -> Inputs:
    run = Run.open(path, config.to_json())
    return prepare_inputs(config, run, config.target, NoProgress())


@pytest.mark.parametrize(("macs", "seconds"), [(1e4, 0.001), (1e5, 0.001), (5.5e5, 0.0015), (1e6, 0.002), (1e9, 0.002)])
def test_a_network_between_two_that_were_timed_lies_between_them(macs: float, seconds: float) -> None:
    assert SPEED_HERE.of_supernet(macs) == pytest.approx(seconds)
    assert SPEED_HERE.of_pick(macs) == pytest.approx(2 * seconds)


def test_networks_are_timed_from_the_smallest_to_the_largest(space_file: Path, tmp_path: Path) -> None:
    inputs = inputs_of(config_of(space_file), tmp_path / "run")
    speed = measure_speed(inputs, 8)
    assert len(speed.macs) == len(speed.alone) == len(speed.beside) >= 3
    for row in (speed.macs, speed.alone, speed.beside):
        assert row == sorted(row) and row[0] > 0
    assert speed.macs[-1] == multiply_adds(inputs, largest(inputs.layout, inputs.prices["gpu-v100"]))


def test_the_minutes_are_divided_by_the_speed(space_file: Path, tmp_path: Path) -> None:
    """Supernet and picks get their shares of what selection and export leave, in passes over their images."""
    inputs = inputs_of(in_minutes(space_file, 10), tmp_path / "run")
    times = Times(grown=0.002, large=0.004, middle=0.003, small=0.001, picks=(0.002, 0.003), known=(0.004,))
    division = schedule._divide(inputs, times, total=100.0, calibrated=0)
    seconds = schedule._seconds(inputs, times, division, 0)
    supernet = sum(value for phase, value in seconds.items() if phase.startswith("supernet"))
    left = 100.0 - seconds["selection"] - seconds["export"]
    assert division.left_s == pytest.approx(left)
    learn = len(inputs.data.learn)
    assert supernet + WATCHED * division.supernet * learn * 0.004 == pytest.approx(SUPERNET * left)
    assert seconds["fine-tuning"] + WATCHED * division.picks * learn * 0.004 == pytest.approx((1 - SUPERNET) * left)
    assert sum(seconds.values()) == pytest.approx(100.0)


def test_an_epoch_is_a_part_of_the_images_where_passes_are_few(space_file: Path, tmp_path: Path) -> None:
    inputs = inputs_of(in_minutes(space_file, 10), tmp_path / "run")
    times = Times(grown=0.002, large=0.004, middle=0.003, small=0.001, picks=(0.002,))
    images = len(inputs.data.train)
    many = schedule._schedule(inputs, 10, times, Division(12.4, 25.6, 1.0), 0, [])
    assert many.epoch_images is None
    assert (many.epochs["warmup_epochs"], many.epochs["finetune_epochs"]) == (12, 26)
    few = schedule._schedule(inputs, 10, times, Division(3.0, 2.0, 1.0), 0, [])
    assert few.epoch_images == round(images / 2)  # 2 passes are 4 epochs of a half
    assert (few.epochs["warmup_epochs"], few.epochs["finetune_epochs"]) == (6, 4)


@pytest.fixture
def at_known_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose speed is the same whatever runs beside the tests."""
    monkeypatch.setattr(schedule, "measured_speed", lambda inputs: SPEED_HERE)
    monkeypatch.setattr(timeline, "spent", lambda run, place="": {"total": 1.0})
    monkeypatch.setattr(schedule, "time", SimpleNamespace(monotonic=lambda: 0.0))


@pytest.mark.usefixtures("at_known_speed")
def test_budgets_end_where_picks_would_learn_too_little(space_file: Path, tmp_path: Path) -> None:
    ends = []
    for minutes in (0.2, 60):
        progress = Quiet()
        inputs = inputs_of(in_minutes(space_file, minutes), tmp_path / str(minutes))
        most = within_minutes(inputs, 16, progress)
        record = inputs.run.read(SCHEDULE, Schedule)
        ends.append(max(most.config.budget_ms, default=None))
        assert bool(record.budget_ms) == any(note.startswith("budgets end at") for note in progress.notes)
        assert most.config.train.finetune_epochs == record.epochs["finetune_epochs"]
        assert sum(record.seconds.values()) <= 60 * minutes
    assert ends[0] is not None and ends[1] is None


@pytest.mark.usefixtures("at_known_speed")
def test_ranges_are_tried_without_a_price_being_looked_up_again(space_file: Path, tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    config, told = in_minutes(space_file, 0.2), Quiet()
    inputs = prepare_inputs(config, Run.open(tmp_path / "run", config.to_json()), config.target, told)
    with monkeypatch.context() as patch:
        patch.setattr(setup, "prices", None)  # calling it is a TypeError
        made = within_minutes(inputs, 16, told)
    assert made.config.budget_ms and len(told.notes) == len(set(told.notes))
    anew = inputs_of(made.config, tmp_path / "anew")
    assert made.layout == anew.layout != inputs.layout and made.prices == anew.prices


@pytest.mark.usefixtures("at_known_speed")
def test_too_few_minutes_are_refused_with_how_many_are_needed(space_file: Path, tmp_path: Path) -> None:
    inputs = inputs_of(in_minutes(space_file, 0.05), tmp_path / "run")
    with pytest.raises(UserError, match=r"minutes=0\.05: too few: .* take \d+ s; give \d+ or more"):
        within_minutes(inputs, 256, Quiet())


@pytest.mark.parametrize("key", SCHEDULED)
def test_epochs_beside_minutes_are_refused(space_file: Path, key: str) -> None:
    with pytest.raises(UserError, match=f"train.{key} has no effect with minutes=3"):
        in_minutes(space_file, 3, f"train.{key}=2")


def interrupted(config: Config, path: Path, stop_at: int) -> bool:
    """Runs a search until a step; says whether it was still on its way."""
    try:
        searched(config, path, Quiet(stop_at=stop_at))
    except KeyboardInterrupt:
        return True
    return False


@pytest.mark.usefixtures("at_known_speed")
def test_a_search_of_minutes_that_was_stopped_ends_the_same(space_file: Path, tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """The schedule is made once: another call reads it, although the machine is slower by then."""
    config = in_minutes(space_file, 3)
    slow = Speed(macs=[1e5, 1e6], alone=[0.02, 0.03], beside=[0.02, 0.03])
    monkeypatch.setattr(schedule, "measured_speed", lambda inputs: slow)
    whole = searched(config, tmp_path / "whole")
    stops = 0
    while interrupted(config, tmp_path / "stopped", 20 + 30 * stops):
        monkeypatch.setattr(schedule, "measured_speed", lambda inputs: SPEED_HERE)
        stops += 1
    assert stops > 2
    assert comparable(searched(config, tmp_path / "stopped")) == comparable(whole)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    kept = [Run.existing(tmp_path / name).read(SCHEDULE, Schedule) for name in ("whole", "stopped")]
    assert kept[0].epochs == kept[1].epochs
    assert settings_of(Run.existing(tmp_path / "whole")).train.finetune_epochs == kept[0].epochs["finetune_epochs"]


def test_one_network_has_the_epochs_that_its_minutes_allow(space_file: Path, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "time_training", lambda inputs, arch, batch: 0.01)
    flags = {"space": str(space_file), "data": "digits", "size": 16, "limit": 160, "threads": 1, "arch": "smallest",
             "minutes": 0.3}
    settings = resolve(None, ["train.batch=16"], flags, Baseline)
    begin_training(settings, tmp_path / "run", NoProgress())
    run = Run.existing(tmp_path / "run")
    made = run.read(SCHEDULE, Schedule)
    learn = sum(len(run.read_json("splits.json")[part]) for part in ("train", "gate"))
    passes = made.seconds["training"] / (WATCHED * 0.01 * learn)  # of seconds that are written with one decimal
    assert made.epochs["finetune_epochs"] == pytest.approx(passes, abs=0.5 + 0.05 / (0.01 * learn))
    assert made.seconds["training"] + made.seconds["export"] <= 18
    assert len({event.epoch for event in run.events(events.FineTuned)}) == made.epochs["finetune_epochs"]
