"""Loads what every stage of a run works on, from the run's own copies where it has them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch

from nas.config.search import Config
from nas.config.space import checked_space
from nas.decision import affordable, efficient, of_branches, prices
from nas.errors import UserError, setting
from nas.files import resolve
from nas.latency.base import Costs
from nas.latency.devices.ethos_u import EthosU, compiler_of_table
from nas.paths import space_parts
from nas.pipeline.inputs import Inputs
from nas.pipeline.npu_memory import Footprints, Memory, fitting_layout
from nas.plan import Layout, Task, layout, layouts, resized, restrict
from nas.progress import NoProgress, Progress
from nas.run import events, operators, timeline
from nas.run.branches import kept_branches
from nas.run.directory import Run
from nas.run.images import load_images, recorded_images
from nas.run.known import known_layout
from nas.run.tables import copied, costs_for, recorded_costs
from nas.space import Space
from nas.training import augment, placement
from nas.training.augmentation import Augmentation
from nas.training.data import Data, check_data_dir
from nas.training.header import data_lines

HEADROOM = 1.25  # times the largest budget: what the dearest network that is trained costs at least


def refuse_inputs(config: Config) -> None:
    """Raises UserError for a space, images, a device or an augmentation that cannot be used; writes nothing."""
    checked_space(config)
    check_data_dir(config.data, config.data_dir)
    placement.device_of(config.train_on)
    if config.train.augment:
        augment.check_augmentation(config.train.augment)


def prepare_inputs(config: Config, run: Run, targets: Sequence[str], progress: Progress, introduce: bool = True,
                   timed_in: Run | None = None) -> Inputs:
    """Loads a run's inputs and measures what the latency tables of its targets lack, where this machine can.

    How long each takes is logged in the run ``timed_in``. Raises UserError for whatever the user has to mend, before
    anything long starts.
    """
    def phase(name: str) -> AbstractContextManager[None]:
        return timeline.phase(timed_in, name) if timed_in else nullcontext()

    with phase("inputs"):
        inputs = load_inputs(config, run, progress, introduce)
    with phase("latency table"):
        costs = complete_tables(inputs, targets, [at.layout for at in inputs.every], progress)
    with phase("inputs"):
        return with_costs(inputs, costs, progress)


def load_inputs(config: Config, run: Run, progress: Progress, introduce: bool = True) -> Inputs:
    """Loads space and images and records them in the run; costs are not there yet (``with_costs`` adds them).

    With ``introduce`` it tells the user what the images are. Raises UserError for whatever the user has to mend.
    """
    device = placement.device_of(config.train_on)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    space = _load_space(config, run)
    data = load_images(config, run)
    if introduce:
        _describe_images(config, run, data, progress)
    return _join_sizes([Inputs(config, run, data.at(size), layout, {}, {}, device)
                        for size, layout in _layouts(space, data, config).items()])


def complete_tables(inputs: Inputs, targets: Sequence[str], layouts: Sequence[Layout],
                    progress: Progress) -> dict[str, Costs]:
    """Copies the costs of targets into the run, with every row that ``layouts`` need, and returns them by target.

    Rows that are missing are measured or compiled first where this machine can, which may take minutes. Raises
    UserError where it cannot.
    """
    return {target: copied(target, inputs.run, inputs.config.target, layouts, _space_at_width(inputs.config), progress)
            for target in targets}


def with_costs(inputs: Inputs, costs: dict[str, Costs], progress: Progress) -> Inputs:
    """Returns the inputs with every operator priced; choices that no target or budget needs are left out of the
    layouts. The user is told of the former.
    """
    config, layouts = inputs.config, {at.size: at.measured for at in inputs.every}
    priced = {size: {t: prices(layout, c.ms_many) for t, c in costs.items()} for size, layout in layouts.items()}
    useful = layouts
    if config.gates.granularity == "target" and not memory_limits(config).given:  # else a narrower one may be what fits
        keep = efficient(inputs.measured, [table for tables in priced.values() for table in tables.values()])
        useful = {size: restrict(layout, keep) for size, layout in layouts.items()}
    _tell_left_out(inputs.measured, useful[inputs.size], inputs.run, progress)
    every = [replace(at, costs=costs, prices=priced[at.size], whole=at.measured, useful=useful[at.size])
             for at in inputs.every]
    return cut_to_limits(_join_sizes(every), progress)


def cut_to_limits(inputs: Inputs, progress: Progress) -> Inputs:
    """Returns priced inputs whose layouts lack what is far too wide for the budgets, and what memory has no room for.

    Another cut begins with all choices again, so that budgets may change without a price being looked up.
    """
    searched = _within_budgets(inputs)
    footprints = _footprints(memory_limits(inputs.config), inputs.run, searched[inputs.size], inputs.costs, progress)
    return _join_sizes([replace(at, layout=fitting_layout(searched[at.size], footprints), footprints=footprints)
                        for at in inputs.every])


def _within_budgets(inputs: Inputs) -> dict[int, Layout]:
    """Returns the layouts without what a race of branches left out, nor, where the budgets of all targets are known,
    what is far too wide for them.

    ``HEADROOM`` is left, as a network may be wide in some slots and narrow in others.
    """
    config, layouts = inputs.config, {at.size: at.useful or at.measured for at in inputs.every}
    if branches := kept_branches(inputs.run):
        layouts = {size: restrict(layout, of_branches(layout, branches)) for size, layout in layouts.items()}
    if not config.budget_ms or len(config.target) > 1 or config.gates.granularity != "target":
        return layouts
    most_ms = HEADROOM * max(config.budget_ms)
    keep = [affordable(layouts[at.size], at.prices[config.target[0]], most_ms) for at in inputs.every]
    widest = [[op for op in slot.ops if any(op in kept[slot.index] for kept in keep)]
              for slot in next(iter(layouts.values())).slots]
    return {size: restrict(layout, widest) for size, layout in layouts.items()}


def with_rows(inputs: Inputs, further: Sequence[Layout], progress: Progress) -> Inputs:
    """Returns the inputs with tables that have the rows of ``further`` layouts as well, and priced by these anew.

    Rows that are missing are made as ``complete_tables`` does; where a correction changes with them, so do prices.
    """
    plans = [*(at.measured for at in inputs.every), *further]
    costs = complete_tables(inputs, list(inputs.costs), plans, progress)
    return with_costs(inputs, costs, NoProgress())


def _describe_images(config: Config, run: Run, data: Data, progress: Progress) -> None:
    """Tells the user what the images are, and logs it; not once the supernet is trained, as it was told then."""
    if run.has("supernet.pt"):
        return
    how = Augmentation.from_config(config.train, data.augment)
    lines = data_lines(data, how.kind, on_top=augment.describe_more(how, data.size))
    for line in lines:
        progress.note(line)
    run.log(events.Introduction(lines=lines))


def _tell_left_out(whole: Layout, searched: Layout, run: Run, progress: Progress) -> None:
    """Tells the user how many choices of the space are left out, and why; not once the supernet is trained."""
    before, after = (sum(len(slot.ops) for slot in plan.slots) for plan in (whole, searched))
    if after < before and not run.has("supernet.pt"):
        progress.note(f"{before - after} of {before} choices are left out: hidden widths beside which a wider one "
                      "takes no longer on any target (gates.granularity=space keeps them)")


def load_finished_inputs(config: Config, run: Run, targets: Sequence[str], images: bool = False) -> Inputs:
    """Loads a finished run from its own files, as far as an export needs it: without prices, images where asked for.
    """
    operators.require_files(run)
    data = load_images(config, run) if images else recorded_images(run)
    plans = _layouts(checked_space(config, run.file("space.yaml")), data, config)
    costs = {target: recorded_costs(run, target) for target in targets}
    device = placement.device_of(config.train_on)
    return _join_sizes([Inputs(config, run, data.at(size), plan, costs, {}, device) for size, plan in plans.items()])


def with_targets(inputs: Inputs, costs: dict[str, Costs], kept: Layout, progress: Progress, memory: Memory) -> Inputs:
    """Returns the inputs with other targets, those of ``costs``; ``memory`` are their limits of SRAM and flash.

    Targets that the run did not have are priced for the layout ``kept`` alone, which pruning has left.
    """
    footprints = _footprints(memory, inputs.run, kept, costs, progress)
    return _join_sizes([replace(at, costs=costs, footprints=footprints, prices={
        t: at.prices[t] if t in at.prices else prices(resized(kept, at.size), costs[t].ms_many) for t in costs})
        for at in inputs.every])


def _join_sizes(inputs: Sequence[Inputs]) -> Inputs:
    """Joins the inputs of several sizes, largest first: returns the first, with the others in it."""
    first, *others = inputs
    return replace(first, others={at.size: at for at in others})


def _layouts(space: Space, data: Data, config: Config) -> dict[int, Layout]:
    """Returns the layout of a space for each input size, the largest first."""
    task = Task(data.size, data.in_ch, len(data.classes))
    return layouts(space, task, config.sizes, exits=config.exits.method != "none")


def with_exit_places(inputs: Inputs) -> Layout:
    """Returns the layout of the inputs' space with an exit before every stride change."""
    if inputs.layout.exits:
        return inputs.layout
    if known := known_layout(inputs.run, inputs.layout.space, inputs.layout.task, exits=True):
        return known
    return layout(checked_space(inputs.config, inputs.run.file("space.yaml")), inputs.layout.task, exits=True)


