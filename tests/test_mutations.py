"""The faults of ``benchmarks/mutations.py`` can still be put into the code, or the list would rot."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
mutants = pytest.importorskip("mutants")
mutations = pytest.importorskip("mutations")
PACKAGES = {"nas/supernet", "nas/training", "nas/select", "nas/latency", "nas/exits", "nas/lower", "nas/ops", "nas/run",
            "nas/pipeline", "nas/pipeline/exits", "nas/cli", "nas/report", "nas"}


def test_every_fault_can_be_put_in_and_its_tests_are_there() -> None:
    assert len(mutants.MUTANTS) >= 100
    assert mutations.problems(mutants.MUTANTS) == []


def test_there_are_some_in_every_package() -> None:
    folders = {str(Path(mutant.file).parent) for mutant in mutants.MUTANTS}
    assert folders >= PACKAGES


def test_what_cannot_be_put_in_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\nx = 1\ny = 2\ndef test_y(): pass\n")
    twice, same, gone = (mutants.Mutant(name, "a.py", old, new, (test,)) for name, old, new, test in (
        ("twice", "x = 1", "x = 2", "a.py"), ("same", "y = 2", "y = 2", "a.py::test_y"),
        ("gone", "y", "z", "a.py::no")))
    said = mutations.problems([twice, same, gone, twice], tmp_path)
    assert [line.partition(":")[0] for line in said] == ["twice", "same", "gone", "gone", "twice", "twice"]


def test_a_fault_is_there_for_as_long_as_it_is_tried(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    with mutations.put_in(mutants.Mutant("m", "a.py", "x = 1", "x = 2", ("a.py",)), tmp_path):
        assert (tmp_path / "a.py").read_text() == "x = 2\n"
    assert (tmp_path / "a.py").read_text() == "x = 1\n"
