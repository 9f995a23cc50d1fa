"""Holds what every stage of a search works on (images, layout, costs), and makes the selection problem of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from nas.arch import Arch
from nas.config.search import Config
from nas.decision import Prices, prices
from nas.latency.base import Costs
from nas.pipeline.npu_memory import Footprints
from nas.plan import Layout, macs, plan
from nas.run.directory import Run
from nas.run.known import known_layout
from nas.select.problem import Cost, Problem
from nas.training.data import Data
from nas.training.recipes import GROW
from nas.units import unit


@dataclass(frozen=True)
class Inputs:
    """Holds the settings and inputs of a run. ``costs`` and ``prices`` are keyed by target, in the order given.

    Where input size is searched, layout, data and prices are those of the largest, and ``others`` are the inputs of the
    other sizes, largest first: what is done for one network is done in the inputs of its size. ``footprints`` are those
    of every target where there is a limit of SRAM or flash; then ``layout`` has only choices that fit on all of them.
    """

    config: Config
    run: Run
    data: Data
    layout: Layout
    costs: dict[str, Costs]
    prices: dict[str, Prices]
    device: torch.device
    footprints: dict[str, Footprints] = field(default_factory=dict)
    others: dict[int, Inputs] = field(default_factory=dict)
    whole: Layout | None = None  # before any choice was left out, if one was
    useful: Layout | None = None  # before what budgets and memory leave out, without what no target needs

    @property
    def measured(self) -> Layout:
        """Returns the layout before any choice was left out: tables and their yardsticks were measured for that."""
        return self.whole or self.layout

    @property
    def seed(self) -> int:
        """Returns the seed of all that is random in the run."""
        return self.config.seed

    @property
    def grows(self) -> bool:
        """Tells whether picks are trained one after the other, each from what the smaller ones have learned."""
        return self.config.train.distill == GROW

    @property
    def size(self) -> int:
        """Returns the side of the input images in pixels."""
        return self.layout.task.size

    @property
    def every(self) -> list[Inputs]:
        """Lists the inputs at each input size, the largest first."""
        return [self, *self.others.values()]

    def at(self, size: int) -> Inputs:
        """Returns the inputs of an input size; itself for a size that is not searched, as it then refuses networks."""
        return self.others.get(size, self)

    def of(self, arch: Arch) -> Inputs:
        """Returns the inputs of a network: those of its size, with a layout of its own if it is known from elsewhere.

        They are those of the searched space for a network that neither has: they then refuse it.
        """
        at = self.at(arch.size)
        if arch.space == at.layout.space:
            return at
        known = known_layout(self.run, arch.space, at.layout.task)
        return at if known is None else replace(
            at, layout=known, whole=at.measured, others={},
            prices={target: prices(known, at.costs[target].ms_many) for target in at.prices})


def multiply_adds(inputs: Inputs, arch: Arch) -> float:
    """Counts the multiply-adds of a network of the run's space."""
    return float(sum(map(macs, plan(inputs.layout, arch))))


def selection_problem(inputs: Inputs, layout: Layout, targets: Sequence[str]) -> Problem:
    """Makes the selection problem over the choices of ``layout`` (pruned or whole), with one cost a target."""
    rows = {t: tuple(np.array([inputs.prices[t].ms[s.index][op] for op in s.ops]) for s in layout.slots)
            for t in targets}
    costs = tuple(Cost(t, unit(t), inputs.prices[t].fixed, rows[t]) for t in targets)
    fits = inputs.footprints
    flash = tuple(fits[t].flash_cost(layout) for t in targets if t in fits and fits[t].flash_limits())
    return Problem(layout, tuple(slot.ops for slot in layout.slots), costs + flash,
                   lambda arch: all(footprint.admits(arch) for footprint in fits.values()))


def flash_limits(inputs: Inputs, target: str) -> dict[str, float]:
    """Returns the limits of flash on a target, by the name that ``problem`` gives the cost."""
    return inputs.footprints[target].flash_limits() if target in inputs.footprints else {}
