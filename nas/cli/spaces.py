"""Search spaces."""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer

from nas.cli.base import Json, app, rows
from nas.terminal import print_result


@app.command()
def spaces(
    size: Annotated[int, typer.Option(help="Input side in pixels.")] = 224,
    as_json: Json = False,
) -> None:
    """List the shipped search spaces. Known networks are apart: nas presets."""

    def work() -> list[dict[str, Any]]:
        from nas.files import shipped

        return [_space(name, size) for name in shipped("search_spaces", ".yaml")]

    print_result(work, as_json, rows)


def _space(name: str, size: int) -> dict[str, Any]:
    from nas import genome
    from nas.files import resolve
    from nas.plan import Task, candidates, layout
    from nas.space import Space

    space = Space.load(name)
    plan = layout(space, Task(size, 3, 1000))
    return {"name": name, "slots": len(plan.slots), "archs": f"10^{math.log10(genome.size(plan)):.1f}",
            "operators": len(candidates(plan)), "ops": list(space.ops), "channels": [s.out for s in space.stages],
            "depth": [s.depth for s in space.stages], "last_map": plan.head.size, "about": space.about,
            "file": str(resolve("search_spaces", name, ".yaml"))}
