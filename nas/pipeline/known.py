"""Chooses known networks that are trained beside the picks of a search, so that nobody has to try elsewhere whether a
network of the shelf would have been better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy.optimize import nnls

from nas.arch import SKIP, Arch
from nas.decision import largest, smallest
from nas.errors import UserError, setting
from nas.files import resolve, shipped
from nas.latency.base import Costs
from nas.paths import space_parts
from nas.pipeline.budgets import budgets_of_target
from nas.pipeline.inputs import Inputs
from nas.pipeline.npu_memory import Footprints
from nas.pipeline.setup import with_rows
from nas.pipeline.supernet import given_budgets
from nas.plan import Layout, OpKey, Task, layout, macs, plan, resized
from nas.progress import Progress
from nas.run.known import KNOWN, KnownNetwork, KnownNetworks, kept_file
from nas.run.tables import can_complete
from nas.sampling import count
from nas.sampling import smallest as only_network
from nas.select.pareto import Point, front, hypervolume
from nas.space import Space
from nas.training.recipes import FineTuningRecipe, supernet_epochs
from nas.training.supernet_training import SupernetTraining
from nas.units import amount

BELOW = 1.5  # a known network may be faster than the smallest budget by this factor
FIRST = "mobilenet_v3_small"  # where two are as good: what most people try first
ROUNDS = 4  # of choosing, and of making the rows of what is chosen


@dataclass(frozen=True)
class Candidate:
    """Describes a known network that may stand beside the picks: ``top1`` as published (%), ``ms`` by target.

    Where rows of a table have still to be made, ``ms`` is rough and ``priced`` is false. ``arch`` is of the searched
    space where that has the network, else of the known network's own.
    """

    name: str
    layout: Layout
    arch: Arch
    top1: float
    ms: dict[str, float]
    priced: bool = True

    @property
    def inside(self) -> bool:
        """Tells whether it is a network of the searched space."""
        return self.arch.space != self.layout.space

    @property
    def keys(self) -> list[OpKey]:
        """Returns its operators in the order they run."""
        return plan(self.layout, only_network(self.layout))


@dataclass(frozen=True)
class _Rate:
    """Estimates what an operator takes that has no row yet: so much a call, and so much a multiply-add."""

    per_op_ms: float
    per_mac_ms: float

    @staticmethod
    def of(inputs: Inputs, target: str) -> _Rate:
        """Fits the rate to the operators of the smallest and the largest network of the searched space."""
        ends = [end(inputs.layout, inputs.prices[target]) for end in (smallest, largest)]
        keys = list(dict.fromkeys(key for arch in ends for key in plan(inputs.layout, arch)))
        ms = np.maximum(inputs.costs[target].ms_many(keys), 1e-9)
        features = np.array([[1.0, macs(key)] for key in keys]) / ms[:, None]  # errors count by their share
        return _Rate(*nnls(features, np.ones(len(keys)))[0])

    def ms(self, costs: Costs, key: OpKey) -> float:
        """Returns the ms of an operator, by its row where there is one."""
        return self.per_op_ms + self.per_mac_ms * macs(key) if costs.lacks([key]) else costs.ms(key)


def with_known(inputs: Inputs, progress: Progress) -> Inputs:
    """Chooses the known networks of a search and keeps them in the run, as ``known.json`` and files.

    Returns the inputs, whose tables then have their rows. What an earlier call chose stays; a space of one network,
    which is searched for that network alone, gets none.
    """
    run, config = inputs.run, inputs.config
    if run.has(KNOWN) or run.has("front.json") or not config.baselines or count(inputs.layout) == 1:
        return inputs
    first = config.target[0]
    budgets = budgets_of_target(inputs, inputs.layout, first, given_budgets(config, first), config.budgets)
    inputs, chosen = _choose_priced(inputs, budgets, progress)
    if not chosen:
        progress.note(f"known networks: none takes {amount(min(budgets) / BELOW, first)} to "
                      f"{amount(max(budgets), first)}, so none stands beside the picks")
    for candidate in chosen:
        base = space_parts(candidate.name)[0]
        run.keep(kept_file(base), resolve("search_spaces", base, ".yaml").read_bytes())
    run.write_json(KNOWN, KnownNetworks(networks=[
        KnownNetwork(name=candidate.name, arch=candidate.arch, inside=candidate.inside, ms=candidate.ms,
                     top1=candidate.top1) for candidate in chosen]).to_json())
    return inputs


def choose(candidates: Sequence[Candidate], target: str, budgets: Sequence[float], most: int) -> list[Candidate]:
    """Chooses at most ``most`` candidates for a range of budgets; returns them fastest first.

    They take from a little less than the smallest budget to the largest one, and none beats another in both ms and
    published accuracy. One after the other it takes the one that adds most to the area below the published front: the
    logarithm of ms to the largest budget, by accuracy above that of the worst.
    """
    within = {each.name: each for each in candidates if is_near(each, target, budgets)}
    points = front(Point(each.name, math.log(each.ms[target]), each.top1) for each in within.values())
    worst = min((point.accuracy for point in points), default=0.0)
    chosen: list[Point] = []

    def gain(point: Point) -> tuple[float, bool, float]:
        return hypervolume([*chosen, point], math.log(max(budgets)), worst), point.id.startswith(FIRST), -point.ms

    while len(chosen) < min(most, len(points)):
        chosen.append(max((point for point in points if point not in chosen), key=gain))
    return sorted((within[point.id] for point in chosen), key=lambda each: each.ms[target])


def is_near(candidate: Candidate, target: str, budgets: Sequence[float]) -> bool:
    """Tells whether a candidate takes from a little less than the smallest budget to the largest one."""
    return min(budgets) / BELOW <= candidate.ms[target] <= max(budgets)


def candidates_of(inputs: Inputs, budgets: Sequence[float]) -> list[Candidate]:
    """Prices every known network at every width with a published accuracy, at the largest input size of a run.

    Returns those in the range of the budgets of the first target.
    Left out is one of more multiply-adds than any network of the space, as it would train longer than all picks, and
    one that has no place at this size, or an operator that a target cannot know.
    """
    rates = {target: _Rate.of(inputs, target) for target, costs in inputs.costs.items() if costs.grows}
    first, found = inputs.config.target[0], list[Candidate]()
    most = sum(map(macs, plan(inputs.layout, largest(inputs.layout, inputs.prices[first]))))
    for at, top1 in _published(tuple(shipped("search_spaces/presets", ".yaml")), inputs.layout.task):
        arch = arch_inside(inputs.layout, at) or only_network(at)
        with suppress(UserError):  # no rows make up for a kernel model
            found.append(_priced(inputs, Candidate(at.space, at, arch, top1, {}), rates))
    near = (each for each in found if is_near(each, first, budgets))
    return [each for each in near if sum(map(macs, each.keys)) <= most
            and (each.inside or each.name != inputs.layout.space)]


@lru_cache(maxsize=4)
def _published(files: tuple[str, ...], task: Task) -> list[tuple[Layout, float]]:
    """Lays out the networks of the files at each width with a published accuracy, and returns that with them.

    Left out is one that has no place at this size, or at this width, as groups of a fixed width do not get narrower.
    """
    laid_out = []
    for base in map(Space.load, files):
        for width, top1 in base.published.top1.items() if base.published else ():
            with suppress(UserError):
                laid_out.append((layout(base.scaled(width), task), top1))
    return laid_out


def _priced(inputs: Inputs, candidate: Candidate, rates: dict[str, _Rate]) -> Candidate:
    """Returns a candidate with its ms on every target. Raises UserError for an operator that one cannot know."""
    keys, ms = candidate.keys, dict[str, float]()
    lacking = [target for target, costs in inputs.costs.items() if costs.lacks(keys)]
    for target, costs in inputs.costs.items():
        parts = [rates[target].ms(costs, key) for key in keys] if target in lacking else costs.ms_many(keys)
        ms[target] = math.fsum(parts)
    return replace(candidate, ms=ms, priced=not lacking)


def _choose_priced(inputs: Inputs, budgets: Sequence[float], progress: Progress) -> tuple[Inputs, list[Candidate]]:
    """Chooses known networks by rough ms, makes the rows of those chosen, and chooses again until all have theirs.

    Those that cannot have them, or need too much memory, are left out by name.
    """
    target, most = inputs.config.target[0], inputs.config.baselines
    left = _with_rows_or_makeable(inputs, candidates_of(inputs, budgets), budgets, progress)
    for _ in range(ROUNDS):
        chosen = choose(left, target, budgets, most)
        out = [each for each in chosen if not _fits(inputs, each, progress)]
        new = [each for each in chosen if not each.priced and each not in out]
        if not new and not out:
            return inputs, chosen
        if new:
            inputs = with_rows(inputs, [each.layout for each in new], progress)
        left = [_priced(inputs, each, {}) if each in new else each for each in left if each not in out]
    return inputs, choose([each for each in left if each.priced], target, budgets, most)


def _with_rows_or_makeable(inputs: Inputs, candidates: Sequence[Candidate], budgets: Sequence[float],
                           progress: Progress) -> list[Candidate]:
    """Returns the candidates that have their rows on every target, or can have them made on this machine.

    The user is told which of the others would have been chosen.
    """
    lacking = {each.name: target for each in candidates for target, costs in inputs.costs.items()
               if not can_complete(target, costs, each.layout)}
    chosen = choose(candidates, inputs.config.target[0], budgets, inputs.config.baselines)
    if names := [each.name for each in chosen if each.name in lacking]:
        target = lacking[names[0]]
        progress.note(f"known networks left out: {', '.join(names)}, whose rows {target} lacks; "
                      f"{inputs.costs[target].advice(names, inputs.size)}")
    return [each for each in candidates if each.name not in lacking]


def _fits(inputs: Inputs, candidate: Candidate, progress: Progress) -> bool:
    """Tells whether a known network fits into the memory of every target, where that is limited; tells the user if not.
    """
    for target, of_space in inputs.footprints.items():
        need = Footprints(inputs.run, target, of_space.npu, of_space.limits, candidate.layout, progress)
        if not need.admits(only_network(candidate.layout)):
            progress.note(f"known network left out: {candidate.name}, which does not fit into {of_space.limits} on "
                          f"{target}")
            return False
    return True


def arch_inside(space: Layout, known: Layout) -> Arch | None:
    """Returns a known network as a network of a space, whose further slots are skipped; None where it is none."""
    ops, left = [], list(zip(known.slots, only_network(known).ops, strict=True))
    for slot in space.slots:
        if left and slot.key(left[0][1]) == left[0][0].key(left[0][1]) and left[0][1] in slot.ops:
            ops.append(left.pop(0)[1])
        elif SKIP in slot.ops:
            ops.append(SKIP)
        else:
            return None
    return None if left or known.fixed != space.fixed else Arch(space.space, space.task.size, tuple(ops))


def inherits(training: SupernetTraining, arch: Arch) -> bool:
    """Tells whether a supernet has the weights of a network: one of its space, of which nothing was pruned."""
    try:
        plan(resized(training.supernet.layout, arch.size), arch)
    except UserError:
        return False
    return True


def recipe_of_known(inputs: Inputs, tuning: FineTuningRecipe) -> FineTuningRecipe:
    """Returns the recipe by which a known network is trained from random weights: that of the picks, from labels alone.

    It sees the images as often as a pick's weights do: in the epochs of the supernet, then in those of the pick.
    """
    shared = sum(supernet_epochs(inputs.config.train, len(inputs.data.train)).values())
    return tuning.model_copy(update={"epochs": shared + tuning.epochs, "distill": "none", "distill_weight": 0.0})


def known_lines(inputs: Inputs, networks: Sequence[KnownNetwork], tuning: FineTuningRecipe) -> list[str]:
    """Returns the line that tells which known networks stand beside the picks; none where there are none."""
    target, epochs = inputs.config.target[0], recipe_of_known(inputs, tuning).epochs
    names = ", ".join(f"{known.name} ({amount(known.ms[target], target)}{', in the space' if known.inside else ''})"
                      for known in networks)
    return [f"known networks beside the picks: {names}; each from random weights in {epochs} epochs, as many as a pick "
            f"sees in all ({setting('baselines', 0)}: none)"] if names else []
