"""Estimates how long a search will take: the images of each phase, times the seconds that one takes here.

The estimate is made of a few steps that were timed before (``nas.pipeline.speed``), and refined after every phase by
the speed of what was done.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nas import sampling
from nas.arch import Arch
from nas.decision import Prices, grown, largest, smallest
from nas.latency.devices import measured_here
from nas.latency.profile import CHECKED_S
from nas.pipeline.inputs import Inputs, multiply_adds
from nas.pipeline.speed import DRAWN, Speed
from nas.progress import Progress
from nas.text import duration
from nas.training.epochs import epoch_size
from nas.training.recipes import FineTuningRecipe, SupernetRecipe, shares_of_growth
from nas.training.supernet_training import GROWN_IN

TRAINED = 3  # passes forward that a step of training costs: one forward, two backward
WATCHED = 1.15  # of a step of fine-tuning: what judging after every epoch and checkpoints add
SLICED = 1.2  # of a plain network: what cutting weights out of shared ones adds to a step
DELIVERED_S = 0.5  # of a network beside its images and what is measured: export and comparison
OF_FILE = 3  # times as fast as PyTorch ONNX Runtime evaluates a file on a CPU
PICKS = "picks"
ALIKE = 10  # networks whose mean is that of the networks at a budget


@dataclass(frozen=True)
class Delivery:
    """Says how long it takes to deliver a network that is trained.

    ``measuring`` are the seconds in which it is measured, ``evaluated`` the images that its accuracies are of, and
    ``evaluation`` is the time of one of them in that of an image in training.
    """

    measuring: float = 0.0
    evaluated: int = 0
    evaluation: float = 1 / TRAINED

    @staticmethod
    def of(inputs: Inputs) -> Delivery:
        """Returns how long the networks of a run take."""
        here = any(measured_here(costs) for costs in inputs.costs.values())
        evaluation = 1 / TRAINED / (OF_FILE if inputs.device.type == "cpu" else 1)
        return Delivery(CHECKED_S if here else 0.0, len(inputs.data.select) + len(inputs.data.test), evaluation)

    def seconds(self, image_s: float) -> float:
        """Returns the seconds of a network of which an image takes ``image_s`` in training."""
        return DELIVERED_S + self.measuring + self.evaluated * self.evaluation * image_s


@dataclass(frozen=True)
class Times:
    """Holds the seconds that an image takes in training: of networks in the supernet, and of each pick and each known
    network beside others.
    """

    grown: float  # mean of the sizes that the largest one has on the way
    large: float
    middle: float
    small: float
    picks: tuple[float, ...] = ()
    shares: tuple[float, ...] | None = None  # of each pick, the times that it trains as long as a recipe says; None: 1
    known: tuple[float, ...] = ()
    delivery: Delivery = Delivery()

    @staticmethod
    def of(inputs: Inputs, speed: Speed, limits: Mapping[str, Sequence[float]],
           known: Sequence[Arch] | None = None) -> Times:
        """Returns those of a run's space, with a pick at each budget of ``limits``.

        Known networks that are not chosen yet are taken for picks of the mean time.
        """
        table, rng = next(iter(inputs.prices.values())), random.Random(0)
        ends = [multiply_adds(inputs, end(inputs.layout, table)) for end in (largest, smallest)]
        sizes = [SLICED * speed.of_supernet(multiply_adds(inputs, arch))
                 for arch in grown(inputs.layout, table, GROWN_IN)]
        middle = [multiply_adds(inputs, sampling.sample(inputs.layout, rng)) for _ in range(ALIKE)]
        large, small, between = (SLICED * speed.of_supernet(count) for count in (*ends, float(np.mean(middle))))
        one_by_one = inputs.grows
        pick = speed.of_supernet if one_by_one else speed.of_pick
        counts = sorted(count for target, budgets in limits.items()
                        for count in counts_at(inputs, inputs.prices[target], budgets))
        picks = [pick(count) for count in counts]
        beside = [float(np.mean(picks))] * inputs.config.baselines if known is None else [
            speed.of_pick(multiply_adds(inputs.of(arch), arch)) for arch in known]
        shares = tuple(shares_of_growth(counts)) if one_by_one else None
        return Times(float(np.mean(sizes)), large, between, small, tuple(picks), shares, tuple(beside),
                     Delivery.of(inputs))

    @property
    def fine_tuning(self) -> float:
        """Returns the seconds of an image in the fine-tuning of all picks, of those that train longer in proportion."""
        shares = self.shares or (1.0,) * len(self.picks)
        return sum(share * seconds for share, seconds in zip(shares, self.picks, strict=True))


def counts_at(inputs: Inputs, prices: Prices, budgets: Sequence[float]) -> list[float]:
    """Returns the multiply-adds that networks near each of the budgets have: the mean of some of random depth."""
    rng, layout = random.Random(0), inputs.layout
    ends = [end(layout, prices) for end in (largest, smallest)]
    archs = [*ends, *(sampling.sample_thinned(layout, rng) for _ in range(DRAWN))]
    ms = np.array([prices.fixed + sum(row[op] for row, op in zip(prices.ms, arch.ops, strict=True)) for arch in archs])
    counts = np.array([multiply_adds(inputs, arch) for arch in archs])
    nearest = [np.argsort(np.abs(np.log(ms / budget)))[:ALIKE] for budget in budgets]
    return [float(counts[which].mean() * budget / ms[which].mean()) for which, budget in
            zip(nearest, budgets, strict=True)]


def seconds_of(times: Times, recipe: SupernetRecipe, learned: Mapping[str, float], judged: float, tuned: float,
               from_scratch: float, taught: bool) -> dict[str, float]:
    """Returns the seconds that each phase of a search takes.

    ``learned`` are the images of each phase of the supernet, ``judged`` those that all evaluations together see,
    ``tuned`` those of all epochs of one pick, with a teacher (``taught``) or without, ``from_scratch`` those of one
    known network. Picks are measured as soon as they are selected, and again when they are delivered.
    """
    step = times.large + times.middle + times.small  # the sandwich
    if recipe.sandwich_every > 1:
        step = (step + (recipe.sandwich_every - 1) * times.middle) / recipe.sandwich_every
    elif not recipe.sandwich_every:
        step = times.middle
    alone, blockwise = recipe.largest_first, recipe.blockwise
    before_sandwich = alone * times.grown + blockwise * (times.large + times.middle)
    gates = 2 * times.middle / recipe.gate_every  # two paths
    each = {"warmup": before_sandwich + (1 - alone - blockwise) * step, "search": step + gates, "settle": step}
    teaching = 1 / TRAINED if taught else 0.0
    return {**{f"supernet {phase}": learned[phase] * each[phase] for phase in each},
            "selection": (judged * float(np.mean(times.picks or [times.middle])) / TRAINED
                          + len(times.picks) * times.delivery.measuring),
            "fine-tuning": WATCHED * tuned * (1 + teaching) * times.fine_tuning,
            "known networks": WATCHED * from_scratch * sum(times.known),
            "export": sum(map(times.delivery.seconds, (*times.picks, *times.known)))}


def seconds_of_search(inputs: Inputs, times: Times, recipe: SupernetRecipe, tuning: FineTuningRecipe,
                      calibrated: int, passes: Mapping[str, float] | None = None) -> dict[str, float]:
    """Returns the seconds of each phase of a run; each network that is judged sees ``calibrated`` images before it.

    ``passes`` over the images, of phases of the supernet and of ``picks``, stand in the place of the recipes' epochs.
    """
    times = times if tuning.depends_on_size(inputs.config) else replace(times, shares=None)
    data, config = inputs.data, inputs.config
    passes = passes or {**recipe.epochs, PICKS: tuning.epochs}
    train, learn = (epoch_size(len(split), config.train.epoch_images) for split in (data.train, data.learn))
    judged = config.evaluations * len(config.target) * (calibrated + min(config.judge_images, len(data.select)))
    return seconds_of(times, recipe, {phase: passes[phase] * train for phase in recipe.epochs}, judged,
                      passes[PICKS] * learn, sum(passes.values()) * learn, tuning.distill_weight > 0)


class Pace:
    """Tells the user before the first step how long a search will take, and after each phase what is left."""

    def __init__(self, work: Mapping[str, float], progress: Progress,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._work, self._progress, self._clock = dict(work), progress, clock
        self._done = dict.fromkeys(work, 0.0)  # share of each phase, by any call
        self._before: dict[str, float] = {}  # of it, by an earlier one
        self._began = clock()

    def begin(self) -> None:
        """Tells how long all of it takes, if nothing changes."""
        if sum(self._work.values()):
            self._tell("about {} in all where nothing changes, by a few steps")

    def reach(self, phase: str, share: float) -> None:
        """Hears that ``share`` of a phase is done.

        What is done at the first call was done by an earlier command, and does not count for the speed.
        """
        self._before.setdefault(phase, share)
        self._done[phase] = share

    def end(self, phase: str) -> None:
        """Hears that a phase is over, and tells how long is left, if the phase took any time."""
        self._before.setdefault(phase, 1.0)
        self._done[phase] = 1.0
        left = any(share < 1 and self._work.get(name) for name, share in self._done.items())
        if left and self._work.get(phase) and self._made():
            self._tell("about {} are left")

    def left_s(self) -> dict[str, float]:
        """Returns the seconds left of each phase, at the speed so far once something was done."""
        made = self._made()
        rate = made / (self._clock() - self._began) if made else 1.0
        return {phase: work * (1 - self._done[phase]) / rate for phase, work in self._work.items()
                if work and self._done[phase] < 1}

    def _made(self) -> float:
        """Returns the estimated seconds of what this command has done so far."""
        return sum(self._work.get(phase, 0.0) * (share - self._before.get(phase, share))
                   for phase, share in self._done.items())

    def _tell(self, text: str) -> None:
        """Tells the time left in ``text``, and that of each phase."""
        left = self.left_s()
        parts = ", ".join(f"{phase} {duration(seconds)}" for phase, seconds in left.items())
        self._progress.note(f"time: {text.format(duration(sum(left.values())))}: {parts}")
