"""Keeps the known networks of a run: which were taken beside the picks, and the files of those outside its space."""

from __future__ import annotations

from pydantic import Field

from nas.paths import space_parts
from nas.plan import Layout, Task, layout
from nas.record import Record
from nas.run.directory import Run
from nas.run.records import ByTarget, Genotype, Text
from nas.space import Space

KNOWN = "known.json"


class KnownNetwork(Record):
    """Describes a known network that is trained beside the picks; ``arch.space`` is its name where it is outside."""

    name: Text = Field(description="a preset, with its width: mobilenet_v3_small@0.5")
    arch: Genotype
    inside: bool = Field(description="whether it is a network of the searched space")
    ms: ByTarget = Field(description="predicted")
    top1: float = Field(gt=0, lt=100, description="published, on ImageNet in percent")


class KnownNetworks(Record):
    """Holds ``known.json``: the known networks of a run, fastest first."""

    networks: list[KnownNetwork] = []


def known_networks(run: Run) -> list[KnownNetwork]:
    """Returns the known networks of a run; none of one that has not chosen any."""
    return run.read(KNOWN, KnownNetworks).networks if run.has(KNOWN) else []


def kept_file(name: str) -> str:
    """Returns where a run keeps the file of a known network: one for all of its widths."""
    return f"known/{space_parts(name)[0]}.yaml"


def known_space(run: Run, name: str) -> Space | None:
    """Returns the space, of one network, of a known network outside the searched space; None for another name."""
    if not any(known.name == name for known in known_networks(run) if not known.inside):
        return None
    base, width = space_parts(name)
    return Space.load(str(run.file(kept_file(base)))).scaled(float(width or 1))


def known_layout(run: Run, name: str, task: Task, exits: bool = False) -> Layout | None:
    """Returns the layout of a known network outside the searched space; None for another name."""
    space = known_space(run, name)
    return layout(space, task, exits) if space else None
