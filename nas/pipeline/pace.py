"""Estimates how long a search will take: the work of its phases, at the speed of what was done of them so far.

Work is counted in multiply-adds of training images, a backward pass as two forward ones. Networks of a supernet differ
in how fast they compute a multiply-add, so that the estimate is refined after every phase.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nas.decision import largest, smallest
from nas.pipeline.inputs import Inputs
from nas.plan import macs, plan
from nas.progress import Progress
from nas.text import duration
from nas.training.recipes import FineTuningRecipe, SupernetRecipe

TRAINED = 3  # passes forward that a step of training costs: one forward, two backward
FIRST_S = 5.0  # of the first steps, before an estimate is made of them


@dataclass(frozen=True)
class Sizes:
    """Holds the multiply-adds of the largest and the smallest network of a space."""

    large: float
    small: float

    @property
    def middle(self) -> float:
        """Returns the multiply-adds of a random network, taken as half way between the two."""
        return (self.large + self.small) / 2

    @staticmethod
    def of(inputs: Inputs) -> Sizes:
        """Counts those of a run's space."""
        prices = next(iter(inputs.prices.values()))
        ends = [sum(map(macs, plan(inputs.layout, end(inputs.layout, prices)))) for end in (largest, smallest)]
        return Sizes(*map(float, ends))


def work_of(sizes: Sizes, recipe: SupernetRecipe, images: int, judged: float, tuning: FineTuningRecipe, tuned: float,
            picks: int) -> dict[str, float]:
    """Returns the multiply-adds that each phase of a search takes in all.

    ``images`` are those of an epoch of the supernet, ``judged`` those that all evaluations together see, ``tuned``
    those of an epoch of one pick.
    """
    step = TRAINED * (sizes.large + sizes.middle + sizes.small)  # the sandwich
    if recipe.sandwich_every > 1:
        step = (step + (recipe.sandwich_every - 1) * TRAINED * sizes.middle) / recipe.sandwich_every
    elif not recipe.sandwich_every:
        step = TRAINED * sizes.middle
    alone, blockwise = recipe.largest_first, recipe.blockwise
    before_sandwich = TRAINED * (alone * sizes.large + blockwise * (sizes.large + sizes.middle))
    gates = 2 * TRAINED * sizes.middle / recipe.gate_every  # two paths
    each = {"warmup": before_sandwich + (1 - alone - blockwise) * step, "search": step + gates, "settle": step}
    taught = TRAINED * sizes.middle + (sizes.middle if tuning.distill_weight else 0.0)
    return {**{f"supernet {phase}": recipe.epochs[phase] * images * each[phase] for phase in each},
            "selection": judged * sizes.middle, "fine-tuning": picks * tuning.epochs * tuned * taught}


class Pace:
    """Tells the user, once the first steps are done, how long a search will take, and after each phase what is left."""

    def __init__(self, work: Mapping[str, float], progress: Progress,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._work, self._progress, self._clock = dict(work), progress, clock
        self._done = dict.fromkeys(work, 0.0)  # share of each phase, by any call
        self._before: dict[str, float] = {}  # of it, by an earlier one
        self._began, self._estimated = clock(), False

    def reach(self, phase: str, share: float) -> None:
        """Hears that ``share`` of a phase is done.

        What is done at the first call was done by an earlier command, and does not count for the speed.
        """
        self._before.setdefault(phase, share)
        self._done[phase] = share
        if not self._estimated and self._clock() - self._began >= FIRST_S and self._made():
            self._estimated = True
            self._tell("about {} in all where nothing changes, by the first steps")

    def end(self, phase: str) -> None:
        """Hears that a phase is over, and tells how long is left."""
        self._before.setdefault(phase, 1.0)
        self._done[phase] = 1.0
        if self._made() and any(share < 1 for share in self._done.values()):
            self._estimated = True
            self._tell("about {} are left")

    def left_s(self) -> dict[str, float]:
        """Returns the seconds left of each phase at the speed so far; call it once something was done."""
        rate = self._made() / (self._clock() - self._began)
        return {phase: work * (1 - self._done[phase]) / rate for phase, work in self._work.items()
                if work and self._done[phase] < 1}

    def _made(self) -> float:
        """Returns the multiply-adds that this command has done so far."""
        return sum(self._work.get(phase, 0.0) * (share - self._before.get(phase, share))
                   for phase, share in self._done.items())

    def _tell(self, text: str) -> None:
        """Tells the time left in ``text``, and that of each phase."""
        left = self.left_s()
        parts = ", ".join(f"{phase} {duration(seconds)}" for phase, seconds in left.items())
        self._progress.note(f"time: {text.format(duration(sum(left.values())))}: {parts}")


def pace_of(inputs: Inputs, recipe: SupernetRecipe, tuning: FineTuningRecipe, picks: int, calibrated: int,
            progress: Progress) -> Pace:
    """Makes the estimate of a search's time; each network that is judged sees ``calibrated`` images before it."""
    data, config = inputs.data, inputs.config
    judged = config.evaluations * len(config.target) * (calibrated + min(config.judge_images, len(data.select)))
    work = work_of(Sizes.of(inputs), recipe, len(data.train), judged, tuning, len(data.train) + len(data.gate), picks)
    return Pace(work, progress)
