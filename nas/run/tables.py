"""Finds the costs of a run's targets, completes them where this machine can, and copies them into the run.

Rows that are missing are measured where a table is this machine's, and compiled where Vela made it; a table of another
machine is left as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from nas.errors import UserError, call
from nas.files import folder
from nas.latency import costs as cost_models
from nas.latency.base import Costs
from nas.latency.bench import Estimator
from nas.latency.devices import board, local_device, local_targets, open_device
from nas.latency.devices.ethos_u import compiler_of_table
from nas.latency.profile import estimate_s, profile, table_so_far, unfinished
from nas.latency.timing import Device
from nas.plan import Layout, candidates
from nas.progress import Progress
from nas.run import events
from nas.run.directory import Run
from nas.run.settings import TABLES
from nas.text import duration
from nas.units import is_count


def find_costs(target: str) -> Path | None:
    """Returns the file of a target; None for one that has still to be made here, and for a count. Raises UserError."""
    if is_count(target):
        return None
    if target in cost_models.known() or target not in (*local_targets(), *board.TARGETS):
        return cost_models.find(target)
    _made_here(target)  # refuses a GPU that is not there
    return None


def costs_for(target: str, plans: Sequence[Layout], space: str, progress: Progress) -> Costs:
    """Returns the costs of a target with all that the layouts need. ``space`` is how the command calls it.

    Raises UserError where rows are missing that cannot be made here, with the command that makes them there.
    """
    return cost_models.load(target if is_count(target) else str(_completed(target, plans, space, progress)))


def filled(target: str, plan: Layout, progress: Progress, measure: bool = True) -> Costs:
    """Returns the costs of a target with the rows that can be made here; others are refused where they are asked for.

    Without ``measure`` rows are compiled only: a list of networks is not worth minutes of this machine.
    """
    return cost_models.load(target if is_count(target) else str(complete(target, plan, progress, measure)))


def copied(target: str, run: Run, known: Sequence[str], plans: Sequence[Layout], space: str,
           progress: Progress) -> Costs:
    """Returns costs from the run's copy of the target's file, found, completed and copied at first use.

    ``known`` are the run's targets. Raises UserError as ``costs_for``.
    """
    if is_count(target):
        return cost_models.load(target)
    here = Path(target).is_file() and target not in known  # a file that the run does not stand on
    name = f"tables/{label(target)}.json" if here else kept_table(run, target)
    if run.has(name):
        kept = cost_models.load(str(run.file(name)))
        if not any(lacks(kept, plan) for plan in plans):
            return kept
    path = _completed(target, plans, space, progress)
    run.write(name, lambda file: file.write(path.read_bytes()))
    if target.endswith(".json"):
        run.write_json(TABLES, {**(run.read_json(TABLES) if run.has(TABLES) else {}), target: name})
    costs = cost_models.load(str(run.file(name)))
    came = ", ".join([str(path), *origin(costs)])
    run.log(events.TableCopied(target=target, file=name, came=came))
    progress.note(f"costs of {target}: {came}")
    return costs


def can_complete(target: str, costs: Costs, plan: Layout) -> bool:
    """Tells whether a target has every row that a layout needs, or can have them made on this machine."""
    try:
        return not lacks(costs, plan) or _maker(target, costs, plan) is not None
    except UserError:  # Vela is not installed
        return False


def origin(costs: Costs) -> list[str]:
    """Returns how the figures of a target came about: how and when, and whether on a busy machine."""
    how = " on ".join(part for part in (costs.meta.method, costs.meta.date) if part)
    return [text for text in (how, costs.meta.busy) if text]


def recorded_costs(run: Run, target: str) -> Costs:
    """Returns costs from the run's copy. Raises UserError where that is missing or broken."""
    return cost_models.load(target if is_count(target) else str(run.file(kept_table(run, target))))


def label(target: str) -> str:
    """Returns a file name for a target: its name, and for a path a digest that keeps two files of one name apart."""
    if not target.endswith(".json"):
        return target
    return f"{Path(target).stem}-{hashlib.sha256(str(Path(target).resolve()).encode()).hexdigest()[:6]}"


def kept_table(run: Run, target: str) -> str:
    """Returns the path of the run's copy of a target's file, by what the target was called when it was copied."""
    named = run.read_json(TABLES).get(target) if run.has(TABLES) else None
    return named or f"tables/{label(target)}.json"


def lacks(costs: Costs, plan: Layout) -> bool:
    return costs.lacks(candidates(plan))


def require(path: Path, space: str, plan: Layout) -> None:
    """Raises UserError where a table lacks rows, with the command for its own file: that of the run is a copy."""
    cost_models.load(str(path)).require(candidates(plan), space, plan.task.size)


def complete(target: str, plan: Layout, progress: Progress, measure: bool = True) -> Path:
    """Makes what a table of this machine or of Vela lacks, after saying how much; leaves other targets as they are.

    A shipped table stays as it is: its rows and the new ones are then in the user's own. Raises UserError where Vela is
    needed and not installed.
    """
    path = find_costs(target) or cost_models.LOCAL / f"{target}.json"
    table = cost_models.load(str(path)) if path.is_file() else None
    if measure:
        _tell_elsewhere(target, table, progress)
    if table is not None and not lacks(table, plan) and not unfinished(plan, table):
        return path
    device = _maker(target, table, plan)
    if device is None or not (measure or isinstance(device, Estimator)):
        return path
    shipped = path.parent.resolve() == folder("latency_tables").resolve()
    here = cost_models.LOCAL / path.name if shipped else path
    so_far = table_so_far(here, device, tell=progress.note)
    rows = len(so_far.missing(candidates(plan)))
    if rows or unfinished(plan, so_far):
        what, how = ("compiled", "compiling") if isinstance(device, Estimator) else ("measured", "measuring")
        progress.note(f"{target}: {rows} rows are not {what} yet; {how} them now into {here}, which takes about "
                      f"{duration(estimate_s(plan, so_far, device))} where nothing else runs")
        profile(plan, here, device=device, knots=False, progress=progress)
    return here


def _completed(target: str, plans: Sequence[Layout], space: str, progress: Progress) -> Path:
    """Completes a table for all the layouts, and returns a file that has every row."""
    for plan in plans:
        path = complete(target, plan, progress)
        require(path, space, plan)
    return path


def _maker(target: str, table: Costs | None, plan: Layout) -> Device | Estimator | None:
    """Returns the device that measures or compiles a target's rows here; None for a table of another machine."""
    if table is None:
        return _made_here(target)
    if device := local_device(table.meta):
        return device
    try:
        return compiler_of_table(table.meta)
    except UserError as error:
        rows = table.missing(candidates(plan))
        raise UserError(f"{target}: {len(rows)} of the rows that {plan.space} needs at {plan.task.size} are missing, "
                        f"first {rows[0]}; to compile them, {error}") from None


def _made_here(target: str) -> Device | Estimator:
    name, precision = local_targets().get(target, (target, None))
    return open_device(name, precision=precision)


def _tell_elsewhere(target: str, table: Costs | None, progress: Progress) -> None:
    if table is not None and local_device(table.meta) is None and table.meta.device in dict(local_targets().values()):
        meta = table.meta
        progress.note(f"{target}: measured on {meta.processor} with {meta.runtime} {meta.runtime_version}, not here: "
                      f"picks will not be measured; {call('profile', device=meta.device)} makes a table of this "
                      "machine")
