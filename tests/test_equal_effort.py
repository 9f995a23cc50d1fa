"""The arithmetic of ``experiments/equal-effort/report.py``, with numbers by hand."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from every import every

FILE = Path(__file__).resolve().parents[1] / "experiments" / "equal-effort" / "report.py"


@pytest.fixture(scope="module")
def report() -> Any:
    spec = importlib.util.spec_from_file_location("equal_effort_report", FILE)
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def network(id: str, accuracy: float, select: float, known: str | None = None) -> dict[str, Any]:
    return {"id": id, "known": known, "accuracy": accuracy, "select_accuracy": select, "test_images": 100}


def lines_of(seed: int = 0) -> list[dict[str, Any]]:
    """A search of three picks and a known network, and three presets; c is better on selection, not on test."""
    own = [network("a", 0.50, 0.50), network("b", 0.60, 0.60), network("c", 0.55, 0.65), network("k", 0.62, 0.61, "k")]
    presets = {"p@1": (0.55, 1.0), "q@1": (0.70, 4.0), "r@1": (0.90, 16.0)}
    ms = {"search/a": 1.0, "search/b": 2.0, "search/c": 8.0, "search/k": 2.0,
          **{f"{name}/{name[0]}": ms for name, (_, ms) in presets.items()}}
    parts: list[dict[str, Any]] = [
        {"what": "search", "networks": own, "front": ["a", "k", "c"]}, {"what": "latency", "ms": ms},
        *({"what": name, "networks": [network(name[0], accuracy, 0.0)], "front": [name[0]]}
          for name, (accuracy, _) in presets.items())]
    return [{"data": "cifar10", "seed": seed, **part} for part in parts]


def rows(report: Any, lines: list[dict[str, Any]]) -> list[Any]:
    seeds = list(report.seeds_of(lines, "cifar10").values())
    return [report.compare(seeds, ms) for ms in report.latencies(seeds)]


def test_the_best_that_take_no_longer_are_compared_at_four_latencies(report: Any) -> None:
    made = rows(report, lines_of())
    assert [row.ms for row in made] == pytest.approx([1, 2, 4, 8])  # c is the slowest pick, r is slower
    assert [row.pick.value for row in made] == pytest.approx([50, 60, 60, 55])
    assert [row.preset.value for row in made] == pytest.approx([55, 55, 70, 70])
    assert [row.front.value for row in made] == pytest.approx([50, 62, 62, 55])
    assert [row.presets for row in made] == [["p@1"], ["p@1"], ["q@1"], ["q@1"]]
    assert made[0].pick.se == pytest.approx(5.0)  # of a half on 100 images
    assert made[0].pick_gap.value == pytest.approx(-5)
    assert made[0].pick_gap.se == pytest.approx((25 + 24.75) ** 0.5)


def test_the_error_of_a_mean_over_two_seeds_is_smaller_by_the_root_of_two(report: Any) -> None:
    made = rows(report, [*lines_of(0), *lines_of(1)])
    assert made[0].pick.value == pytest.approx(50) and made[0].pick.se == pytest.approx(5 / 2**0.5)


def test_both_bars_are_judged_where_they_are_missed_by_most(report: Any) -> None:
    picks, front = report.verdicts(rows(report, lines_of()))
    assert picks.endswith("no, at worst -15.0 +- 6.8 at 8.000 ms")
    assert front.endswith("no, at worst -15.0 +- 6.8 at 8.000 ms")  # two errors are 13.5
    short = [row for row in rows(report, lines_of()) if row.ms < 3]
    picks, front = report.verdicts(short)
    assert ": no, at worst -5.0" in picks and ": yes, at worst -5.0 +- 7.1 at 1.000 ms" in front
    assert report.table(short).splitlines()[2].startswith("| 1.000 | 50.0 +- 5.0 | 55.0 +- 5.0 | -5.0 +- 7.1 | 50.0")


def test_what_is_not_there_is_named_and_the_rest_compared(report: Any, tmp_path: Path) -> None:
    parts = ["search", "p@1", "q@1", "r@1", "latency"]
    whole = [*lines_of(0), *lines_of(1)]
    assert report.missing(whole, [0, 1], parts) == []
    assert report.missing(lines_of(0), [0, 1], parts) == [
        "cifar10, seed 1: not run: search, p@1, q@1, r@1, latency"]
    lines = [line for line in whole if (line["seed"], line["what"]) != (1, "latency") and line["what"] != "q@1"]
    assert report.missing(lines, [0, 1], parts) == [
        "cifar10, seed 0: not run: q@1", "cifar10, seed 1: not run: q@1, latency",
        "cifar10, seed 1: not timed (run.py --measure): search, p@1, r@1"]
    made = rows(report, lines)
    assert len(made) == 4 and every(row.presets == ["p@1"] for row in made)
    assert rows(report, [line for line in lines if line["what"] == "latency"]) == []
    report.draw({"cifar10": report.seeds_of(lines, "cifar10")}, tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")
