"""Names settings and calls as a command does: by its flags, as they were typed, and as other commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import typer

from nas.cli.base import app
from nas.errors import Names

# flags of a setting where a command has none of its name
ELSEWHERE = {"train.finetune_epochs": ("--epochs",), "exits.epochs": ("--epochs",), "exits.method": ("--exits",),
             "space": ("--spaces", "--check"), "run": ("--out",)}


class CommandNames(Names):
    """Names settings and calls in messages as flags and commands, for the user of ``nas WORD WORD ...``."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words

    def setting(self, key: str, value: object = None) -> str:
        """Returns the flag that was typed, ``key`` for ``key=value``, ``FILE: key`` for one in the file of settings.

        Else the flag or argument that would say it: of this command, or of another; ``key`` where none has one.
        """
        name = self._name(key)
        return name if value is None else f"{name}={value}" if name == key else f"{name} {value}"

    def _name(self, key: str) -> str:
        command = commands().get(next(iter(self._words), ""))
        known = names_of(key, command) if command else []
        typed = [word.partition("=")[0] for word in self._words]
        if given := next((name for name in known if name in typed), None):
            return given
        if any(word.startswith(f"{key}=") for word in self._words):
            return key
        file = _value_of("--config", self._words)
        if file and _has(Path(file), key):
            return f"{file}: {key}"
        return next(iter([*known, *self._flags_elsewhere(key)]), key)

    def _flags_elsewhere(self, key: str) -> Iterator[str]:
        for command in commands().values():
            yield from {_flag(key)} & flags_of(command)

    def call(self, function: str, **arguments: object) -> str:
        """Returns a command line, as ``nas export RUN --format tflite``, quoted for a shell."""
        positional = {param.name for param in commands()[function].params if param.param_type_name == "argument"}
        words: list[str] = []
        for name, value in arguments.items():
            flag = [] if name in positional else [_flag(name)]
            for part in value if isinstance(value, list) else [value]:
                words += flag if part is True else [*flag, shlex.quote(str(part))]
        return " ".join(["nas", function, *words])


@cache
def commands() -> Mapping[str, Any]:
    """Returns the commands of ``nas`` by name, as the parser knows them."""
    parsed: Mapping[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return parsed


def flags_of(command: Any) -> set[str]:
    """Returns all flags of a command, ``--no-prune`` too."""
    return {flag for param in command.params for flag in (*param.opts, *param.secondary_opts) if flag[:1] == "-"}


def names_of(key: str, command: Any) -> list[str]:
    """Returns a command's names of a setting, the usual first: argument ``KEY``, ``--key``, ``--no-key``, others."""
    arguments = [param.metavar for param in command.params if param.metavar == key.upper()]
    flags = [_flag(key), _flag(f"no_{key}"), *ELSEWHERE.get(key, ())]
    return [*arguments, *(flag for flag in flags if flag in flags_of(command))]


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}" if len(key) > 1 else f"-{key}"


def _value_of(flag: str, words: Sequence[str]) -> str | None:
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == flag:
            return following
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None


def _has(file: Path, key: str) -> bool:
    """Says whether a file of settings has the key, at the beginning of a line."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return re.search(rf"^\s*{re.escape(key.rpartition('.')[2])}\s*:", text, re.MULTILINE) is not None
