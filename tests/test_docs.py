"""The how-tos: every file in them is written, every command in them is run, as a new user would, on a tiny schedule."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from own_ops import forget, forgotten
from tiny_search import SHORT

from nas import cli

DOCS = Path(__file__).parent.parent / "docs"
HOW_TOS = sorted(DOCS.glob("add-*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FEW = ["--limit", "120", "--threads", "1"]
SCHEDULE = {"search": [*SHORT[:-2], "budgets=2", "evaluations=6", *FEW],  # added to what the page says
            "compare": ["train.finetune_epochs=1", "--budgets", "2", "--networks", "2", *FEW]}


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of the fenced blocks, files first: a page may show the command before the file."""
    found = BLOCK.findall(page.read_text())
    assert {language for language, _ in found} <= {"python", "yaml", "bash"}
    return sorted(found, key=lambda block: block[0] == "bash")


def commands(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        program, *words = shlex.split(line, comments=True)
        assert program == "nas"
        small = SCHEDULE.get(words[0], [])
        if small and "--size" not in words:
            small = [*small, "--size", "16"]
        yield [*words, *small]


def run(words: list[str]) -> int:
    forget()  # as a process of its own begins
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    return int(end.value.code or 0)


@pytest.mark.parametrize("page", HOW_TOS, ids=lambda page: page.stem)
def test_a_how_to_works_as_it_stands(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                     capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    ran = 0
    with forgotten():
        for language, text in blocks(page):
            if language == "bash":
                for words in commands(text):
                    assert run(words) == 0, f"nas {shlex.join(words)}: {capfd.readouterr().err[-1000:]}"
                    ran += 1
            else:
                name = re.match(r"# (\S+)\n", text)
                assert name, "a file's first line is a comment with its name"
                Path(name[1]).write_text(text)
    assert ran


def test_what_the_how_tos_promise_of_their_length() -> None:
    (operator,) = [text for language, text in blocks(DOCS / "add-an-operator.md") if language == "python"]
    (space,) = [text for language, text in blocks(DOCS / "add-a-space.md") if language == "yaml"]
    assert len(operator.splitlines()) <= 40 and len(space.splitlines()) <= 25


@pytest.mark.parametrize("page", HOW_TOS, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target