def priced_exits(inputs: Inputs, at: Layout, target: str, progress: Progress) -> Costs:
    """Returns a target's costs with those of all exits of a layout.

    They are the run's own where these have them, else those of the target's file, in which this machine measures what
    is missing if it is the target.
    """
    costs = inputs.costs.get(target)
    if costs is None or costs.lacks(exit_.key for exit_ in at.exits):
        elsewhere = known_layout(inputs.run, at.space, at.task) is not None
        costs = costs_for(target, [at], at.space if elsewhere else _space_at_width(inputs.config), progress)
    return costs


def memory_limits(config: Config) -> Memory:
    """Returns the limits of SRAM and flash that the settings give."""
    return Memory(config.sram_kb, config.flash_kb)


def npu_of(target: str, costs: Costs | None, memory: Memory) -> EthosU:
    """Returns the NPU whose compiler counts the memory of a target's networks.

    Raises UserError for a target that is not compiled, and where ``costs`` are None, that is, for this machine.
    """
    npu = compiler_of_table(costs.meta) if costs else None
    if npu is None:
        raise UserError(f"{setting(next(iter(memory.given)))}: {target} is not compiled by Vela, so what a network "
                        "needs there is not known: leave it out, or give Ethos-U targets only")
    return npu


def _footprints(memory: Memory, run: Run, layout: Layout, costs: dict[str, Costs],
                progress: Progress) -> dict[str, Footprints]:
    """Returns, by target, what counts SRAM and flash of networks; nothing where neither is limited."""
    if not memory.given:
        return {}
    npus = {target: npu_of(target, costs_of_target, memory) for target, costs_of_target in costs.items()}
    return {target: Footprints(run, target, npu, memory, layout, progress) for target, npu in npus.items()}


def _load_space(config: Config, run: Run) -> Space:
    """Loads the space from the run's copy, which the first call makes: a file edited later does not change the run."""
    operators.require_files(run)
    if not run.has("space.yaml"):
        operators.keep(run, checked_space(config))  # refuses a broken space before it is copied
        run.keep("space.yaml", resolve("search_spaces", space_parts(config.space)[0], ".yaml").read_bytes())
    return checked_space(config, run.file("space.yaml"))


def _space_at_width(config: Config) -> str:
    """Returns the space as ``NAME@WIDTH``, for a command that fills a table."""
    base, width = space_parts(config.space)
    return config.space if config.width == 1 else f"{base}@{float(width or 1) * config.width:g}"
