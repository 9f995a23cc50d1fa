"""The race of branches: which are left, that short searches have one and long ones have none, and that it is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny_search import SHORT, Quiet, config_of

from nas.arch import SKIP, Arch, Op
from nas.config.search import Config, resolve
from nas.decision import common_branches, of_branches
from nas.files import shipped
from nas.pipeline import narrow
from nas.pipeline.inputs import Inputs
from nas.pipeline.narrow import race, with_few_branches
from nas.pipeline.setup import prepare_inputs
from nas.plan import Layout, Task, layout, restrict
from nas.progress import NoProgress
from nas.run.branches import BRANCHES, Branches
from nas.run.directory import Run
from nas.space import Space

FEW = [Op.of("mbconv", kernel=kernel) for kernel in range(12)]


def at(name: str) -> Layout:
    return layout(Space.load(name), Task(32, 3, 10))


def branches_of(layout: Layout, slot: int) -> set[str]:
    return {str(branch.op) for branch in layout.slots[slot].branches}


def test_the_branches_of_ghost_by_hand() -> None:
    """Slots with a stride or other channels have a kernel: 2 cheap x 2 kernels x 2 se of ghost, 2 x 2 of mbconv."""
    assert len(common_branches(at("ghost"))) == 12
    assert len(common_branches(at("mobilenet_v2"))) == 1


def test_a_slot_takes_its_branch_of_most_knobs_alike() -> None:
    ghost = at("ghost")
    wanted = Op.of("ghost", cheap=3, kernel=5, se=1)
    left = restrict(ghost, of_branches(ghost, [wanted]))
    assert branches_of(left, 0) == {"ghost(cheap=3, se=1)", "skip"}  # stride 1, equal channels: no kernel
    assert branches_of(left, 1) == {"ghost(cheap=3, kernel=5, se=1)"}
    assert left.slots[1].branches[0].widths == next(b.widths for b in ghost.slots[1].branches if b.op == wanted)
    both = restrict(ghost, of_branches(ghost, [wanted, Op.of("mbconv", kernel=3, se=0)]))
    assert branches_of(both, 0) == {"ghost(cheap=3, se=1)", "mbconv(kernel=3, se=0)", "skip"}


def test_a_slot_without_the_operator_keeps_all_of_its_own() -> None:
    ghost = at("ghost")
    assert of_branches(ghost, [Op.of("resbasic")]) == [[op for branch in slot.branches for op in branch.ops]
                                                       for slot in ghost.slots]


@pytest.mark.parametrize("name", shipped("search_spaces", ".yaml"))
def test_any_branch_of_any_space_leaves_a_network(name: str) -> None:
    whole = at(name)
    for branch in common_branches(whole):
        left = restrict(whole, of_branches(whole, [branch]))
        assert all(slot.branches for slot in left.slots)
        assert all(sum(b.op != SKIP for b in slot.branches) <= sum(b.op != SKIP for b in before.branches)
                   for slot, before in zip(left.slots, whole.slots, strict=True))


@pytest.mark.parametrize(("most", "rounds"), [(1, [12, 4, 2]), (2, [12, 4]), (3, [12, 4]), (4, [12]), (5, [12])])
def test_a_third_goes_on_but_never_fewer_than_are_asked_for(most: int, rounds: list[int]) -> None:
    asked = list[tuple[int, int]]()

    def losses(branches: Sequence[Op], place: int) -> list[float]:
        asked.append((len(branches), place))
        return [abs(float(branch.get("kernel") or 0) - 7.1) for branch in branches]

    raced = race(FEW, most, losses)
    assert asked == [(count, place) for place, count in enumerate(rounds)]
    assert raced.kept == [f"mbconv(kernel={kernel})" for kernel in (7, 8, 6, 9, 5)[:most]]
    assert len(raced.losses) == 12


def test_no_number_loses_and_of_equal_ones_the_first_stays() -> None:
    raced = race(FEW[:5], 2, lambda branches, place: [math.nan, 1.0, 1.0, 1.0, math.nan][:len(branches)])
    assert raced.kept == ["mbconv(kernel=1)", "mbconv(kernel=2)"]
    assert raced.losses["mbconv(kernel=0)"] is None


def in_minutes(space_file: Path, *more: str, minutes: float = 1) -> Config:
    flags = {"space": str(space_file), "target": ["gpu-v100"], "data": "digits", "size": 16, "limit": 160, "threads": 1}
    short = [text for text in SHORT if "epochs" not in text]
    return resolve(None, [*short, f"minutes={minutes:g}", *more], flags)


def inputs_of(config: Config, path: Path) -> Inputs:
    return prepare_inputs(config, Run.open(path, config.to_json()), config.target, NoProgress())


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> list[Arch]:
    """Networks that were to train, which do not; each is better than the one before."""
    trained = list[Arch]()

    def loss(inputs: Inputs, arch: Arch, images: float) -> float:
        trained.append(arch)
        return -float(len(trained))

    monkeypatch.setattr(narrow, "_loss", loss)
    monkeypatch.setattr(narrow, "time_training", lambda inputs, arch, batch: 0.001)
    return trained


def test_a_short_search_has_the_winner_alone_and_keeps_it(space_file: Path, tmp_path: Path, fast: list[Arch]) -> None:
    config, notes = in_minutes(space_file), Quiet()
    inputs = inputs_of(config, tmp_path / "run")
    whole = common_branches(inputs.layout)
    assert len(whole) > 1
    left = with_few_branches(inputs, notes)
    assert len(fast) >= 2
    (winner,) = left.run.read(BRANCHES, Branches).kept
    assert winner == str(list(narrow._networks(inputs, whole))[-1])  # each was better than the one before
    assert len(common_branches(left.layout)) == 1
    assert notes.notes == [f"branches: {winner} of {len(whole)}, whose networks learned most alone: the time is too "
                           f"short to train all in one supernet (branches={len(whole)} keeps them)"]
    again = inputs_of(config, tmp_path / "run")  # of the same command, later
    assert again.layout == left.layout
    count = len(fast)
    assert with_few_branches(again, notes) is again and len(fast) == count


def test_a_race_that_was_stopped_goes_on_where_it_was(space_file: Path, tmp_path: Path, fast: list[Arch]) -> None:
    config = in_minutes(space_file)
    whole = with_few_branches(inputs_of(config, tmp_path / "whole"), NoProgress())
    every = list(fast)
    fast.clear()
    with pytest.raises(KeyboardInterrupt):
        with_few_branches(inputs_of(config, tmp_path / "run"), Quiet(stop_at=1))
    with_few_branches(inputs_of(config, tmp_path / "run"), NoProgress())
    assert fast == every and len(every) >= 2  # none of them twice
    kept = (tmp_path / "run" / BRANCHES).read_text(), (tmp_path / "whole" / BRANCHES).read_text()
    assert kept[0] == kept[1] and whole.run.has(BRANCHES)


@pytest.mark.parametrize(("minutes", "more"), [(1, ["branches=50"]), (1000, []), (0.25, [])])
def test_with_time_for_all_or_none_for_a_race_or_as_asked_all_stay(space_file: Path, tmp_path: Path, minutes: float,
                                                                   more: list[str], fast: list[Arch]) -> None:
    inputs = inputs_of(in_minutes(space_file, *more, minutes=minutes), tmp_path / "run")
    assert with_few_branches(inputs, NoProgress()) is inputs
    assert not fast and not inputs.run.has(BRANCHES)


def test_how_many_are_asked_for_is_how_many_are_left(space_file: Path, tmp_path: Path, fast: list[Arch]) -> None:
    left = with_few_branches(inputs_of(in_minutes(space_file, "branches=1", minutes=0.25), tmp_path / "run"),
                             NoProgress())
    assert len(common_branches(left.layout)) == len(left.run.read(BRANCHES, Branches).kept) == 1 and fast


def test_epochs_that_the_user_gives_are_no_race(space_file: Path, tmp_path: Path, fast: list[Arch]) -> None:
    inputs = inputs_of(config_of(space_file), tmp_path / "run")
    assert with_few_branches(inputs, NoProgress()) is inputs and not fast


def test_networks_race_at_a_latency_that_half_of_the_branches_reach(space_file: Path, tmp_path: Path) -> None:
    inputs = inputs_of(in_minutes(space_file), tmp_path / "run")
    branches = common_branches(inputs.layout)
    every = {branch: narrow.grown(restrict(inputs.layout, of_branches(inputs.layout, [branch])),
                                  inputs.prices["gpu-v100"], narrow.STEPS) for branch in branches}
    ms = {branch: [narrow.predicted_ms(inputs, arch)["gpu-v100"] for arch in archs] for branch, archs in every.items()}
    most = 1.2 * sorted(row[0] for row in ms.values())[(len(branches) - 1) // 2]
    racing = narrow._networks(inputs, branches)
    assert set(racing) == {branch for branch, row in ms.items() if row[0] <= most} and len(racing) >= 2
    for branch, arch in racing.items():
        assert narrow.predicted_ms(inputs, arch)["gpu-v100"] == max(taken for taken in ms[branch] if taken <= most)


def test_a_network_learns_from_as_many_images_as_it_is_told(space_file: Path, tmp_path: Path) -> None:
    inputs = inputs_of(in_minutes(space_file), tmp_path / "run")
    arch = next(iter(narrow._networks(inputs, common_branches(inputs.layout)).values()))
    loss = narrow._loss(inputs, arch, 200.0)
    assert 0 < loss < 1.5 * math.log(10) and loss == narrow._loss(inputs, arch, 200.0)
    assert loss != narrow._loss(inputs, arch, 400.0)
