from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nas.errors import UserError

sys.path.append(str(Path(__file__).resolve().parents[1] / "experiments"))
from results import keep, nas, standing, told

SETTINGS = {"epochs": 2, "seed": 0}


def test_what_was_kept_stands_under_the_same_settings_alone(tmp_path: Path) -> None:
    path, lines = tmp_path / "results.jsonl", [{"part": i, "settings": SETTINGS} for i in range(2)]
    assert standing(path, SETTINGS) == []
    keep(path, lines)
    assert standing(path, SETTINGS) == lines and len(path.read_text().splitlines()) == 2
    with pytest.raises(UserError, match=r"line 1: made with epochs = 2, now 3; give another out"):
        standing(path, {**SETTINGS, "epochs": 3})
    with pytest.raises(UserError, match=r"line 1: made with seed = 0, now None"):
        standing(path, {"epochs": 2})


@pytest.mark.parametrize("text", ["{", "[]", '{"part": 1}'])
def test_a_line_of_something_else_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(text + "\n")
    with pytest.raises(UserError, match=r"results.jsonl: line 1: not of this experiment"):
        standing(path, SETTINGS)


def test_a_script_ends_as_a_verb_does(capsys: pytest.CaptureFixture[str]) -> None:
    for error, code, said in ((UserError("--run x: no such run"), 2, "error: --run x: no such run\n"),
                              (KeyboardInterrupt(), 130, "interrupted; the same command continues\n")):
        with pytest.raises(SystemExit) as end, told():
            raise error
        assert end.value.code == code and capsys.readouterr().err == said
    with pytest.raises(ZeroDivisionError), told():
        raise ZeroDivisionError


def test_a_command_prints_its_answer_or_is_refused_with_its_last_word(tmp_path: Path) -> None:
    assert b"gpu-v100" in nas(tmp_path / "part.log", "targets", "--json")
    with pytest.raises(UserError, match=r"part: nas spaces ended with code 2: nas: .*--nosuch"):
        nas(tmp_path / "part.log", "spaces", "--nosuch")
