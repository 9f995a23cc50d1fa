"""Lists the shipped search spaces, and checks one of the user's before anything is trained on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from nas.cli.base import Json, Ops, Targets, app, rows, run_files
from nas.cli.output import print_result
from nas.errors import UserError
from nas.units import power_of_ten


@app.command()
def spaces(
    check: Annotated[str | None, typer.Option("--check", metavar="FILE", help="Say what this space is and costs, or "
                                              "name every mistake of it.")] = None,
    size: Annotated[int, typer.Option(help="Input side in pixels.")] = 224,
    classes: Annotated[int, typer.Option(min=1, help="Outputs of the head, for --check and --target.")] = 1000,
    target: Targets = None,
    ops: Ops = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="The table of docs/spaces.md; goes with --target.")]
    = False,
    as_json: Json = False,
) -> None:
    """List the shipped search spaces (known networks: nas presets), with --target what they cost there; or check one.

    Nothing is trained or measured. A dash stands where a target lacks rows: --check NAME says which.
    """

    def work() -> Any:
        from nas.files import shipped

        if ops and check is None:
            raise UserError("--ops: goes with --check FILE")
        if markdown and (check is not None or not target):
            raise UserError("--markdown: goes with --target, and not with --check")
        if check is None and not target:
            return [_space(name, size) for name in shipped("search_spaces", ".yaml")]
        run_files(ops)
        from nas.cli.progress import TerminalProgress
        from nas.latency.costs import load
        from nas.pipeline.check_space import check as examine
        from nas.plan import Task

        task, progress = Task(size, 3, classes), TerminalProgress()
        if check is not None:
            return examine(check, task, target or [], progress)
        for name in target or []:
            load(name)  # one that is no target is said once, not in every row
        return [examine(name, task, target or [], progress) for name in shipped("search_spaces", ".yaml")]

    print_result(work, as_json, _printer(check, target, markdown))


def _space(name: str, size: int) -> dict[str, Any]:
    from nas import sampling
    from nas.files import resolve
    from nas.plan import Task, candidates, layout
    from nas.space import Space

    space = Space.load(name)
    plan = layout(space, Task(size, 3, 1000))
    return {"name": name, "slots": len(plan.slots), "archs": power_of_ten(sampling.count(plan)),
            "operators": len(candidates(plan)), "ops": list(space.ops), "channels": [s.out for s in space.stages],
            "depth": [s.depth for s in space.stages], "last_map": plan.head.size, "about": space.about,
            "file": str(resolve("search_spaces", name, ".yaml"))}


def _printer(check: str | None, target: list[str] | None, markdown: bool) -> Callable[[Any], None]:
    """Returns what prints the answer: one space, a list with or without costs, or the table of the docs."""
    from nas.cli import render

    if check is not None:
        return render.space
    if not target:
        return rows
    return render.table_of_spaces if markdown else render.spaces
