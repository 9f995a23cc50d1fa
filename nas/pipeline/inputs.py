"""What every stage of a run works on: data, layout, costs. Loaded from the run's own copies where it has them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from nas.config.search import Config
from nas.config.space import checked_space
from nas.decision import Prices, efficient, prices
from nas.errors import UserError
from nas.files import resolve
from nas.latency.costs import Costs
from nas.latency.devices.ethos_u import EthosU, of_table
from nas.latency.table import LatencyTable
from nas.paths import space_parts
from nas.pipeline.npu_memory import Footprints, Memory, within
from nas.plan import Layout, Task, layout, layouts, resized, restrict
from nas.progress import Progress
from nas.run import operators
from nas.run.directory import Run
from nas.run.images import load_images
from nas.run.tables import copied, costs_for, recorded_costs
from nas.select.ilp import below
from nas.select.problem import Cost, Problem, budgets
from nas.space import Space
from nas.train import placement
from nas.train.data import Data, recorded
from nas.train.header import data_lines
from nas.units import least, unit


@dataclass(frozen=True)
class Scene:
    """A run's settings and inputs. ``costs`` and ``prices`` are keyed by target, in the order given.

    Where input size is searched, layout, data and prices are those of the largest, and ``others`` are the scenes of the
    other sizes, largest first: what is done for one network is done in the scene of its size. ``footprints`` are those
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
    others: dict[int, Scene] = field(default_factory=dict)
    whole: Layout | None = None  # before any choice was left out, if one was

    @property
    def measured(self) -> Layout:
        """What tables were measured of: beside networks of this they have their yardsticks."""
        return self.whole or self.layout

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def size(self) -> int:
        """The input side."""
        return self.layout.task.size

    @property
    def every(self) -> list[Scene]:
        """The scene at each input size, the largest first."""
        return [self, *self.others.values()]

    def at(self, size: int) -> Scene:
        """The scene of an input size; of one that is none of its own, itself: it refuses the network."""
        return self.others.get(size, self)


def set_scene(config: Config, run: Run, targets: Sequence[str], progress: Progress, introduce: bool = True) -> Scene:
    """Loads everything a run needs and records it there; says what the images are where ``introduce`` asks for it.

    Raises UserError for whatever the user has to mend: before anything long starts.
    """
    device = placement.device_of(config.train_on)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    space = _space(config, run)
    data = load_images(config, run)
    if introduce:
        _introduce(config, run, data, progress)
    plans = _layouts(space, data, config)
    costs = {target: _costs(target, config, run, plans, progress) for target in targets}
    priced = {size: {t: prices(plan, c.ms_many) for t, c in costs.items()} for size, plan in plans.items()}
    memory, searched = limits_of_memory(config), plans
    if config.gates.granularity == "target" and not memory.given:  # under a limit a narrower width may be what fits
        keep = efficient(plans[data.size], [one for each in priced.values() for one in each.values()])
        searched = {size: restrict(plan, keep) for size, plan in plans.items()}
    _tell_dropped(plans[data.size], searched[data.size], run, progress)
    footprints = _footprints(memory, run, searched[data.size], costs, progress)
    return _one([Scene(config, run, data.at(size), within(plan, footprints), costs, priced[size], device, footprints,
                       whole=plans[size]) for size, plan in searched.items()])


def _introduce(config: Config, run: Run, data: Data, progress: Progress) -> None:
    """Says what the images are before anything long, here and in the log; nothing once the supernet is trained."""
    if run.has("supernet.pt"):
        return
    lines = data_lines(data, config.train.augment or data.augment)
    for line in lines:
        progress.note(line)
    run.log("data", lines=lines)


def _tell_dropped(whole: Layout, searched: Layout, run: Run, progress: Progress) -> None:
    before, after = (sum(len(slot.ops) for slot in plan.slots) for plan in (whole, searched))
    if after < before and not run.has("supernet.pt"):
        progress.note(f"{before - after} of {before} choices are left out: hidden widths beside which a wider one "
                      "takes no longer on any target (gates.granularity=space keeps them)")


def recorded_scene(config: Config, run: Run, targets: Sequence[str], images: bool = False) -> Scene:
    """A finished run from its own files, without prices, and without ``images`` unless asked for: enough to export."""
    operators.demand(run)
    data = load_images(config, run) if images else recorded(run.read_json("data.json"))
    plans = _layouts(checked_space(config, run.file("space.yaml")), data, config)
    costs = {target: recorded_costs(run, target) for target in targets}
    device = placement.device_of(config.train_on)
    return _one([Scene(config, run, data.at(size), plan, costs, {}, device) for size, plan in plans.items()])


def with_targets(scene: Scene, targets: Sequence[str], kept: Layout, progress: Progress, memory: Memory) -> Scene:
    """The scene with the costs of ``targets``; those that the run did not know are asked for ``kept`` alone.

    ``memory`` are the limits from here on, in place of those of the run.
    """
    plans = {at.size: resized(kept, at.size) for at in scene.every}
    costs = {t: scene.costs[t] if t in scene.costs else _costs(t, scene.config, scene.run, plans, progress)
             for t in targets}
    footprints = _footprints(memory, scene.run, kept, costs, progress)
    return _one([replace(at, costs=costs, footprints=footprints, prices={
        t: at.prices[t] if t in at.prices else prices(plans[at.size], costs[t].ms_many) for t in targets})
        for at in scene.every])


