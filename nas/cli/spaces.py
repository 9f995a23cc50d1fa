"""Search spaces: those that are shipped, and one of the user's own before anything is trained on it."""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer

from nas.cli.base import Json, Ops, Targets, app, rows, run_files
from nas.errors import UserError
from nas.terminal import print_result


@app.command()
def spaces(
    check: Annotated[str | None, typer.Option("--check", metavar="FILE", help="Say what this space is and costs, or "
                                              "name every mistake of it.")] = None,
    size: Annotated[int, typer.Option(help="Input side in pixels.")] = 224,
    classes: Annotated[int, typer.Option(min=1, help="Outputs of the head.")] = 1000,
    target: Targets = None,
    ops: Ops = None,
    as_json: Json = False,
) -> None:
    """List the shipped search spaces (known networks: nas presets), or check one. Nothing is trained or measured."""

    def work() -> Any:
        from nas.files import shipped

        if check is None:
            if target or ops:
                raise UserError(f"{'--target' if target else '--ops'}: goes with --check FILE")
            return [_space(name, size) for name in shipped("search_spaces", ".yaml")]
        run_files(ops)
        from nas.check import check as examine
        from nas.plan import Task
        from nas.progress import Progress

        return examine(check, Task(size, 3, classes), target or [], Progress())

    print_result(work, as_json, rows if check is None else _show_check)


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


def _show_check(result: dict[str, Any]) -> None:
    from nas import show

    show.space(result)
