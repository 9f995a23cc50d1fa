"""Lists the shipped search spaces, and checks one of the user's before anything is trained on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli.base import Json, Ops, Targets, app, run_files
from nas.cli.output import print_result
from nas.errors import UserError

if TYPE_CHECKING:
    from nas.pipeline.catalogue import ListedSpace
    from nas.pipeline.check_space import SpaceFacts


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

    from nas.cli import render

    def checked() -> SpaceFacts:
        from nas.cli.progress import TerminalProgress
        from nas.pipeline import check_space
        from nas.plan import Task

        run_files(ops)
        return check_space.check(str(check), Task(size, 3, classes), target or [], TerminalProgress())

    def priced() -> list[SpaceFacts]:
        from nas.cli.progress import TerminalProgress
        from nas.pipeline.catalogue import priced_spaces
        from nas.plan import Task

        return priced_spaces(Task(size, 3, classes), target or [], TerminalProgress())

    def listed() -> list[ListedSpace]:
        from nas.pipeline.catalogue import listed_spaces

        return listed_spaces(size)

    if ops and check is None:
        raise UserError("--ops: goes with --check FILE")
    if markdown and (check is not None or not target):
        raise UserError("--markdown: goes with --target, and not with --check")
    if check is not None:
        print_result(checked, as_json, render.space)
    elif target:
        print_result(priced, as_json, render.table_of_spaces if markdown else render.spaces)
    else:
        print_result(listed, as_json, lambda spaces: render.rows(list(map(vars, spaces))))
