"""What --help says: whole sentences, in 80 columns; and that every setting is listed."""

from __future__ import annotations

import re
from typing import Any

import pytest
import typer
from every import every
from typer.testing import CliRunner

from nas import __version__
from nas.cli import VERBS
from nas.cli import settings as listing
from nas.cli.base import app
from nas.config.search import Config
from nas.config.training import Training
from nas.training import augment

GROUP: Any = typer.main.get_command(app)
COMMANDS: dict[str, Any] = GROUP.commands
HELPS = [(verb, param.name, param.help) for verb, command in COMMANDS.items() for param in command.params
         if not getattr(param, "hidden", False)]


def shown(monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    result = CliRunner().invoke(app, list(words), terminal_width=80)
    assert result.exit_code == 0
    return result.stdout


def words(text: str) -> str:
    """Without how it is laid out: a line may break after a hyphen, too."""
    return re.sub(r"\s+", "", text)


def test_the_commands_are_those_that_are_ordered() -> None:
    assert list(COMMANDS) == list(VERBS) and HELPS


@pytest.mark.parametrize(("verb", "name", "text"), HELPS, ids=lambda value: str(value)[:20])
def test_every_option_says_what_it_is_in_a_whole_sentence(verb: str, name: str, text: str | None) -> None:
    assert text and text.endswith(".") and not text[0].isspace(), f"{verb} {name}: {text}"


@pytest.mark.parametrize("verb", VERBS)
def test_nothing_is_cut_at_80_columns(monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    help_ = shown(monkeypatch, verb, "--help")
    assert max(map(len, help_.splitlines())) <= 80 and not re.search(r"[^\]]\.\.\.", help_)
    command = COMMANDS[verb]
    for text in [command.help, *(param.help for param in command.params if not getattr(param, "hidden", False))]:
        assert words(text) in words(help_)


def test_the_list_of_commands_has_whole_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    help_ = shown(monkeypatch, "--help")
    assert max(map(len, help_.splitlines())) <= 80 and not re.search(r"[^\]]\.\.\.", help_)
    for command in COMMANDS.values():
        first = command.help.partition("\n")[0]
        assert first.endswith(".") and words(first) in words(help_)


def test_the_version_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, "--version") == f"nas {__version__}\n"


def test_every_setting_has_a_meaning() -> None:
    listed = listing._settings(Config)
    assert [row["key"] for row in listed] == list(dict.fromkeys(row["key"] for row in listed))
    assert every(row["meaning"] and row["meaning"].endswith(".") for row in listed)
    assert {"space", "train.batch", "gates.dual.lr", "exits.method"} <= {row["key"] for row in listed}
    epochs = {row["key"]: row["default"] for row in listed if row["key"].endswith("_epochs")}
    assert epochs == dict.fromkeys(f"train.{phase}_epochs" for phase in ("warmup", "search", "settle", "finetune"))


def test_what_is_said_of_augmentation_names_all_that_there_is() -> None:
    meaning = str(Training.model_fields["augment"].description)
    said = re.findall(r"[a-z-]+", meaning.partition(";")[0].partition(": ")[2])
    assert [word for word in said if word != "or"] == list(augment.KINDS)