def _one(scenes: Sequence[Scene]) -> Scene:
    """The first, of the largest size, with those of the other sizes."""
    first, *others = scenes
    return replace(first, others={one.size: one for one in others})


def _layouts(space: Space, data: Data, config: Config) -> dict[int, Layout]:
    task = Task(data.size, data.in_ch, len(data.classes))
    return layouts(space, task, config.sizes, exits=config.exits.method != "none")


def with_exit_places(scene: Scene) -> Layout:
    """The scene's space with an exit before every stride change."""
    if scene.layout.exits:
        return scene.layout
    return layout(checked_space(scene.config, scene.run.file("space.yaml")), scene.layout.task, exits=True)


def priced_exits(scene: Scene, at: Layout, target: str, progress: Progress) -> Costs:
    """The costs of a target that knows the exits of a layout: the run's own, else its file, completed if it is this
    machine's.
    """
    costs = scene.costs.get(target)
    if costs is None or not all(costs.covers(exit_.key) for exit_ in at.exits if isinstance(costs, LatencyTable)):
        costs = costs_for(target, [at], _called(scene.config), progress)
    return costs


def problem(scene: Scene, layout: Layout, targets: Sequence[str]) -> Problem:
    """The selection problem over what ``layout`` (pruned or whole) still admits, with one cost a target."""
    rows = {t: tuple(np.array([scene.prices[t].ms[s.index][op] for op in s.ops]) for s in layout.slots)
            for t in targets}
    costs = tuple(Cost(t, unit(t), scene.prices[t].fixed, rows[t]) for t in targets)
    fits = scene.footprints
    flash = tuple(fits[t].flash(layout) for t in targets if t in fits and fits[t].bounds())
    return Problem(layout, tuple(slot.ops for slot in layout.slots), costs + flash,
                   lambda arch: all(one.admits(arch) for one in fits.values()))


def memory_bounds(scene: Scene, target: str) -> dict[str, float]:
    """What ``problem`` limits beside milliseconds, by the name of its cost."""
    return scene.footprints[target].bounds() if target in scene.footprints else {}


def limits_of_memory(config: Config) -> Memory:
    return Memory(config.sram_kb, config.flash_kb)


def compiler(target: str, costs: Costs | None, memory: Memory) -> EthosU:
    """Who counts the memory of a target's networks; ``costs`` None: this machine. Raises UserError if nobody does."""
    npu = of_table(costs.meta) if costs else None
    if npu is None:
        raise UserError(f"{next(iter(memory.given))}: {target} is not compiled by Vela, so what a network needs there "
                        "is not known: leave it out, or give Ethos-U targets only")
    return npu


def _footprints(memory: Memory, run: Run, layout: Layout, costs: dict[str, Costs],
                progress: Progress) -> dict[str, Footprints]:
    if not memory.given:
        return {}
    npus = {target: compiler(target, one, memory) for target, one in costs.items()}
    return {target: Footprints(run, target, npu, memory, layout, progress) for target, npu in npus.items()}


def limits_of(scene: Scene, layout: Layout, target: str, budget_ms: Sequence[float], count: int) -> list[float]:
    """The budgets of one target: those given, or ``count`` geometric ones over what it reaches at some input size.

    Raises UserError for a budget that is out of reach, and where no network fits into the target's memory.
    """
    every = [problem(at, resized(layout, at.size), [target]) for at in scene.every]
    one = min(every, key=lambda one: one.costs[0].smallest)
    fits = scene.footprints.get(target)
    ends = fits.ends(one) if fits else (one.costs[0].smallest, max(one.costs[0].largest for one in every))
    ends = up_to_max(scene.config, target, ends, budget_ms)
    for budget in budget_ms:
        if budget < ends[0]:
            advice = f"raise it{f' or {fits.limits}' if fits else ''}, or search a smaller space (--width)"
            raise UserError(below(one.costs[0], budget, ends[0], advice))
    return sorted(budget_ms) or budgets(one, count, ends)


def up_to_max(config: Config, target: str, ends: tuple[float, float],
              budget_ms: Sequence[float]) -> tuple[float, float]:
    """The range within ``max_ms``, which is of the first target. Raises UserError where that is out of reach."""
    if config.max_ms is None or target != config.target[0]:
        return ends
    if config.max_ms < ends[0]:
        raise UserError(f"--max-ms {config.max_ms:g} is below the smallest reachable {least(ends[0], target)}; "
                        "raise it, or search a smaller space (--width)")
    if over := [budget for budget in budget_ms if budget > config.max_ms]:
        raise UserError(f"--budget-ms {over[0]:g} is above --max-ms {config.max_ms:g}")
    return ends[0], min(ends[1], config.max_ms)


def _space(config: Config, run: Run) -> Space:
    """From the run's own copy once there is one, so that a file edited later does not change the run."""
    operators.demand(run)
    if not run.has("space.yaml"):
        operators.keep(run, checked_space(config))  # refuse it before it is copied
        run.keep("space.yaml", resolve("search_spaces", space_parts(config.space)[0], ".yaml").read_bytes())
    return checked_space(config, run.file("space.yaml"))


def _costs(target: str, config: Config, run: Run, plans: dict[int, Layout], progress: Progress) -> Costs:
    return copied(target, run, config.target, list(plans.values()), _called(config), progress)


def _called(config: Config) -> str:
    """The space as a shell takes it."""
    return shlex.quote(config.space) + (f" --width {config.width:g}" if config.width != 1 else "")
