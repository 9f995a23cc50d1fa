"""Known networks beside the picks: which are chosen, whether they are of the space, and that they end as picks do."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cards import card
from every import every
from tiny_search import Quiet, comparable, config_of, searched, searched_in_pieces, weights
from tiny_space import TINY

from nas import sampling
from nas.arch import SKIP, Arch
from nas.cli import render
from nas.config.search import Config, resolve
from nas.latency.base import Costs
from nas.latency.meta import Meta
from nas.picks import SearchRun
from nas.pipeline import known, supernet, train_one
from nas.pipeline import search as pipeline
from nas.pipeline.front import find_picks
from nas.pipeline.inputs import Inputs
from nas.pipeline.known import BELOW, Candidate, arch_inside, choose, with_known
from nas.pipeline.setup import prepare_inputs
from nas.pipeline.winners import winner_lines
from nas.plan import Layout, OpKey, Task, candidates, layout, macs, plan
from nas.progress import Progress
from nas.report.figures import front_figure
from nas.report.run_data import collect
from nas.run import timeline
from nas.run.directory import Run
from nas.run.known import known_networks
from nas.run.records import Budget, Front
from nas.run.settings import Baseline
from nas.space import Space
from nas.training.recipes import shares_of_growth

Made = tuple[Config, Path, dict[str, Any]]


def only(name: str, size: int = 32) -> Layout:
    return layout(Space.load(name), Task(size, 3, 10))


def listed(*rows: tuple[str, float, float]) -> list[Candidate]:
    """Candidates by name, ms and published accuracy."""
    at = only("mobilenet_v3_small")
    return [Candidate(name, at, sampling.smallest(at), top1, {"cpu": ms}) for name, ms, top1 in rows]


@pytest.mark.parametrize(("count", "budgets", "expected"), [
    # the area below the front, above 50 %, up to 8 ms: a 0, b 10 ln 4 = 13.9, c 16 ln 2 = 11.1, d 0, at its end
    (1, [1.0, 8.0], ["b"]),
    # beside b: c 6 ln 2 = 4.2, a 0, d 0
    (2, [1.0, 8.0], ["b", "c"]),
    (9, [1.0, 8.0], ["a", "b", "c", "d"]),
    # of those from 2 to 4 ms the worst is b: neither b nor c covers anything, the faster is taken
    (1, [3.0, 4.0], ["b"]),
    # one budget: from two thirds of it on
    (2, [4.0], ["c"]), (2, [20.0], []), (2, [0.1], [])])
def test_those_are_chosen_that_cover_most_below_the_published_front(count: int, budgets: Sequence[float],
                                                                    expected: Sequence[str]) -> None:
    made = listed(("d", 8.0, 70.0), ("a", 1.0, 50.0), ("b", 2.0, 60.0), ("worse", 2.5, 59.0), ("c", 4.0, 66.0),
                  ("slow", 9.0, 80.0))
    chosen = [each.name for each in choose(made, "cpu", budgets, count)]
    assert chosen == list(expected)


def test_a_little_below_the_smallest_budget_is_near_enough_and_ties_go_to_the_one_people_try_first() -> None:
    made = listed(("a", 1.0 / BELOW, 60.0), ("b", 0.99 / BELOW, 60.0))
    assert [each.name for each in choose(made, "cpu", [1.0], 2)] == ["a"]
    alike = listed(("a", 2.0, 60.0), ("mobilenet_v3_small@0.5", 4.0, 60.0 + 1e-9), ("z", 4.0, 60.0))
    (best,) = choose(alike, "cpu", [4.0], 1)
    assert best.name in ("a", "mobilenet_v3_small@0.5")


def test_ghostnet_is_a_network_of_its_space_with_its_head_and_others_are_not() -> None:
    preset = only("ghostnet")
    assert arch_inside(only("ghost"), preset) is None  # which has no layer of 1280 features
    space = replace(only("ghost"), head=preset.head)
    arch = arch_inside(space, preset)
    assert arch is not None and arch.space == "ghost"
    assert plan(space, arch) == plan(preset, sampling.smallest(preset))
    assert arch_inside(space, only("mobilenet_v2")) is None
    assert arch_inside(only("ghost@0.5"), preset) is None
    assert arch_inside(preset, preset) == sampling.smallest(preset)


def test_a_shallower_network_is_inside_where_the_slots_that_it_lacks_can_be_skipped(tiny: Layout) -> None:
    ops = [next(op for op in slot.ops if op != SKIP) for slot in tiny.slots]
    short = replace(tiny, space="short", slots=tuple(
        replace(slot, branches=tuple(replace(b, widths=b.widths[:1]) for b in slot.branches[:1]))
        for slot in (tiny.slots[0], tiny.slots[2])))
    assert sampling.count(short) == 1
    arch = arch_inside(tiny, short)
    assert arch == Arch("tiny", tiny.task.size, (ops[0], SKIP, ops[2], SKIP))
    assert arch_inside(replace(tiny, slots=tuple(
        replace(slot, branches=tuple(b for b in slot.branches if b.op != SKIP)) for slot in tiny.slots)), short) is None
    assert arch_inside(replace(tiny, head=replace(tiny.head, out_ch=11)), short) is None


def wide(space_file: Path, baselines: int = 1) -> Config:
    """A tiny search whose range of multiply-adds holds MobileNetV3-Small at two widths."""
    return config_of(space_file, "width=4", f"baselines={baselines}", target="macs")


@pytest.fixture(scope="module")
def beside(space_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    path, config = tmp_path_factory.mktemp("known") / "run", wide(space_file)
    return config, path, searched(config, path)


def card_of(result: dict[str, Any]) -> dict[str, Any]:
    (card,) = [card for card in [*result["front"], *result["dominated"]] if "known" in card]
    return dict(card)


def test_a_known_network_is_delivered_as_a_pick_is(beside: Made, tmp_path: Path) -> None:
    _, path, result = beside
    card, (network,) = card_of(result), known_networks(Run.existing(path))
    at = only("mobilenet_v3_small@0.5", 16)
    assert card["known"] == network.name == "mobilenet_v3_small@0.5" and not network.inside
    assert card["ms"] == {"macs": pytest.approx(sum(map(macs, plan(at, sampling.smallest(at)))) / 1e6)}
    assert card["fine_tuned"] and card["relative_diff"] < 1e-4
    assert result["budgets"] and card["id"] not in {budget["id"] for budget in result["budgets"]}
    assert set(result["share_of_slots"]) <= {"ghost", "mbconv", "skip"}
    assert (path / card["onnx"]).is_file() and (path / "known" / "mobilenet_v3_small.yaml").is_file()
    pick = next(pick for pick in (*SearchRun(path).front, *SearchRun(path).front.dominated) if pick.known)
    assert pick.load_model()(torch.zeros(2, 3, 16, 16)).shape == (2, 10)
    assert len(pick.load_model(features_only=True)(torch.zeros(2, 3, 16, 16))) >= 2
    run = Run.existing(path)
    for kind in ("onnx", "features", "int8-onnx"):
        (file,) = pipeline.export(run, card["id"], None, tmp_path / kind, Quiet(), kind).files
        assert file.id == card["id"] and every(path.is_file() for path in (tmp_path / kind).iterdir())


def test_its_weights_are_those_of_nas_train(beside: Made, space_file: Path, tmp_path: Path) -> None:
    _, path, result = beside
    epochs = 1 + 2 + 1 + 2  # warm-up, search, settle, and those of a pick
    settings = resolve(None, ["train.batch=16", f"train.finetune_epochs={epochs}"], {
        "space": "mobilenet_v3_small@0.5", "arch": "largest", "target": ["macs"], "data": "digits", "size": 16,
        "limit": 160, "threads": 1}, Baseline)
    front = train_one.train_network(settings, Run.open(tmp_path / "alone", settings.to_json()), None, Quiet())
    id = card_of(result)["id"]
    assert front.front[0].id == id and weights(tmp_path / "alone")[id] == weights(path)[id]


def test_interrupted_at_many_moments_the_same_networks_stand_beside_the_picks(
        beside: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supernet, "CHECKPOINT_EVERY_S", 0.0)
    result, kills = searched_in_pieces(beside[0], tmp_path / "broken", steps=23)
    assert kills >= 4 and comparable(result) == comparable(beside[2])
    assert weights(tmp_path / "broken") == weights(beside[1])


def test_the_page_of_a_run_has_its_operators_and_its_name(beside: Made) -> None:
    shown, id = collect(Run.existing(beside[1])), card_of(beside[2])["id"]
    assert not shown["notes"] and len(shown["networks"][id]) == 13  # stem, eleven blocks, head
    (point,) = [point for point in shown["views"][0]["points"] if "known" in point]
    assert (point["id"], point["known"]) == (id, "mobilenet_v3_small@0.5")


def test_a_selection_for_another_target_leaves_it_out(beside: Made) -> None:
    again = pipeline.select(Run.existing(beside[1]), ["gpu-v100"], [], Quiet(), points=1)
    assert again.cards and every(card.known is None for card in again.cards)


def test_a_network_of_the_space_inherits_weights_as_picks_do(space_file: Path, tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    ops = {"ghost": {"cheap": 3, "kernel": 3, "se": 0, "hidden": 16}}
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump({**TINY, "name": "small", "ops": ops, "skip": False,
                                    "published": {"source": "made up", "top1": {1.0: 50.0}}}))
    monkeypatch.setattr(known, "shipped", lambda kind, suffix: [str(file)])
    monkeypatch.setattr(known, "resolve", lambda kind, name, suffix: file)
    result = searched(config_of(space_file, "baselines=1", "budgets=2", "prune=false", target="macs"), tmp_path / "run")
    run, card = Run.existing(tmp_path / "run"), card_of(result)
    (network,) = known_networks(run)
    assert network.inside and network.arch.space == "tiny" and card["known"] == "small"
    assert card["id"] == network.arch.id and card["fine_tuned"]
    ordered = sorted([*result["front"], *result["dominated"]], key=lambda each: (each["macs"], each["id"]))
    shares = shares_of_growth([each["macs"] for each in ordered])  # the known one grows among the picks
    tuned = {id: len([each for each in timeline.tuned(run) if each.id == id]) for id in weights(run.path)}
    assert tuned == {each["id"]: max(1, round(2 * share)) for each, share in zip(ordered, shares, strict=True)}
    assert set(tuned) == {card["id"], *(budget["id"] for budget in result["budgets"])}


class Rows(Costs):
    """Knows some operators by a row, a millisecond for a million multiply-adds; rows can be added."""

    kind = "table"
    grows = True

    def __init__(self, known: Collection[OpKey]) -> None:
        self.name, self.known, self.meta = "gears", known, Meta(device="gears")

    def ms(self, key: OpKey) -> float:
        if key not in self.known:
            raise self.unknown(key, "", 0)
        return macs(key) / 1e6

    def covers(self, key: OpKey) -> bool:
        return key in self.known


@pytest.fixture
def without_rows(space_file: Path, tmp_path: Path) -> Inputs:
    """Inputs of a search on gears, whose table has the rows of the space and none of any known network."""
    config = wide(space_file, 2)
    inputs = prepare_inputs(config, Run.open(tmp_path / "run", config.to_json()), ["macs"], Quiet())
    return replace(inputs, costs={"macs": Rows(set(candidates(inputs.measured)))})


def test_networks_whose_rows_cannot_be_had_are_left_out_by_name(without_rows: Inputs,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    told = Quiet()
    monkeypatch.setattr(known, "can_complete", lambda target, costs, plan: False)
    with_known(without_rows, told)
    lines = [note for note in told.notes if note.startswith("known networks left out: mobilenet_v3_small@0.35, ")]
    assert len(lines) == 1 and "whose rows macs lacks; gears is a table" in lines[0]
    assert known_networks(without_rows.run) == [] and without_rows.run.has("known.json")


def test_rows_are_made_for_those_that_are_chosen_alone(without_rows: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def make(inputs: Inputs, further: Sequence[Layout], progress: Progress) -> Inputs:
        made.extend(at.space for at in further)
        rows = {key for at in [inputs.measured, *further] for key in candidates(at)}
        return replace(inputs, costs={"macs": Rows(rows)})

    monkeypatch.setattr(known, "can_complete", lambda target, costs, plan: True)
    monkeypatch.setattr(known, "with_rows", make)
    inputs = with_known(without_rows, Quiet())
    networks = known_networks(without_rows.run)
    assert [network.name for network in networks] == made == ["mobilenet_v3_small@0.35", "mobilenet_v3_small@0.5"]
    for network in networks:
        keys = plan(inputs.of(network.arch).layout, network.arch)
        assert network.ms["macs"] == pytest.approx(sum(map(macs, keys)) / 1e6)


def one_wins(**more: Any) -> Front:
    """Picks within 1, 2 and 3 ms, and a known network of 1.5 ms that is better than the first two budgets' ones."""
    cards = [card("pick-1", {"cpu": 0.9}, select_accuracy=0.50), card("shelf", {"cpu": 1.5}, select_accuracy=0.612,
                                                                      known="mobilenet_v3_small@0.5"),
             card("pick-3", {"cpu": 2.9}, select_accuracy=0.70)]
    budgets = [Budget(budget_ms={"cpu": ms}, id=id, ms={"cpu": ms - 0.1})
               for ms, id in ((1.0, "pick-1"), (2.0, "pick-2"), (2.5, "pick-2"), (3.0, "pick-3"))]
    return Front(space="ghost", target=["cpu"], front=cards, budgets=budgets,
                 dominated=[card("pick-2", {"cpu": 1.9}, select_accuracy=0.583)], **more)


