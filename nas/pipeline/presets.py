"""Says what the known networks are, which are shipped as spaces of one network, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nas import sampling
from nas.errors import UserError
from nas.files import resolve, shipped
from nas.latency.base import Costs
from nas.latency.costs import load
from nas.plan import Layout, OpKey, Task, layout, macs, params, plan
from nas.progress import Progress
from nas.run.tables import filled, lacks
from nas.space import Space


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


def price_presets(task: Task, width: float, targets: Sequence[str], progress: Progress) -> list[Preset]:
    """Prices every known network, with a factor ``width`` of its channels.

    Lines of progress say what is not known, and why. Rows that a table lacks are compiled where that can be done, and
    never measured. Raises UserError for a target that is not known.
    """
    costs = {target: load(target) for target in targets}
    presets = [_preset(name, width, task, costs, progress) for name in shipped("search_spaces/presets", ".yaml")]
    for line in _lacking(presets, costs, task.size):
        progress.note(line)
    return presets


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
