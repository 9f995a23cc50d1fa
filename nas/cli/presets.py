"""Lists known networks, shipped as spaces of size 1, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from nas.cli.base import Json, Targets, Width, app, rows
from nas.cli.output import checked_width, print_result
from nas.units import device, unit


@app.command()
def presets(
    target: Targets = None,
    size: Annotated[int, typer.Option(help="Input side in pixels.")] = 224,
    classes: Annotated[int, typer.Option(min=1, help="Outputs of the head.")] = 1000,
    width: Width = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="The table of docs/spaces.md.")] = False,
    as_json: Json = False,
) -> None:
    """List known networks. Their parameters, MACs and predicted ms; each is a --space of one network."""

    def work() -> list[dict[str, Any]]:
        from nas.cli.progress import TerminalProgress
        from nas.files import shipped
        from nas.latency.costs import load
        from nas.plan import Task

        costs, progress = {name: load(name) for name in target or []}, TerminalProgress()
        task, factor = Task(size, 3, classes), checked_width(width)
        presets = [_preset(name, factor, task, costs, progress) for name in shipped("search_spaces/presets", ".yaml")]
        for line in _lacking(presets, costs, size):
            progress.note(line)
        return presets

    print_result(work, as_json, _show_markdown if markdown else _show)


def _lacking(presets: list[dict[str, Any]], costs: dict[str, Any], size: int) -> Iterator[str]:
    """Says of each table which networks it has no rows for, and what makes them."""
    for target, table in costs.items():
        names = [preset["name"] for preset in presets if preset["ms"][target] is None]
        if names and table.grows:
            yield f"{target}: lacks rows at {size} pixels of {', '.join(names)}; " + table.advice(names, size)


def _preset(name: str, width: float, task: Any, costs: dict[str, Any], progress: Any) -> dict[str, Any]:
    """Returns what a network is and costs; completes ``costs`` by its rows, where these can be compiled."""
    from nas import sampling
    from nas.errors import UserError
    from nas.files import resolve
    from nas.plan import layout, macs, params, plan
    from nas.run.tables import filled, lacks
    from nas.space import Space

    space = Space.load(name).scaled(width)
    at = layout(space, task)
    keys = plan(at, sampling.smallest(at))  # its only one

    def ms(target: str) -> float | None:
        try:
            if lacks(costs[target], at):
                costs[target] = filled(target, at, progress, measure=False)
            return sum(costs[target].ms_many(keys))
        except UserError as error:
            if not costs[target].grows:
                progress.note(f"{space.name} on {target}: not known: {error}")
            return None

    return {"name": space.name, "size": task.size, "slots": len(at.slots), "params": sum(map(params, keys)),
            "macs": sum(map(macs, keys)), "ms": {target: ms(target) for target in costs}, "about": space.about,
            "file": str(resolve("search_spaces", name, ".yaml"))}


def _shown(preset: dict[str, Any]) -> dict[str, Any]:
    from nas.units import millions

    return {"name": preset["name"], "params": millions(preset["params"]), "MACs": millions(preset["macs"]),
            **{f"{unit(target)} {device(target)}": ms for target, ms in preset["ms"].items()}, "about": preset["about"]}


def _show(presets: list[dict[str, Any]]) -> None:
    rows([_shown(preset) for preset in presets])


def _show_markdown(presets: list[dict[str, Any]]) -> None:
    from nas.cli import render

    titles = ["network", "parameters", "multiply-adds", *(f"{unit(target)}, {target}" for target in presets[0]["ms"])]
    render.markdown(titles, [[preset["name"], f"{preset['params'] / 1e6:.2f} M", f"{preset['macs'] / 1e6:.0f} M",
                            *("-" if value is None else f"{value:.3f}" for value in preset["ms"].values())]
                           for preset in presets])
