"""Which command a directory is of, where it is not of the one that is asked to read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nas.errors import UserError
from nas.pipeline.evaluate import evaluate
from nas.report.run_data import collect
from nas.run.directory import Run
from nas.run.settings import settings_of


@pytest.mark.parametrize(("config", "message"), [
    ({"spaces": ["ghost", "mbconv"], "networks": 2}, "made by nas compare, not by nas search or nas train"),
    ({"model": "net.onnx", "arch": None, "data": "digits"}, "made by nas exits, not by nas search or nas train"),
])
def test_a_directory_of_another_command_is_named(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    run = Run.open(tmp_path / "run", config)
    for ask in (settings_of, collect, lambda run: evaluate(run.path)):
        with pytest.raises(UserError, match=message) as error:
            ask(run)
        assert str(run.path) in str(error.value) and "\n" not in str(error.value)
