"""Keeps a user's own operators in a run: which files its space needs, what they were, and that no other code runs.

A run keeps a copy of each file in ``ops/`` and its hash in ``ops.json``, and executes neither: whoever goes on with the
run names the file again, and it has to be the same.
"""

from __future__ import annotations

from functools import partial
from typing import BinaryIO

from nas.arch import Op
from nas.errors import UserError, setting
from nas.ops import user_files
from nas.run.directory import Run
from nas.run.provenance import UserFile, UserFiles
from nas.space import Space

OPS = "ops.json"


def names(space: Space) -> set[str]:
    """Returns the operators that a space names, known or not."""
    fixed = {Op.parse(part.op).name for part in (space.stem, space.head, space.exit)}
    return fixed.union(space.ops, *(stage.ops for stage in space.stages if stage.ops))


def keep(run: Run, space: Space) -> None:
    """Records the files that the space's operators came from, where there are any, with a copy of each."""
    used = names(space)
    files = [source for source in user_files.loaded() if used & set(source.operators)]
    if files and not run.has(OPS):
        for source in files:
            run.write(_copy(source.path.name, source.sha256), partial(_fill, source.content))
        kept = [UserFile(file=source.path.name, sha256=source.sha256, operators=list(source.operators))
                for source in files]
        run.write_json(OPS, UserFiles(files=kept).to_json())


def _fill(content: bytes, file: BinaryIO) -> None:
    file.write(content)


def _copy(file: str, sha256: str) -> str:
    """Returns the path of a copy in the run; two files may have one name, so the hash is part of it."""
    return f"ops/{sha256[:8]}-{file}"


def recorded_files(run: Run) -> list[UserFile]:
    """Returns the files of user-written operators that the run recorded: none where all its operators are shipped."""
    return run.read(OPS, UserFiles).files if run.has(OPS) else []


def require_files(run: Run) -> None:
    """Raises UserError unless every file that the run's operators came from was given, unchanged."""
    given = {source.sha256: source for source in user_files.loaded()}
    for kept in recorded_files(run):
        file, copy = kept.file, run.path / _copy(kept.file, kept.sha256)
        if kept.sha256 in given:
            continue
        other = next((source for source in given.values() if set(source.operators) & set(kept.operators)), None)
        if other is not None:
            raise UserError(f"{setting('ops', other.path)}: changed since {run.path} began (sha256 "
                            f"{kept.sha256[:12]} then, {other.sha256[:12]} now); put it back ({copy} is how it "
                            "was), or start a new run")
        raise UserError(f"{run.path}: its operators {', '.join(kept.operators)} are code of {file}, which "
                        f"is run only if you say so: give {setting('ops', file)} again (the run has a copy, {copy}: "
                        "if the run is not your own, read it first)")
