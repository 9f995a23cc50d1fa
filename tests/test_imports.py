"""Imports fall: a package imports only from rows above its own, and the files of one package without cycles."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

NAS = Path(__file__).parent.parent / "nas"
ROWS = [
    {"nas", "errors", "text"},  # "nas" is the package itself: its version
    {"files", "arch", "units", "paths", "record"},
    {"progress", "space"},
    {"config", "ops"},
    {"plan"},
    {"lower"},
    {"decision", "subnet", "sampling"},
    {"supernet", "latency", "exits", "select"},
    {"training"},
    {"run"},
    {"report"},
    {"pipeline"},
    {"picks"},
    {"api"},
    {"cli"},
    {"__main__"},
]
ROW = {name: row for row, names in enumerate(ROWS) for name in names}
FILES = sorted(NAS.rglob("*.py"))
DOOR = NAS / "__init__.py"  # names what is inside for editors, and loads it when it is asked for


def module(file: Path) -> str:
    parts = file.relative_to(NAS.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(file) for file in FILES}


def package(name: str) -> str:
    """``nas.latency.devices.cuda`` -> ``latency``."""
    return [*name.split("."), "nas"][1] if name != "nas" else "nas"


def imports(source: str) -> set[str]:
    """Modules of nas that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they go"
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in MODULES else str(node.module) for name in full}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] == "nas"}


def test_the_parser_sees_every_kind_of_import() -> None:
    source = "import nas.plan as p\nfrom nas import ops, __version__\ndef f():\n    from nas.ops.ghost import Ghost\n"
    assert imports(source) == {"nas.plan", "nas.ops", "nas", "nas.ops.ghost"}
    assert [package(name) for name in ("nas", "nas.plan", "nas.latency.devices.cuda")] == ["nas", "plan", "latency"]


def test_every_file_has_a_row() -> None:
    assert {package(name) for name in MODULES} <= set(ROW)


@pytest.mark.parametrize("file", [file for file in FILES if file != DOOR], ids=module)
def test_imports_fall(file: Path) -> None:
    own = package(module(file))
    wrong = {name for name in imports(file.read_text()) if package(name) != own and ROW[package(name)] >= ROW[own]}
    assert not wrong, f"{module(file)} (row {ROW[own]}) must not import {', '.join(sorted(wrong))}"


def test_no_cycles() -> None:
    graph = {module(file): imports(file.read_text()) - {module(file)} for file in FILES if file != DOOR}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert set(order) >= set(graph) and not graph.get(order[0])


NO_TORCH = ["errors", "files", "arch", "space", "run.directory", "run.records", "config.search",
            "progress", "cli.render", "cli"]


@pytest.mark.parametrize("name", NO_TORCH)
def test_these_need_no_torch(name: str) -> None:
    code = f"import sys, nas.{name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("file", FILES, ids=module)
def test_a_file_over_400_lines_is_two_files(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 400


def test_a_file_of_tests_over_400_lines_is_two_files() -> None:
    lines = {file.name: len(file.read_text().splitlines()) for file in Path(__file__).parent.rglob("*.py")}
    assert lines and {name for name, count in lines.items() if count > 400} == set()
