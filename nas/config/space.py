"""Loads the search space of a configuration, scaled to its width and restricted to the operator that it asks for."""

from __future__ import annotations

from pathlib import Path

from nas.config.search import Config
from nas.files import resolve
from nas.paths import space_parts
from nas.space import Space


def checked_space(config: Config, file: Path | None = None) -> Space:
    """Loads the space of a configuration, scaled and restricted, from its own file or from a copy at ``file``."""
    base, width = space_parts(config.space)
    space = Space.load(str(file or resolve("search_spaces", base, ".yaml")))
    if width:
        Space.load(config.space)  # says what is wrong with NAME@WIDTH
    space = space.scaled(float(width or 1) * config.width)
    return space.only(config.only_op) if config.only_op else space
