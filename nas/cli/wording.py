"""Messages of the inside in the words of the command that was given: its flags, and the settings as they were typed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nas.errors import UserError

# flags of a setting where a command has none of its name
ELSEWHERE = {"train.finetune_epochs": ("--epochs",), "exits.epochs": ("--epochs",), "exits.method": ("--exits",),
             "space": ("--spaces", "--check")}
FLAG = re.compile(r"(?<![\w/.-])--[a-z][a-z0-9-]*")


def in_words_of(command: Any, words: Sequence[str], error: UserError) -> str:
    """The message of an error of ``command``, which was given with these words."""
    text = str(error) if error.key is None else error.calling(_as_typed(error.key, words, flags_of(command)))
    return FLAG.sub(lambda flag: _run(command) if flag[0] == "--run" else flag[0], text)


def flags_of(command: Any) -> set[str]:
    return {flag for param in command.params for flag in (*param.opts, *param.secondary_opts) if flag[:2] == "--"}


def _as_typed(key: str, words: Sequence[str], flags: set[str]) -> str:
    """``--key``, ``key`` of a ``key=value``, ``FILE: key`` of a ``--config``, or the flag that would say it."""
    own = [flag for flag in (f"--{key.replace('_', '-')}", *ELSEWHERE.get(key, ())) if flag in flags]
    if not own or any(word.partition("=")[0] == key for word in words):
        return key
    if any(word.partition("=")[0] in own for word in words):
        return own[0]
    file = _value_of("--config", words)
    return f"{file}: {key}" if file and _names(Path(file), key) else own[0]


def _value_of(flag: str, words: Sequence[str]) -> str | None:
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == flag:
            return following
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None


def _names(file: Path, key: str) -> bool:
    """Whether a file of settings has the key, at the beginning of a line."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return re.search(rf"^\s*{re.escape(key.rpartition('.')[2])}\s*:", text, re.MULTILINE) is not None


def _run(command: Any) -> str:
    """What the directory of a run is called: an option, the argument of what needs one, else the output."""
    names = {param.metavar for param in command.params} & {"RUN"} | flags_of(command) & {"--run"}
    return next(iter(names), "--out")
