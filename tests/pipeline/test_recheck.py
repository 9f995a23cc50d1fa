"""Picks that are measured above their budgets: others are chosen that keep them, or it is said."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from cards import card, front
from every import every
from tiny_search import Quiet, comparable, config_of, searched, selected
from tiny_space import TINY
from torch import nn

from nas.cli import render
from nas.decision import Prices
from nas.errors import UserError
from nas.latency import bench, devices, profile
from nas.latency.meta import Conditions
from nas.latency.table import LatencyTable
from nas.ops.registry import Block
from nas.pipeline import measuring, overrun, recheck
from nas.pipeline import search as pipeline
from nas.pipeline.budgets import Bounds
from nas.pipeline.front import find_picks
from nas.pipeline.overrun import excesses, smallest_budgets
from nas.pipeline.recheck import Correction
from nas.plan import Task, layout
from nas.run import events, tables
from nas.run.directory import Run
from nas.run.records import TOLERANCE, Budget, Excess, Front, Pick
from nas.space import Space
from nas.subnet import Subnet


class Gears:
    """A network takes 1 ms, and 0.1 ms and 0.01 ms a hidden channel for each block, times ``factor``."""

    name, align, fresh, reads_onnx = "gears", 8, False, False

    def __init__(self, factor: float = 1.0, stop_after: int | None = None) -> None:
        self.factor, self.stop_after, self.prepared = factor, stop_after, 0

    def load(self, path: Path) -> Any:
        raise NotImplementedError

    def prepare(self, module: nn.Module, *, in_ch: int, size: int) -> Any:
        parts = module.blocks if isinstance(module, Subnet) else module.children()
        hidden = [part.max_hidden for part in parts if isinstance(part, Block) and part.max_hidden]
        self.prepared += 1
        if self.prepared == self.stop_after:
            raise KeyboardInterrupt
        ms = self.factor * (1.0 + sum(0.1 + 0.01 * width for width in hidden))
        return lambda: ms

    def conditions(self) -> Conditions:
        return Conditions(device="gears", processor="brass", runtime="spring", runtime_version="1", precision="fp32",
                          threads=1, batch=1)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made of gears that turn fast, without a yardstick to tell."""
    folder = tmp_path_factory.mktemp("gears")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "SECONDS_A_GRAPH", 0.0)
        patch.setattr(bench, "SECONDS_A_NETWORK", 0.0)
        profile.profile(layout(Space.parse(TINY, "tiny.yaml"), Task(16, 3, 10)), folder / "gears.json", device=Gears())
    made = LatencyTable.load(folder / "gears.json")
    made.meta.yardsticks = {}
    made.save(folder / "gears.json")
    return folder / "gears.json"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``here(device)``: this machine is that device."""
    def turned(device: Gears) -> None:
        for module in (devices, tables):
            monkeypatch.setattr(module, "local_device", lambda meta: device if meta.device == "gears" else None)
        monkeypatch.setattr(profile, "CHECKED_S", 0.0)

    return turned


@pytest.fixture(scope="module")
def made(table: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Quiet]:
    """A search on gears that turn slower by a quarter than when the table was made."""
    run, progress = tmp_path_factory.mktemp("made") / "run", Quiet()
    with pytest.MonkeyPatch.context() as patch:
        for module in (devices, tables):
            patch.setattr(module, "local_device", lambda meta: Gears(1.25) if meta.device == "gears" else None)
        patch.setattr(profile, "CHECKED_S", 0.0)
        # nothing is pruned: what is fastest then has more multiply-adds than what has fewest
        config = config_of(table.parent / "tiny.yaml", "budget_ms=[2.2, 2.8]", "prune=false", target=str(table))
        result = searched(config, run, progress)
    return run, result, progress


@pytest.fixture
def copy(made: tuple[Path, dict[str, Any], Quiet], tmp_path: Path) -> Run:
    shutil.copytree(made[0], tmp_path / "run")
    return Run.existing(tmp_path / "run")


def lines(result: dict[str, Any]) -> list[str]:
    return overrun.overrun_lines(Front.model_validate(result))


def select(run: Run, table: Path, *budget_ms: float, progress: Quiet | None = None) -> dict[str, Any]:
    return selected(run, [str(table)], budget_ms, progress or Quiet())


def test_picks_of_a_table_that_is_off_are_chosen_again(made: tuple[Path, dict[str, Any], Quiet], table: Path) -> None:
    """Picks take 1.25 times what the table says, and are of 90 to 100 % of their budgets."""
    path, result, progress = made
    run = Run.existing(path)
    (correction,) = run.read_json("picks.json")["corrections"].values()
    assert correction == {"scale": pytest.approx(1.25), "per_op_ms": 0.0, "n": 2}
    assert [budget["budget_ms"] for budget in result["budgets"]] == [{str(table): 2.2}, {str(table): 2.8}]
    for budget in result["budgets"]:
        (ms,), (bound,) = budget["measured_ms"].values(), budget["budget_ms"].values()
        assert ms == pytest.approx(1.25 * budget["ms"][str(table)]) and ms <= bound * (1 + TOLERANCE)
    cards = {card["id"]: card for card in (*result["front"], *result["dominated"])}
    assert set(cards) == {budget["id"] for budget in result["budgets"]}
    assert not any(card["over_budget"] for card in cards.values()) and lines(result) == []
    first = [event.id for event in run.events(events.Timed)][:2]
    assert not set(first) <= set(cards) and len(run.events(events.Selected)) == 2  # what missed was not delivered
    assert any("take longer than their budgets when measured" in note and "1.25 times" in note
               for note in progress.notes)


def test_a_table_that_is_right_is_asked_once(copy: Run, table: Path, here: Any) -> None:
    here(Gears(1.02))  # within the tolerance
    copy.file("log.jsonl").unlink()
    result = select(copy, table, 2.2, 2.8)
    (picks,) = copy.path.glob("selections/*/picks.json")
    assert json.loads(picks.read_text())["corrections"] == {} and len(copy.events(events.Selected)) == 1
    pairs = [(budget["ms"][str(table)], budget["budget_ms"][str(table)]) for budget in result["budgets"]]
    assert every(ms <= bound < ms * 1.2 for ms, bound in pairs)


def test_budgets_that_nobody_gave_begin_where_the_fastest_network_is(copy: Run, table: Path, here: Any) -> None:
    here(Gears(1.25))
    result = select(copy, table)
    budgets = [budget["budget_ms"][str(table)] for budget in result["budgets"]]
    # slot 2 changes the channels and cannot be skipped: 1.25 * (1 + 0.1 + 0.08), or what pruning left above it
    assert budgets[0] + 1e-9 >= 1.25 * 1.18 and budgets == sorted(set(budgets)) and len(budgets) > 1
    measured = [budget["measured_ms"][str(table)] for budget in result["budgets"]]
    assert lines(result) == []
    assert every(ms <= bound * (1 + TOLERANCE) for ms, bound in zip(measured, budgets, strict=True))


def test_a_budget_that_nothing_keeps_is_said(copy: Run, table: Path, here: Any,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    here(Gears(1.25))
    least = select(copy, table)["budgets"][0]["measured_ms"][str(table)] / 1.25  # of what pruning left, predicted
    budget = round(least * 1.1, 2)
    progress = Quiet()
    result = select(copy, table, budget, 2.8, progress=progress)
    fast, other = result["budgets"]
    assert (f"no network that was measured keeps {budget:g} ms on {table}: the fastest known, {fast['id']}, takes "
            f"{1.25 * least:.4g} ms on {table}") in progress.notes
    assert fast["budget_ms"] == {str(table): budget}
    assert fast["measured_ms"] == {str(table): pytest.approx(1.25 * least)}
    assert other["measured_ms"][str(table)] <= 2.8 * (1 + TOLERANCE)
    (card,) = (card for card in (*result["front"], *result["dominated"]) if card["id"] == fast["id"])
    above = round(1.25 * least / budget - 1, 4)
    excess = {"budget_ms": budget, "measured_ms": pytest.approx(1.25 * least), "above": above}
    assert above > 0.1 and card["over_budget"] == {str(table): excess}
    render.front(Front.model_validate(result))
    said = (f"measured above its budget: {fast['id']} takes {1.25 * least:.4g} ms on {table} for {budget:g} "
            f"({100 * above:.0f} % above; predicted {least:.4g})")
    assert said in capsys.readouterr().out.splitlines()
    exported = pipeline.export(copy, fast["id"], None, copy.path / "out", Quiet())
    assert exported.to_json()["files"][0]["over_budget"] == {str(table): excess}
    render.exported(exported)
    assert said in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_interrupted_while_measuring_it_ends_the_same(copy: Run, table: Path, stop_after: int, here: Any,
                                                      tmp_path: Path) -> None:
    copy.file("log.jsonl").unlink()  # nothing is known
    shutil.copytree(copy.path, tmp_path / "whole")
    here(Gears(1.25))
    whole = select(Run.existing(tmp_path / "whole"), table, 2.2, 2.8)
    here(Gears(1.25, stop_after))
    with pytest.raises(KeyboardInterrupt):
        select(copy, table, 2.2, 2.8)
    known = len(copy.events(events.Timed))
    assert known == (2 if stop_after == 3 else 0)  # the first two are timed together
    device = Gears(1.25)
    here(device)
    assert comparable(select(copy, table, 2.2, 2.8)) == comparable(whole)
    timed = [event.id for event in copy.events(events.Timed)]
    judged = [event.id for event in copy.events(events.Judged)]
    assert len(timed) == len(set(timed)) >= 3 and len(judged) == len(set(judged))
    delivered = len({budget["id"] for budget in whole["budgets"]})
    assert device.prepared == len(timed) - known + delivered


def test_picks_are_delivered_together_and_those_with_a_card_stay(copy: Run, table: Path, here: Any,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """Two picks are timed in one call; the continued one times the pick that has no card yet, alone."""
    here(Gears(1.25))
    together, time_networks = list[int](), measuring.time_networks

    def counted(prepare: Any, count: int, *more: Any) -> Any:
        together.append(count)
        return time_networks(prepare, count, *more)

    monkeypatch.setattr(measuring, "time_networks", counted)
    whole = select(copy, table, 2.2, 2.8)
    assert len(whole["budgets"]) == 2 and together[-1] == 2
    (place,) = copy.path.glob("selections/*")
    first, second = place.glob("archs/*/card.json")
    kept = first.read_bytes()
    second.unlink()
    (place / "front.json").unlink()
    together.clear()
    device = Gears(1.25)
    here(device)
    assert comparable(select(copy, table, 2.2, 2.8)) == comparable(whole)
    assert together == [1] and device.prepared == 1 and first.read_bytes() == kept


def test_a_budget_of_two_targets_is_kept_on_the_one_that_is_not_measured(copy: Run, table: Path, here: Any) -> None:
    """The first bound is below the fastest network as measured; that one has more multiply-adds than the second."""
    here(Gears(1.25))

    def ask(**more: Any) -> list[dict[str, Any]]:
        budgets: list[dict[str, Any]] = selected(
            copy, [str(table), "macs"], [], Quiet(), points=2, **more)["budgets"]
        return budgets

    fastest, *_, smallest, _ = ask()
    assert fastest["id"] != smallest["id"]
    bounds = {str(table): 1.05 * fastest["ms"][str(table)], "macs": smallest["budget_ms"]["macs"]}
    (both,) = (budget for budget in ask(bounds=Bounds.of(together=bounds)) if len(budget["budget_ms"]) == 2)
    assert both["ms"]["macs"] <= bounds["macs"] * (1 + 1e-9)


def test_a_limit_below_the_fastest_network_as_measured_is_said(table: Path, here: Any, tmp_path: Path) -> None:
    """The fastest is predicted at 1.18 ms at least, within --max-ms 1.3 or so, and takes 1.25 times that."""
    here(Gears(1.25))
    with pytest.raises(UserError, match="smallest reachable") as refused:
        searched(config_of(table.parent / "tiny.yaml", "max_ms=1.0", target=str(table)), tmp_path / "none")
    least = float(re.search(r"reachable ([0-9.]+) ms", str(refused.value))[1])
    progress, config = Quiet(), config_of(table.parent / "tiny.yaml", f"max_ms={1.1 * least}", "prune=false",
                                          target=str(table))
    result = searched(config, tmp_path / "run", progress)
    assert any("as measured" in note for note in progress.notes) and lines(result)
    assert result["budgets"]
    assert every(budget["measured_ms"][str(table)] > budget["budget_ms"][str(table)] for budget in result["budgets"])


def test_a_supernet_without_epochs_is_measured_too(table: Path, here: Any, tmp_path: Path) -> None:
    here(Gears(1.25))
    epochs = [f"train.{phase}_epochs=0" for phase in ("warmup", "search", "settle", "finetune")]
    result = searched(config_of(table.parent / "tiny.yaml", "budget_ms=2.2", *epochs, target=str(table)),
                      tmp_path / "run")
    assert result["budgets"][0]["measured_ms"][str(table)] <= 2.2 * (1 + TOLERANCE)


def test_what_is_not_this_machine_is_not_timed(space_file: Path, tmp_path: Path) -> None:
    searched(config_of(space_file), tmp_path / "run")
    run = Run.existing(tmp_path / "run")
    assert run.events(events.Timed) == [] and "corrections" not in run.read_json("picks.json")


def test_a_correction_puts_no_measured_network_too_low() -> None:
    # few: the median of 1.1, 1.2, 1.4, then raised to 1.4
    few = Correction.fitted([1.0, 2.0, 3.0], [5, 5, 5], [1.1, 2.4, 4.2], 0.1)
    assert few.scale == pytest.approx(1.4) and few.per_op_ms == 0.0
    # 1.2 times the sum and 0.01 ms an operator, exactly
    sums, counts = [1.0, 2.0, 3.0, 4.0], [10, 12, 20, 14]
    fitted = Correction.fitted(sums, counts, [1.2 * s + 0.01 * n for s, n in zip(sums, counts, strict=True)], 0.1)
    assert fitted.scale == pytest.approx(1.2) and fitted.per_op_ms == pytest.approx(0.01) and fitted.n == 4


def test_a_correction_never_lowers_a_price(table: Path) -> None:
    at = layout(Space.parse(TINY, "tiny.yaml"), Task(16, 3, 10))
    prices = Prices(1.0, tuple(dict.fromkeys(slot.ops, 0.5) | {op: 0.0 for op in slot.ops if not slot.key(op)}
                                       for slot in at.slots))
    raised = Correction(1.2, 0.01, 4).applied(prices, at)
    assert raised.fixed == pytest.approx(1.22)  # stem and head
    assert {round(value, 9) for row in raised.ms for value in row.values()} == {0.0, 0.61}  # skip is nothing
    assert Correction(0.5, 0.0, 4).applied(prices, at) == prices


def test_how_far_above_a_budget_counts() -> None:
    assert excesses({"cpu": 1.73}, {"cpu": 1.44}) == {"cpu": Excess(budget_ms=1.44, measured_ms=1.73, above=0.2014)}
    assert excesses({"cpu": 1.48}, {"cpu": 1.44}) == excesses({"cpu": None}, {"cpu": 1.44}) == {}
    assert excesses({}, {"cpu": 1.44}) == {}
    assert excesses({"cpu": 1.484}, {"cpu": 1.44})  # 3.06 % above
    budgets = [Budget(id=id, budget_ms=bounds, ms=bounds) for id, bounds in (
        ("a", {"cpu": 2.0}), ("a", {"cpu": 1.0}), ("b", {"cpu": 0.1}), ("a", {"cpu": 3.0, "gpu": 4.0}))]
    assert smallest_budgets(budgets, "a") == {"cpu": 1.0, "gpu": 4.0}


def test_a_pick_within_a_budget_is_one_that_keeps_it_as_measured() -> None:
    made = front([card(name, {"cpu": ms}, measured_ms={"cpu": measured}, select_accuracy=accuracy)
                  for name, ms, measured, accuracy in (("a", 1.31, 1.73, 0.9), ("b", 1.2, 1.2, 0.8))])
    assert find_picks({"": made}, None, 1.44) == ("", ["b"])
    assert find_picks({"": made}, None, 1.7) == ("", ["a"])  # 1.8 % above is within what measuring tells


def test_what_replaces_a_slow_pick_keeps_the_budget_of_a_target_that_is_not_measured(
        monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the faster two the one with the lower loss has 8 million multiply-adds, where 5 are allowed."""
    measured = {"slow": 1.5, "forbidden": 0.9, "allowed": 0.95}
    losses = {"slow": 0.05, "forbidden": 0.1, "allowed": 0.5}

    def pick(id: str, macs: float, bound: float) -> Pick:
        return Pick.model_construct(id=id, ms={"cpu": 1.0, "macs": macs}, budget_ms={"cpu": 1.0, "macs": bound})

    class Watch:
        def ms_of(self, budget: Pick) -> dict[str, float | None]:
            return {"cpu": measured[budget.id], "macs": None}

        def keeps(self, budget: Pick) -> bool:
            return measured[budget.id] <= budget.budget_ms["cpu"]

    monkeypatch.setattr(recheck, "_with_pick", lambda inputs, budget, other: budget.model_copy(
        update={"id": other.id, "ms": other.ms}))
    monkeypatch.setattr(recheck.Judge, "read_log", lambda run, state: {id: (loss, 0) for id, loss in losses.items()})
    monkeypatch.setattr(recheck, "logged_name", lambda inputs: "")
    budgets = [pick("slow", 4.0, 5.0), pick("forbidden", 8.0, 9.0), pick("allowed", 4.5, 9.0)]
    inputs: Any = SimpleNamespace(run=None)
    watch: Any = Watch()
    chosen = recheck._best_measured(inputs, budgets, watch)
    assert [budget.id for budget in chosen] == ["allowed", "forbidden", "allowed"]
    assert chosen[0].measured_ms == {"cpu": 0.95, "macs": None}
