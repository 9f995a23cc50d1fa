"""Counts what makes the code hard or easy to find one's way in, for the checkout and for any commits beside it.

    python benchmarks/structure.py                # the working tree
    python benchmarks/structure.py v0.1.0 HEAD    # a column each

Nothing is imported from what is counted: files are parsed.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LONG_FILE, LONG_FUNCTION = 300, 40  # lines
FLAG = re.compile(r"(?<![\w/.-])--[a-z][a-z0-9-]*")
FOREIGN = {"--id", "--query-gpu", "--format", "--short", "--porcelain", "--untracked-files",  # nvidia-smi, git
           "--nproc-per-node"}  # torchrun
DICTIONARY = "dict[str, Any]"


@dataclass(frozen=True)
class Source:
    """One Python file: its path from the root, text and syntax tree."""

    path: str
    text: str
    tree: ast.Module

    @property
    def package(self) -> str:
        """Returns ``latency`` of ``nas/latency/devices/cuda.py`` and ``plan`` of ``nas/plan.py``."""
        return Path(self.path).parts[1].removesuffix(".py")


def sources(root: Path, folder: str) -> list[Source]:
    """Returns the parsed Python files of a folder."""
    files = sorted((root / folder).rglob("*.py"))
    texts = [(str(file.relative_to(root)), file.read_text(encoding="utf-8")) for file in files]
    return [Source(path, text, ast.parse(text)) for path, text in texts]


def arrows(files: Sequence[Source]) -> set[tuple[str, str]]:
    """Returns the pairs of packages (or modules at the top) of which the first imports the second."""
    tops = {source.package for source in files}
    pairs = set()
    for source in files:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "nas":
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names if alias.name.partition(".")[0] == "nas"]
            else:
                continue
            pairs |= {(source.package, name.split(".")[1]) for name in names if name.count(".")}
    return {(above, below) for above, below in pairs if below in tops and above != below}


def layers(root: Path) -> int:
    """Returns the number of rows that tests/test_imports.py holds the packages to."""
    tree = ast.parse((root / "tests" / "test_imports.py").read_text())
    values = [node.value for node in tree.body if isinstance(node, ast.Assign)
              and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "ROWS"]
    return len(ast.literal_eval(values[0]))


def functions(files: Sequence[Source]) -> Iterator[tuple[Source, ast.FunctionDef]]:
    """Yields every function and method with its file."""
    for source in files:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef):
                yield source, node


def dictionaries(files: Sequence[Source]) -> tuple[int, int]:
    """Returns how often ``dict[str, Any]`` is an annotation, and in how many of those it crosses packages.

    It crosses where it is in the signature of a function without a leading underscore, or a field of such a class, that
    another package names.
    """
    every = sum(ast.unparse(node).count(DICTIONARY) for source in files for node in _annotations(source.tree))
    crossing = 0
    for source in files:
        elsewhere = " ".join(other.text for other in files if other.package != source.package)
        for owner in source.tree.body:
            if isinstance(owner, ast.FunctionDef | ast.ClassDef) and owner.name[0] != "_" and re.search(
                    rf"\b{owner.name}\b", elsewhere):
                crossing += sum(ast.unparse(node).count(DICTIONARY) for node in _signature(owner))
    return every, crossing


def _annotations(tree: ast.AST) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            yield from _of_function(node)
        elif isinstance(node, ast.AnnAssign):
            yield node.annotation


def _signature(owner: ast.FunctionDef | ast.ClassDef) -> Iterator[ast.expr]:
    if isinstance(owner, ast.FunctionDef):
        yield from _of_function(owner)
        return
    for node in owner.body:
        if isinstance(node, ast.AnnAssign):
            yield node.annotation
        elif isinstance(node, ast.FunctionDef) and (node.name[0] != "_" or node.name == "__init__"):
            yield from _of_function(node)


def _of_function(node: ast.FunctionDef) -> Iterator[ast.expr]:
    arguments = node.args
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
        if argument.annotation:
            yield argument.annotation
    if node.returns:
        yield node.returns


def flags(files: Sequence[Source]) -> int:
    """Returns how many flags of the command line are named outside ``nas/cli``, in texts of any kind but comments."""
    count = 0
    for source in files:
        if source.package != "cli":
            texts = [node.value for node in ast.walk(source.tree)
                     if isinstance(node, ast.Constant) and isinstance(node.value, str)]
            count += sum(name not in FOREIGN for text in texts for name in FLAG.findall(text))
    return count


def counts(root: Path) -> dict[str, int]:
    """Returns every count of a tree, by its name."""
    nas, tests = sources(root, "nas"), sources(root, "tests")
    every, crossing = dictionaries(nas)
    text = "".join(source.text for source in nas)

    def number(keep: Callable[[Source], bool]) -> int:
        return sum(map(keep, nas))

    return {
        "modules at the top of nas/": number(lambda source: Path(source.path).parent.name == "nas"),
        "packages at the top of nas/": len({path.parent for path in (root / "nas").glob("*/*.py")}),
        "layers": layers(root),
        "import arrows": len(arrows(nas)),
        f"files above {LONG_FILE} lines": number(lambda source: source.text.count("\n") > LONG_FILE),
        f"functions above {LONG_FUNCTION} lines": sum(
            (node.end_lineno or node.lineno) - node.lineno + 1 > LONG_FUNCTION for _, node in functions(nas)),
        f"{DICTIONARY} in annotations": every,
        f"{DICTIONARY} that cross packages": crossing,
        "flag names outside nas/cli": flags(nas),
        "isinstance(..., LatencyTable)": len(re.findall(r"isinstance\([^()]*(?:\([^()]*\))?[^()]*LatencyTable", text)),
        "type ignores in tests": sum(source.text.count("# type: ignore") for source in tests),
        "words of README.md": len((root / "README.md").read_text().split()),
        "words of docs/decisions.md": len((root / "docs" / "decisions.md").read_text().split()),
    }


def of_revision(revision: str) -> dict[str, int]:
    """Returns the counts of a commit."""
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", revision, "nas", "tests", "README.md", "docs"],
                             capture_output=True, check=True).stdout
    with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
        return counts(Path(folder))


def main() -> None:
    revisions = sys.argv[1:]
    columns = {name: of_revision(name) for name in revisions} or {"working tree": counts(ROOT)}
    print(f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name in next(iter(columns.values())):
        print(f"| {name} | {' | '.join(str(column[name]) for column in columns.values())} |")


if __name__ == "__main__":
    main()
