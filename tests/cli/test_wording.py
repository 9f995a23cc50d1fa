"""No message outside ``nas.cli`` names a flag: it names settings and calls, as a command or a program writes them."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas import cli
from nas.cli.settings import _settings
from nas.cli.wording import CommandNames, commands, flags_of, names_of
from nas.config.search import Config
from nas.errors import UserError, call, named_by, setting

NAS = Path(cli.__file__).parents[1]
FLAG = re.compile(r"--[a-z]|^-[a-z]\b")
OTHERS = {  # flags of other programs, by file
    "latency/table.py": {"-b", "-t"},  # no flags: parts of a file's name
    "latency/devices/cuda.py": {"--id=", "--query-gpu=", "--format=csv,noheader,nounits"},  # nvidia-smi
    "latency/profile.py": {"--short=12"},  # git
    "pipeline/workers.py": {"-m"}, "pipeline/worker.py": {"-m"}, "__main__.py": {"-m"},  # Python
    "run/provenance.py": {"--porcelain", "--untracked-files=no"},  # git
    "training/ranks.py": {"--nproc-per-node"},  # torchrun
}


def sources() -> Iterator[tuple[str, str]]:
    """(path in the package, text) of every module outside ``nas.cli``."""
    for file in sorted(NAS.rglob("*.py")):
        if "cli" not in file.relative_to(NAS).parts:
            yield file.relative_to(NAS).as_posix(), file.read_text()


def flags_in(source: str) -> list[str]:
    """Words of all string constants, docstrings too, that look like flags."""
    texts = [node.value for node in ast.walk(ast.parse(source))
             if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [word for text in texts for word in text.split() if FLAG.search(word)]


def test_no_flag_is_named_outside_the_command_line() -> None:
    named = {(file, word) for file, source in sources() for word in flags_in(source)}
    known = {(file, word) for file, words in OTHERS.items() for word in words}
    assert named - known == set()
    assert known - named == set(), "no longer there: take it from the list"


def test_no_comment_names_one_either() -> None:
    comments = [(file, line) for file, source in sources() for line in source.splitlines()
                if FLAG.search(line.partition("  # ")[2])]
    assert not comments


def test_no_script_of_a_page_names_one() -> None:
    scripts = sorted(NAS.rglob("*.js"))
    assert scripts
    assert not [file for file in scripts if FLAG.search(file.read_text().replace("var(--", "var("))]


@pytest.mark.parametrize("source", ['x = "--run"', 'x = f"give {y} --run"', '"""Of ``--run``."""'])
def test_the_scan_sees_every_kind_of_string(source: str) -> None:
    assert len(flags_in(source)) == 1


def calls_of(name: str) -> list[tuple[str, ast.Call]]:
    return [(f"{file}:{node.lineno}", node) for file, source in sources() for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == name]


def test_every_setting_in_a_message_is_one_of_a_command_or_of_a_search() -> None:
    named = [(where, node.args[0].value) for where, node in calls_of("setting")
             if isinstance(node.args[0], ast.Constant)]
    assert len(named) > 150
    settings = {row["key"] for row in _settings(Config)}
    unknown = [(where, key) for where, key in named if key not in settings
               and not any(names_of(str(key), command) for command in commands().values())]
    assert not unknown


def test_every_call_in_a_message_is_one_of_a_command() -> None:
    written = [(where, node) for where, node in calls_of("call")
               if node.args and isinstance(node.args[0], ast.Constant)]
    assert len(written) > 5
    for where, node in written:
        command = commands()[node.args[0].value]  # type: ignore[attr-defined]
        positional = {param.name for param in command.params if param.param_type_name == "argument"}
        flags = {f"--{keyword.arg}" for keyword in node.keywords if keyword.arg not in positional}
        assert flags <= flags_of(command), where


@pytest.mark.parametrize(("words", "key", "python", "typed"), [
    ("search --max-ms 3", "max_ms", "max_ms=V", "--max-ms V"),
    ("search --max-ms=3", "max_ms", "max_ms=V", "--max-ms V"),
    ("search max_ms=3", "max_ms", "max_ms=V", "max_ms=V"),
    ("search", "max_ms", "max_ms=V", "--max-ms V"),
    ("search --no-prune", "prune", "prune=V", "--no-prune V"),
    ("search train.augment=crop", "train.augment", "train.augment=V", "train.augment=V"),
    ("search", "train.lr", "train.lr=V", "train.lr=V"),
    ("train --epochs 1", "train.finetune_epochs", "train.finetune_epochs=V", "--epochs V"),
    ("train --epochs 1 train.finetune_epochs=2", "train.finetune_epochs", "train.finetune_epochs=V", "--epochs V"),
    ("compare", "space", "space=V", "--spaces V"),
    ("spaces --check x", "space", "space=V", "--check V"),
    ("search", "run", "run=V", "--run V"),
    ("export r", "run", "run=V", "RUN V"),
    ("exits r", "run", "run=V", "--out V"),
    ("select r", "width", "width=V", "--width V"),  # of another command
    ("--version", "width", "width=V", "--width V"),
    ("search", "nothing", "nothing=V", "nothing=V"),
    ("sample -n 3", "n", "n=V", "-n V"),
    ("export run", "run", "run=V", "RUN V"),  # a directory of that name
])
def test_a_setting_is_called_as_it_was_typed(words: str, key: str, python: str, typed: str) -> None:
    assert setting(key, "V") == python and setting(key) == key
    with named_by(CommandNames(words.split())):
        assert setting(key, "V") == typed and setting(key) == re.split("[= ]V", typed)[0]
    assert setting(key, "V") == python


def test_a_setting_of_a_file_is_called_by_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("train:\n  lr: 1\ndata: x\n")
    file = str(tmp_path / "a.yaml")
    for flags in (["--config", file], [f"--config={file}"]):
        with named_by(CommandNames(["search", *flags])):
            assert setting("train.lr") == f"{file}: train.lr" and setting("data", "x") == f"{file}: data x"
            assert setting("seed") == "--seed"
        with named_by(CommandNames(["search", *flags, "--data", "y"])):
            assert setting("data") == "--data"
    with named_by(CommandNames(["search", "--config", str(tmp_path / "none.yaml")])):
        assert setting("data") == "--data"


def test_a_call_is_written_as_a_command() -> None:
    assert call("export", run="RUN", arch=None, format="tflite") == "export(run='RUN', format='tflite')"
    with named_by(CommandNames([])):
        assert call("export", run="RUN", arch=None, format="tflite") == "nas export RUN --format tflite"
        assert call("profile", space=["a", "b c"], exits=True) == "nas profile --space a --space 'b c' --exits"


HOSTILE = st.text(max_size=20) | st.sampled_from([
    "--run", "{run}", "{setting('run')}", "`width`", "\0width\0", "%(run)s", "run", "--max-ms 3", "\\1", "a; rm -rf b"])


@given(HOSTILE)
def test_what_a_user_typed_stays_as_it_is(text: str) -> None:
    def message() -> str:
        return str(UserError(f"{setting('data', text)}: {text}; give another {setting('run')}"))

    assert message() == f"data={text}: {text}; give another run"
    with named_by(CommandNames(["export", "r"])):
        assert message() == f"--data {text}: {text}; give another RUN"


@given(st.lists(HOSTILE, min_size=1, max_size=3), HOSTILE.filter(bool))
def test_a_call_can_be_pasted_whatever_is_in_it(spaces: list[str], out: str) -> None:
    with named_by(CommandNames([])):
        written = call("profile", space=spaces, out=out)
    flags = [word for space in spaces for word in ("--space", space)]
    assert shlex.split(written) == ["nas", "profile", *flags, "--out", out]


def test_names_are_those_of_python_again_after_an_error() -> None:
    with pytest.raises(UserError, match="give --width"), named_by(CommandNames(["search"])):
        raise UserError(f"give {setting('width')}")
    assert setting("width") == "width"


def test_flags_of_a_command_hold_their_opposites() -> None:
    assert {"--prune", "--no-prune"} <= flags_of(commands()["search"])