def test_a_known_network_that_wins_is_what_is_delivered_and_is_said_in_one_line(
        capsys: pytest.CaptureFixture[str]) -> None:
    front = one_wins(run="runs/x")
    assert [front.best(ms).id for ms in (1.0, 2.0, 2.5, 3.0)] == ["pick-1", "shelf", "shelf", "pick-3"]
    assert find_picks({"": front}, None, 2.0) == ("", ["shelf"])
    said = ("note: mobilenet_v3_small@0.5, a known network, beats the pick within 2 ms on cpu, 2.5 ms on cpu "
            "(61.2 against 58.3, 58.3 % on the selection split)")
    assert winner_lines(front) == [said]
    render.front(front)
    out = capsys.readouterr().out.splitlines()
    assert said in out and out[0].split()[:2] == ["id", "network"]
    assert [line.split()[1] for line in out if line.startswith(" shelf")] == ["mobilenet_v3_small@0.5"]


def test_one_that_is_no_better_is_no_news() -> None:
    front = one_wins()
    alike = [each.model_copy(update={"select_accuracy": 0.583}) if each.known else each for each in front.front]
    assert winner_lines(front.model_copy(update={"front": alike})) == []
    slow = [each.model_copy(update={"measured_ms": {"cpu": 2.7}}) if each.known else each for each in front.front]
    assert winner_lines(front.model_copy(update={"front": slow})) == []  # what is measured above its ms counts as that


def test_a_known_network_is_drawn_as_a_square_with_its_name() -> None:
    (axes,) = front_figure(one_wins()).axes
    assert [text.get_text() for text in axes.texts] == ["mobilenet_v3_small@0.5"]
    drawn: Any = axes.get_legend_handles_labels()
    markers = {name: handle.lines[0].get_marker() for handle, name in zip(*drawn, strict=True)}
    assert markers == {"front": "o", "front: known networks": "s", "picks dominated on the selection split": "o"}
