"""Lists what is shipped: search spaces, and known networks (spaces of one network) with what they cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nas import sampling
from nas.errors import UserError
from nas.files import resolve, shipped
from nas.latency.base import Costs
from nas.latency.costs import load
from nas.pipeline import check_space
from nas.pipeline.check_space import SpaceFacts
from nas.plan import Layout, OpKey, Task, candidates, layout, macs, params, plan
from nas.progress import Progress
from nas.run.tables import filled, lacks
from nas.space import Space
from nas.units import power_of_ten


@dataclass(frozen=True)
class ListedSpace:
    """Describes a shipped space at an input size; ``archs`` is the number of its networks as a power of ten.

    ``channels`` and ``depth`` are those of its stages, ``last_map`` is the side of the map before the head.
    """

    name: str
    slots: int
    archs: str
    operators: int
    ops: tuple[str, ...]
    channels: tuple[int, ...]
    depth: tuple[int, ...]
    last_map: int
    about: str
    file: Path


@dataclass(frozen=True)
class Preset:
    """Describes a known network, and what it costs on each target; None where that is not known."""

    name: str
    size: int
    slots: int
    params: int
    macs: int
    ms: Mapping[str, float | None]
    about: str
    file: Path


def listed_spaces(size: int) -> list[ListedSpace]:
    """Describes every shipped space; nothing is priced."""
    return [_listed(name, size) for name in shipped("search_spaces", ".yaml")]


def priced_spaces(task: Task, targets: Sequence[str], progress: Progress) -> list[SpaceFacts]:
    """Describes every shipped space with what its networks cost. Raises UserError for a target that is not known."""
    for target in targets:
        load(target)  # one that is no target is said once, not in every row
    return [check_space.check(name, task, targets, progress) for name in shipped("search_spaces", ".yaml")]


def priced_presets(task: Task, width: float, targets: Sequence[str], progress: Progress) -> list[Preset]:
    """Prices every known network, with a factor ``width`` of its channels.

    Lines of progress say what is not known, and why. Rows that a table lacks are compiled where that can be done, and
    never measured. Raises UserError for a target that is not known.
    """
    costs = {target: load(target) for target in targets}
    presets = [_preset(name, width, task, costs, progress) for name in shipped("search_spaces/presets", ".yaml")]
    for line in _lacking(presets, costs, task.size):
        progress.note(line)
    return presets


def _listed(name: str, size: int) -> ListedSpace:
    space = Space.load(name)
    at = layout(space, Task(size, 3, 1000))
    return ListedSpace(name, len(at.slots), power_of_ten(sampling.count(at)), len(candidates(at)), tuple(space.ops),
                       tuple(stage.out for stage in space.stages), tuple(stage.depth for stage in space.stages),
                       at.head.size, space.about, resolve("search_spaces", name, ".yaml"))


def _preset(name: str, width: float, task: Task, costs: dict[str, Costs], progress: Progress) -> Preset:
    """Lays out and prices a network; ``costs`` gets the rows that are compiled for it."""
    space = Space.load(name).scaled(width)
    at = layout(space, task)
    keys = plan(at, sampling.smallest(at))  # its only one
    return Preset(space.name, task.size, len(at.slots), sum(map(params, keys)), sum(map(macs, keys)),
                  {target: _ms(target, costs, at, keys, progress) for target in costs}, space.about,
                  resolve("search_spaces", name, ".yaml"))


def _ms(target: str, costs: dict[str, Costs], at: Layout, keys: Sequence[OpKey], progress: Progress) -> float | None:
    """Prices a network on a target; a line of progress says why that cannot be done, where no row would help."""
    try:
        if lacks(costs[target], at):
            costs[target] = filled(target, at, progress, measure=False)
        return sum(costs[target].ms_many(keys))
    except UserError as error:
        if not costs[target].grows:
            progress.note(f"{at.space} on {target}: not known: {error}")
        return None


def _lacking(presets: Sequence[Preset], costs: Mapping[str, Costs], size: int) -> Iterator[str]:
    """Says of each table which networks it has no rows for, and what makes them."""
    for target, table in costs.items():
        names = [preset.name for preset in presets if preset.ms[target] is None]
        if names and table.grows:
            yield f"{target}: lacks rows at {size} pixels of {', '.join(names)}; " + table.advice(names, size)
