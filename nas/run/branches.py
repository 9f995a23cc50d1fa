"""Keeps which branches the slots of a run choose from, where there is too little time to train those of the space."""

from __future__ import annotations

from pydantic import Field

from nas.arch import Op
from nas.record import Record
from nas.run.directory import Run

BRANCHES = "branches.json"


class Branches(Record):
    """Holds ``branches.json``: the branches that are left, the best first, and how all of them did in their race."""

    kept: list[str]
    losses: dict[str, float | None] = Field(
        description="held-out loss of each by the last round that it was in; null: no number")


def kept_branches(run: Run) -> list[Op]:
    """Returns the branches that a race in the run left, the best first; none where there was no race."""
    return list(map(Op.parse, run.read(BRANCHES, Branches).kept)) if run.has(BRANCHES) else []
