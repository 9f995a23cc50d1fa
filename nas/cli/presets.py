"""Lists known networks, shipped as spaces of size 1, and what they cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli.base import Json, Targets, Width, app, rows
from nas.cli.output import checked_width, print_result
from nas.units import device, millions, unit

if TYPE_CHECKING:
    from nas.pipeline.catalogue import Preset


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

    def work() -> list[Preset]:
        from nas.cli.progress import TerminalProgress
        from nas.pipeline.catalogue import priced_presets
        from nas.plan import Task

        return priced_presets(Task(size, 3, classes), checked_width(width), target or [], TerminalProgress())

    print_result(work, as_json, _show_markdown if markdown else _show)


def _show(presets: list[Preset]) -> None:
    rows([{"name": preset.name, "params": millions(preset.params), "MACs": millions(preset.macs),
           **{f"{unit(target)} {device(target)}": ms for target, ms in preset.ms.items()}, "about": preset.about}
          for preset in presets])


def _show_markdown(presets: list[Preset]) -> None:
    from nas.cli import render

    titles = ["network", "parameters", "multiply-adds", *(f"{unit(target)}, {target}" for target in presets[0].ms)]
    render.markdown(titles, [[preset.name, f"{preset.params / 1e6:.2f} M", f"{preset.macs / 1e6:.0f} M",
                              *("-" if ms is None else f"{ms:.3f}" for ms in preset.ms.values())]
                             for preset in presets])
