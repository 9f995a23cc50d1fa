"""Shows a run: its page, the picture of its front, or its training curves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nas.cli.base import Json, Ops, RunPath, app, out_file, out_folder, run_files
from nas.cli.output import print_result
from nas.errors import UserError


@app.command()
def report(
    run: RunPath,
    png: Annotated[bool, typer.Option("--png", help="The picture of the front instead of the page.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="The training curves for TensorBoard instead.")]
    = False,
    out: Annotated[Path | None, typer.Option(help="File; default: report.html or report.png in the run (for curves a "
                                             "folder: tensorboard).")] = None,
    ops: Ops = None,
    as_json: Json = False,
) -> None:
    """Write one HTML file of a run, to be opened anywhere: front, networks, latency, pruning, training, conditions.

    Works while the search runs, too: the page is of the run so far.
    """

    def work() -> dict[str, Any]:
        from nas.files import write_atomic, write_text
        from nas.run.directory import Run

        run_files(ops)
        here = Run.existing(run)
        if png and tensorboard:
            raise UserError("--png and --tensorboard: give one of the two")
        if tensorboard:
            from nas.report.tensorboard import write_scalars

            out_folder(out)
            folder = out or here.file("tensorboard")
            return {"file": str(folder), "scalars": write_scalars(here, folder)}
        file = out or here.file("report.png" if png else "report.html")
        out_file(out)
        if png:
            from nas.report.figures import draw_front
            from nas.run.records import Front

            front = here.read("front.json", Front)
            if not front.target:
                raise UserError(f"{run}: has no target, so there is no latency to draw over")
            write_atomic(file, lambda picture: draw_front(front, picture))
            return {"file": str(file), "picks": len(front.cards)}
        from nas.report.page import page
        from nas.report.run_data import collect

        facts = collect(here)
        write_text(file, page(facts))
        return {"file": str(file), "picks": len(facts["networks"]), "state": facts["state"], "notes": facts["notes"]}

    print_result(work, as_json, _show)


def _show(result: dict[str, Any]) -> None:
    from nas.cli import render

    for note in result.get("notes", []):
        render.line(note)
    render.line(result["file"])
