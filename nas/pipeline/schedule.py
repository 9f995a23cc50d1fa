"""Turns the minutes that a user has into epochs: of the supernet, of the picks, of one network.

What a part takes is its images times the seconds of one, by the speed measured here (``nas.pipeline.speed``). Selection
and export have what they need; the supernet has a fixed share of the rest, the picks have the other, and known networks
see their images as often as both together. Where the share comes from: docs/decisions.md.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nas.arch import Arch
from nas.config.search import SCHEDULED, Config
from nas.errors import UserError, setting
from nas.pipeline.budgets import budgets_of_target
from nas.pipeline.inputs import Inputs, selection_problem
from nas.pipeline.known import candidates_of, choose
from nas.pipeline.pace import PICKS, WATCHED, Delivery, Times, seconds_of_search
from nas.pipeline.setup import cut_to_limits
from nas.pipeline.speed import measured_speed, time_training
from nas.plan import macs
from nas.progress import NoProgress, Progress
from nas.run import timeline
from nas.run.schedule import SCHEDULE, Schedule, scheduled
from nas.select.problem import budgets
from nas.text import duration
from nas.training.epochs import epoch_size
from nas.training.recipes import PICK, FineTuningRecipe, SupernetRecipe
from nas.units import amount

DEMO = {"cluttered": 6.0, "digits": 6.0}  # minutes of a search of images that are there to try it
SUPERNET = 0.15  # share of the time that is left for training
PHASES = {"warmup": 1.0, "search": 0.0, "settle": 0.0}  # shares of the supernet's images
TRAINING = 0.3  # of the minutes: less is too little to train anything
LEAST_EPOCHS = 12.0  # of a pick: budgets of networks that train too slowly for that are left out
LEAST_RANGE = 2.0  # the largest budget is not brought below so many times the smallest
STEP = 0.9  # by which the largest budget is cut at a time
FEW = 4.0  # passes over the images, below which an epoch is a part of them


@dataclass(frozen=True)
class Division:
    """Holds how many passes over their images the supernet and each pick make, and the seconds that are left for both.
    """

    supernet: float
    picks: float
    left_s: float


def within_minutes(inputs: Inputs, calibrated: int, progress: Progress) -> Inputs:
    """Returns the inputs with the epochs and budgets that the run's minutes allow; as they are where it has none, and
    where an earlier call has divided them.

    The first call measures the speed of this machine, and records what follows from it. Raises UserError for too few
    minutes.
    """
    run, config, minutes = inputs.run, inputs.config, minutes_of(inputs.config)
    if minutes is None or run.has(SCHEDULE):
        return inputs
    run.record(SCHEDULE, Schedule, lambda: _make_schedule(inputs, minutes, calibrated, progress))
    return cut_to_limits(_with_config(inputs, scheduled(config, run)), progress)


def minutes_of(config: Config) -> float | None:
    """Returns how long a search may take: some minutes with images that are built in, where nothing is said."""
    asked = any(getattr(config.train, key) is not None for key in SCHEDULED)
    return config.minutes if config.minutes is not None or asked else DEMO.get(config.data)


def train_within_minutes(inputs: Inputs, arch: Arch) -> Inputs:
    """Returns the inputs of a training of one network with the epochs that the run's ``minutes`` allow, as above."""
    run, config, minutes = inputs.run, inputs.config, inputs.config.minutes
    if minutes is None or run.has(SCHEDULE):
        return inputs
    run.record(SCHEDULE, Schedule, lambda: _one_network(inputs, arch, minutes))
    return _with_config(inputs, scheduled(config, run))


def _one_network(inputs: Inputs, arch: Arch, minutes: float) -> Schedule:
    """Divides the minutes of a training of one network between its epochs and its delivery."""
    began, config, data = time.monotonic(), inputs.config, inputs.data
    seconds = time_training(inputs, arch, config.train.batch)
    export = Delivery.of(inputs).seconds(seconds)
    other = export + timeline.spent(inputs.run)["total"] + time.monotonic() - began
    _refuse_too_few(minutes, other)
    passes = (60 * minutes - other) / (WATCHED * seconds * epoch_size(len(data.learn), config.train.epoch_images))
    part = min(1.0, passes / FEW)
    return Schedule(minutes=minutes, epochs={"finetune_epochs": max(1, round(passes / part))},
                    epoch_images=_part_of_epoch(inputs, part),
                    seconds={"training": round(60 * minutes - other, 1), "export": round(export, 1)})


def _part_of_epoch(inputs: Inputs, part: float) -> int | None:
    """Returns the images of an epoch that is only a part of them; None for a whole one."""
    config = inputs.config
    images = epoch_size(len(inputs.data.train), config.train.epoch_images)
    return max(2 * config.train.batch, round(part * images)) if part < 1 else config.train.epoch_images


