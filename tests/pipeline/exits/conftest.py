"""A search with exits for every file of tests here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from searched_exits import OPTIONS
from tiny_search import config_of, searched_once


@pytest.fixture(scope="module")
def finished(space_file: Path, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("run") / "whole"
    return path, searched_once(config_of(space_file, *OPTIONS), path, shared)
