"""How stages call what the selectors and the gates are: which network a budget gets, what is judged, which range."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nas.arch import Arch, Op
from nas.pipeline import selection, supernet
from nas.plan import Layout
from nas.run import events
from nas.run.directory import Run
from nas.select.evaluation import Evaluation
from nas.select.problem import Cost


def networks(count: int) -> list[Arch]:
    return [Arch("s", 16, (Op.of("mbconv", hidden=8 * (i + 1)),)) for i in range(count)]


def picked(ms: list[float], losses: list[float], budget: float) -> int:
    """Which of the answers, best first, a budget gets."""
    archs = networks(len(ms))
    cost = dict(zip(archs, ms, strict=True))
    problem: Any = SimpleNamespace(cost=lambda arch, target: cost[arch])
    found = selection._pick({16: problem}, {"t": budget}, archs, dict(zip(archs, losses, strict=True)))
    assert found.ms == {"t": cost[found.arch]} and found.budget_ms == {"t": budget}
    return [arch.id for arch in archs].index(found.id)


def test_a_budget_gets_the_best_network_that_takes_nine_tenths_of_it() -> None:
    assert picked([0.5, 0.95, 0.99], [0.1, 0.2, 0.3], 1.0) == 1
    assert picked([0.5, 0.89, 0.90], [0.1, 0.2, 0.3], 1.0) == 2
    assert picked([0.5, 0.6], [0.1, 0.2], 1.0) == 0  # nothing does: the best of all
    assert picked([0.5, 0.95, 0.96], [0.1, math.inf, 0.2], 1.0) == 2  # what is not a number has no such claim


def test_gates_know_the_budgets_but_not_the_very_ends_of_what_is_reachable() -> None:
    cost = Cost("t", "ms", 1.0, (np.array([0.0, 9.0]),))  # from 1 to 10 ms
    assert supernet._gate_range(cost, [1.0, 10.0]) == (1.03, 9.0)
    assert supernet._gate_range(cost, [2.0, 5.0, 3.0]) == (2.0, 5.0)
    assert supernet._gate_range(cost, [9.5]) == (9.5, 9.5)


def judge(run: Run, seen: list[str]) -> selection.Judge:
    """Over a supernet that has a loss for every network."""
    split = SimpleNamespace(images=np.zeros(0), labels=np.zeros(0))

    def one(arch: Arch, part: object, calibration: int) -> Any:
        seen.append(arch.id)
        return SimpleNamespace(loss=len(seen) / 8, accuracy=0.5, accuracy_se=0.1)

    here: Any = SimpleNamespace(run=run, seed=0, data=SimpleNamespace(select=split),
                                config=SimpleNamespace(judge_images=4))
    return selection.Judge(here, SimpleNamespace(judge=one), SimpleNamespace(advance=lambda *_, **__: None))


def test_what_was_judged_is_not_judged_again_also_by_a_later_process(tmp_path: Path, tiny: Layout,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection.evaluation, "part_of", lambda *_: None)
    run, seen, archs = Run.open(tmp_path / "run", {}), list[str](), networks(3)
    first = judge(run, seen)
    assert first(archs[:2]) == [0.125, 0.25] and first(archs) == [0.125, 0.25, 0.375]
    again = judge(run, seen)
    assert again(archs[::-1]) == [0.375, 0.25, 0.125] and seen == [arch.id for arch in archs]
    assert [event.id for event in run.events(events.Judged)] == seen


def test_an_evaluation_is_of_the_images_that_the_settings_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(selection.evaluation, "part_of", lambda *given: asked.append(given))
    made = judge(Run.open(tmp_path / "run", {}), [])
    assert asked == [(made.inputs.data.select, 4, 0, "judge")]
    assert isinstance(made.evaluate(networks(1)[0]), Evaluation)
