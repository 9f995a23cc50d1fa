"""The user's own operators in a run: which files its space needs, what they were, and that nobody else's code runs.

A run keeps a copy of each file in ``ops/`` and its hash in ``ops.json``, and executes neither: whoever goes on with the
run names the file again, and it has to be the same.
"""

from __future__ import annotations

from functools import partial
from typing import Any, BinaryIO

from nas.arch import Op
from nas.errors import UserError, setting
from nas.ops import user_files
from nas.run.directory import Run
from nas.space import Space

OPS = "ops.json"


def names(space: Space) -> set[str]:
    """Operators that a space names, known or not."""
    fixed = {Op.parse(part.op).name for part in (space.stem, space.head, space.exit)}
    return fixed.union(space.ops, *(stage.ops for stage in space.stages if stage.ops))


def keep(run: Run, space: Space) -> None:
    """Notes the files that the space's operators came from, where there are any, with a copy of each."""
    used = names(space)
    files = [one for one in user_files.loaded() if used & set(one.operators)]
    if files and not run.has(OPS):
        for one in files:
            run.write(_copy(one.path.name, one.sha256), partial(_fill, one.content))
        run.write_json(OPS, [{"file": one.path.name, "sha256": one.sha256, "operators": list(one.operators)}
                             for one in files])


def _fill(content: bytes, file: BinaryIO) -> None:
    file.write(content)


def _copy(file: str, sha256: str) -> str:
    """Two files may have one name."""
    return f"ops/{sha256[:8]}-{file}"


def recorded(run: Run) -> list[dict[str, Any]]:
    """Files of the run's operators: ``file``, ``sha256``, ``operators``; none where all are shipped."""
    if not run.has(OPS):
        return []
    value = run.read_json(OPS)
    if not isinstance(value, list) or not all(
            isinstance(one, dict) and isinstance(one.get("file"), str) and isinstance(one.get("sha256"), str)
            and isinstance(one.get("operators"), list) for one in value):
        raise UserError(f"{run.file(OPS)}: not as nas wrote it; put it back, or start a new run")
    return value


def demand(run: Run) -> None:
    """Raises UserError unless every file that the run's operators came from was given, unchanged."""
    given = {one.sha256: one for one in user_files.loaded()}
    for one in recorded(run):
        file, copy = one["file"], run.path / _copy(one["file"], one["sha256"])
        if one["sha256"] in given:
            continue
        other = next((source for source in given.values() if set(source.operators) & set(one["operators"])), None)
        if other is not None:
            raise UserError(f"{setting('ops', other.path)}: changed since {run.path} began (sha256 "
                            f"{one['sha256'][:12]} then, {other.sha256[:12]} now); put it back ({copy} is how it was), "
                            "or start a new run")
        raise UserError(f"{run.path}: its operators {', '.join(map(str, one['operators']))} are code of {file}, which "
                        f"is run only if you say so: give {setting('ops', file)} again (the run has a copy, {copy}: "
                        "if the run is not your own, read it first)")
