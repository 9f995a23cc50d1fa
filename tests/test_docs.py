"""The pages by task: every file in them is written, every command in them is run, as a new user would.

On a tiny schedule, and with a tiny space of the same families in place of the shipped ones.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from own_ops import forget, forgotten
from PIL import Image
from tiny_search import SHORT
from tiny_space import TINY

import nas
from nas import cli

pytestmark = pytest.mark.usefixtures("few_views")
DOCS = Path(__file__).parent.parent / "docs"
OTHERS = {"exits", "spaces", "backbones"}  # whose own tests read them
HOW_TOS = [page for page in sorted(DOCS.glob("*.md")) if "```bash" in page.read_text() and page.stem not in OTHERS]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FEW = ["--limit", "120", "--threads", "1"]
SCHEDULE = {"search": [*SHORT[:-2], "budgets=2", "evaluations=6", *FEW],  # added to what the page says
            "compare": ["train.finetune_epochs=1", "--budgets", "1", "--networks", "2", *FEW]}


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of the fenced blocks, files first: a page may show the command before the file."""
    found = BLOCK.findall(page.read_text())
    assert {language for language, _ in found} <= {"python", "yaml", "bash"}
    return sorted(found, key=lambda block: block[0] == "bash")


def commands(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        program, *words = shlex.split(line, comments=True)
        if program != "nas":
            assert program == "python"
            yield [program, *words]
            continue
        for flag, value in (("--space", "shipped.yaml"), ("--size", "16")):
            for at in [i for i, word in enumerate(words) if word == flag and words[i + 1] in ("ghost", "mbconv", "32")]:
                words[at + 1] = value
        small = SCHEDULE.get(words[0], [])
        if small and "--data" not in words:
            small = [*small, "--data", "digits"]  # fewer to test on
        if small and "--size" not in words:
            small = [*small, "--size", "16"]
        yield ["nas", *words, *small]


def run(words: list[str]) -> int:
    if words[0] == "python":
        return subprocess.run([sys.executable, *words[1:]]).returncode
    forget()  # as a process of its own begins
    with pytest.raises(SystemExit) as end:
        cli.main(words[1:])
    return int(end.value.code or 0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a user stands: with photos of three colours, and a space as small as a test needs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nas.latency.bench.SECONDS_A_GRAPH", 0.01)
    monkeypatch.setattr("nas.latency.bench.SECONDS_A_NETWORK", 0.01)
    (tmp_path / "shipped.yaml").write_text(yaml.safe_dump(TINY))
    for colour in ("red", "green", "blue"):
        (tmp_path / "photos" / colour).mkdir(parents=True)
        for i in range(30):
            shade = tuple(255 - 2 * i if channel == colour else 60 + i for channel in ("red", "green", "blue"))
            Image.new("RGB", (20, 20), shade).save(tmp_path / "photos" / colour / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize("page", HOW_TOS, ids=lambda page: page.stem)
def test_a_how_to_works_as_it_stands(page: Path, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ran = 0
    with forgotten():
        for language, text in blocks(page):
            if language == "bash":
                for words in commands(text):
                    assert run(words) == 0, f"{shlex.join(words)}: {capfd.readouterr().err[-1000:]}"
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


@pytest.mark.parametrize("page", [*DOCS.parent.glob("*.md"), *sorted(DOCS.glob("*.md"))], ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


WORDS = {"space", "stage", "slot", "operator", "branch", "knob", "arch", "decision", "supernet", "costs", "table",
         "row", "yardstick", "drift", "target", "budget", "pick", "front", "run", "exit"}


def test_the_glossary_has_the_words_of_the_project_one_line_each() -> None:
    entries = re.findall(r"^- \*\*(.+?)\*\*: (.+)$", (DOCS / "glossary.md").read_text(), re.MULTILINE)
    defined = [word for words, _ in entries for word in words.split(", ")]
    assert set(defined) >= WORDS and len(defined) == len(set(defined))
    for words, meaning in entries:
        assert meaning.endswith(".") and len(meaning) < 160, words


ROOT = DOCS.parent
README = ROOT / "README.md"
FOLDERS = ("search_spaces", "latency_tables", "experiments", "benchmarks", "examples")
PROSE = [*sorted(DOCS.glob("*.md")), README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md",
         *(ROOT / folder / "README.md" for folder in FOLDERS)]


def exists(dotted: str) -> bool:
    """Whether a name is a module of the package, or something in one."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        try:
            thing: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        return all((thing := getattr(thing, part, None)) is not None for part in parts[end:])
    return False


def test_a_name_that_is_not_there_is_noticed() -> None:
    assert exists("nas.plan") and exists("nas.ops.layers.Dropout")
    assert not exists("nas.genome") and not exists("nas.plan.walk_of_nothing")


@pytest.mark.parametrize("page", PROSE, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_modules_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    folders = "nas|tests|docs|benchmarks|experiments|examples|search_spaces|latency_tables"
    files = set(re.findall(rf"`((?:{folders})/[\w./-]*[\w/-])`", text))
    made = {"latency_tables/cpu.json"}  # by a user's command
    assert not [name for name in sorted(files - made) if not (ROOT / name).exists()]
    assert not [name for name in sorted(set(re.findall(r"\bnas(?:\.[A-Za-z_]\w*)+", text))) if not exists(name)]


@pytest.mark.slow
def test_the_python_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    code = [text for language, text in blocks(DOCS / "python.md") if language == "python"]
    assert len(code) >= 5
    for text in code:
        exec(compile(text, "python.md", "exec", dont_inherit=True), names)
    assert (tmp_path / "out").is_dir() and (tmp_path / "runs" / "small" / "front.json").is_file()


def test_the_readme_is_short_and_its_table_is_that_of_its_figure() -> None:
    text = README.read_text()
    assert len(text.split()) <= 600
    record = json.loads((ROOT / "experiments" / "cluttered-ghost-v100" / "front.json").read_text())
    rows = re.findall(r"^ ([0-9a-f]{12}) +(.+?) % .+$", text, re.MULTILINE)
    assert rows == [(pick["id"], f"{100 * pick['accuracy']:.1f}") for pick in record["front"]]


def test_the_python_of_the_readme_is_the_interface() -> None:
    """Eight lines, whose functions and keywords exist; ``docs/python.md``, which does the same, is run."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    known = {"nas.search": nas.search, "run.select": nas.SearchRun.select, "run.export": nas.SearchRun.export,
             "run.front.best": nas.Front.best}
    checked = [(name, call) for call in calls if (name := ast.unparse(call.func)) in known]
    assert len(code.splitlines()) <= 8 and {name for name, _ in checked} == set(known)
    for name, call in checked:
        assert {str(word.arg) for word in call.keywords} <= set(inspect.signature(known[name]).parameters), name