def _make_schedule(inputs: Inputs, minutes: float, calibrated: int, progress: Progress) -> Schedule:
    """Divides what is left of the minutes, with the largest budget at which picks still learn long enough."""
    began, config, target = time.monotonic(), inputs.config, inputs.config.target[0]
    speed = measured_speed(inputs)
    whole = budgets_of_target(inputs, inputs.layout, target, config.budget_ms, config.budgets)
    total = 60 * minutes - timeline.spent(inputs.run)["total"] - (time.monotonic() - began)
    for given in [whole] if config.budget_ms else _ranges(inputs, whole):
        cut = _with_config(inputs, config.model_copy(update={"budget_ms": given}))
        at = cut_to_limits(cut, NoProgress())
        limits = {target: given, **{other: budgets_of_target(at, at.layout, other, [], config.budgets)
                                    for other in config.target[1:]}}
        times = Times.of(at, speed, limits)
        division = _divide(at, times, total, calibrated)
        if division.picks >= LEAST_EPOCHS:
            break
    known = choose(candidates_of(at, given), target, given, config.baselines) if config.baselines else []
    beside = [speed.of_pick(sum(map(macs, each.keys))) for each in known]  # rough, as none has its rows yet
    times = replace(times, known=tuple(beside))
    division = _divide(at, times, total, calibrated)
    _refuse_too_few(minutes, 60 * minutes - division.left_s)
    if given[-1] < whole[-1]:
        progress.note(f"budgets end at {amount(given[-1], target)}: picks up to {amount(whole[-1], target)} would see "
                      f"their images less than {LEAST_EPOCHS:.0f} times in {minutes:g} minutes")
    return _schedule(at, minutes, times, division, calibrated, given if given != whole else [])


def _refuse_too_few(minutes: float, other_s: float) -> None:
    """Raises UserError where too little of the minutes is left for training beside what takes ``other_s``."""
    if other_s > (1 - TRAINING) * 60 * minutes:
        raise UserError(f"{setting('minutes', f'{minutes:g}')}: too few: images, latency tables, selection and export "
                        f"take {duration(other_s)}; give {math.ceil(other_s / (1 - TRAINING) / 60)} or more")


def _ranges(inputs: Inputs, whole: Sequence[float]) -> list[list[float]]:
    """Returns budgets over the whole range, then over smaller and smaller parts from its beginning."""
    target, low, high = inputs.config.target[0], whole[0], whole[-1]
    problem, ranges = selection_problem(inputs, inputs.layout, [target]), [list(whole)]
    while (high := high * STEP) > LEAST_RANGE * low:
        ranges.append(budgets(problem, inputs.config.budgets, (low, high)))
    return ranges


def _divide(inputs: Inputs, times: Times, total: float, calibrated: int) -> Division:
    """Divides ``total`` seconds: the passes that supernet and picks can make in what selection and export leave."""
    seconds = _seconds(inputs, times, Division(1.0, 1.0, 0.0), calibrated)
    left = total - seconds["selection"] - seconds["export"]
    supernet = sum(seconds[f"supernet {phase}"] for phase in PHASES)
    beside = seconds["known networks"] / 2  # they see their images as often as supernet and pick together
    return Division(SUPERNET * left / (supernet + beside), (1 - SUPERNET) * left / (seconds["fine-tuning"] + beside),
                    left)


def _schedule(inputs: Inputs, minutes: float, times: Times, division: Division, calibrated: int,
              budget_ms: Sequence[float]) -> Schedule:
    """Writes down a division in whole epochs, which are parts of the images where passes are few."""
    part = min(1.0, division.supernet / FEW, division.picks / FEW)
    whole = Division(division.supernet / part, division.picks / part, division.left_s)
    epochs = {f"{phase}_epochs": round(share * whole.supernet) for phase, share in PHASES.items()}
    epochs = {**epochs, "warmup_epochs": max(1, epochs["warmup_epochs"]),
              "finetune_epochs": max(1, round(whole.picks))}
    seconds = _seconds(inputs, times, division, calibrated)
    return Schedule(minutes=minutes, epochs=epochs, epoch_images=_part_of_epoch(inputs, part),
                    budget_ms=list(budget_ms), seconds={phase: round(value, 1) for phase, value in seconds.items()})


def _seconds(inputs: Inputs, times: Times, division: Division, calibrated: int) -> Mapping[str, float]:
    """Returns the seconds of each phase where supernet and picks make the passes of a division."""
    config, data = inputs.config, inputs.data
    usual = FineTuningRecipe.from_config(config, data, PICK, config.train.distill)
    tuning = usual.model_copy(update={"patient": False})
    passes = {phase: share * division.supernet for phase, share in PHASES.items()}
    return seconds_of_search(inputs, times, SupernetRecipe.from_config(config, data), tuning, calibrated,
                             {**passes, PICKS: division.picks})


def _with_config(inputs: Inputs, config: Config) -> Inputs:
    """Returns the inputs, of all sizes, with other settings."""
    others = {size: replace(at, config=config) for size, at in inputs.others.items()}
    return replace(inputs, config=config, others=others)
