"""Held-out images decide nothing that they are not for: with noise in their place all that precedes them stays.

The test split is only reported, the selection split chooses (networks, exits, thresholds) and teaches nothing. Here a
search with exits, a selection, ``nas train``, ``nas exits`` and exports run again with noise for the images and for the
labels of a split, and what may not depend on either is compared bit for bit.
"""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cards
import numpy as np
import onnxruntime
import pytest
import torch
from every import every
from tiny_search import SHORT, Quiet, config_of, searched, selected
from torch import nn

from nas.arch import Arch
from nas.config.search import resolve
from nas.exits.methods import method
from nas.exits.policy import outcome
from nas.exits.runtime import Runtime, confidences
from nas.exits.thresholds import Policy
from nas.lower import verify
from nas.pipeline import deliver, front, supernet, train_one
from nas.pipeline import search as pipeline
from nas.pipeline.budgets import budgets_of_target
from nas.pipeline.exits import existing, picks
from nas.pipeline.exits.add import add
from nas.pipeline.exits.train import load_exits as load_exits
from nas.pipeline.finetune import load_weights
from nas.pipeline.setup import load_finished_inputs, prepare_inputs
from nas.plan import plan
from nas.run import checkpoint, timeline
from nas.run.directory import Run
from nas.run.records import Picks
from nas.run.settings import Baseline, settings_of
from nas.training import data as data_module
from nas.training import evaluation, plateau
from nas.training.data import Data, Split, normalise
from nas.training.recipes import Exposure

SEARCH = ["exits.method=joint", "exits.epochs=2", "exits.lose=5", "train.finetune_epochs=1"]
ON_TEST = {"accuracy", "accuracy_se", "accuracy_without", "shares", "mean_ms", "test_mean_ms", "dominated_on_test"}
OF_THIS_RUN = {"run", "folder", "provenance", "time", "seconds"}
COMPARED_ON_TEST = {"relative_diff", "at_threshold"}  # files with exits, on images of that split
MOST_EPOCHS = 40  # of a training that may end before
KEPT = ("*.safetensors", "thresholds.json", "arch.json", "picks.json", "*.onnx")


def noise(split: Split) -> Split:
    """The split with other images, and its labels in another order."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint_like(split.images, 0, 256, generator=generator)
    return Split(images, split.labels[torch.randperm(len(split), generator=generator)])


@contextmanager
def with_noise(part: str) -> Iterator[None]:
    """Whatever loads images gets such of one part."""
    def load(*given: Any, **named: Any) -> Data:
        data = data_module.load(*given, **named)
        return replace(data, **{part: noise(getattr(data, part))})

    with pytest.MonkeyPatch.context() as patch:
        users = [module for name, module in sys.modules.items() if name.startswith("nas.")
                 and module is not data_module and getattr(module, "load", None) is data_module.load]
        assert users
        for module in users:
            patch.setattr(module, "load", load)
        patch.setattr(verify, "MIN_SQNR_DB", -np.inf)  # of an int8 file, on images of selection
        yield


def without(value: Any, keys: set[str]) -> Any:
    """A JSON value without some keys, at any depth."""
    if isinstance(value, dict):
        dropped = keys | (COMPARED_ON_TEST if value.get("exits") or value.get("method") else set())
        return {key: without(one, keys) for key, one in value.items() if key not in dropped}
    return [without(one, keys) for one in value] if isinstance(value, list) else value


@dataclass
class Outcome:
    """What was chosen, trained and said (``kept``), by name; and the figures of the test split (``reported``)."""

    kept: dict[str, Any] = field(default_factory=dict)
    reported: dict[str, float] = field(default_factory=dict)

    def take(self, name: str, path: Path, value: dict[str, Any]) -> None:
        """A result and all files of weights, thresholds and graphs below a directory; figures of test set apart."""
        self.kept[name] = without(value, ON_TEST | OF_THIS_RUN)
        files = sorted({file for pattern in KEPT for file in path.rglob(pattern)})
        self.kept |= {f"{name}: {file.relative_to(path)}": file.read_bytes() for file in files}
        log = [json.loads(line) for line in Run(path).file("log.jsonl").read_text().splitlines()]
        self.kept[f"{name}: log"] = [without(event, ON_TEST | OF_THIS_RUN) for event in log
                                     if event["event"] != "phase"]  # a line of what took long enough for one
        for card in [value] if "front" not in value else [*value["front"], *value["dominated"]]:
            self.reported[f"{name}: {card['id']}"] = card["accuracy"]


def cards_of(front: dict[str, Any]) -> list[dict[str, Any]]:
    return [*front["front"], *front["dominated"]]


def trained(space_file: Path, path: Path) -> Outcome:
    """``nas train``, its int8 export, and ``nas exits`` on what came of it."""
    flags = {"space": str(space_file), "arch": "largest", "data": "digits", "size": 16, "limit": 160, "threads": 1,
             "target": ["gpu-v100"]}
    config, done = resolve(None, ["train.finetune_epochs=2", "train.batch=16"], flags, Baseline), Outcome()
    run, quiet = Run.open(path / "trained", config.to_json()), Quiet()
    done.take("train", run.path, train_one.train_network(config, run, None, quiet).to_json())
    pipeline.export(run, None, None, path / "int8", quiet, "int8-onnx")
    done.kept["int8"] = [file.read_bytes() for file in (path / "int8").iterdir()]
    model = existing.load_pick(run, None, None, True, quiet)
    run = Run.open(path / "exits", {})
    done.take("exits", run.path, add(model, run, quiet, epochs=1).to_json())
    return done


def whole_search(space_file: Path, path: Path) -> Outcome:
    """A search with exits, and another selection from its supernet."""
    result, done = searched(config_of(space_file, *SEARCH), path), Outcome()
    done.take("search", path, result)
    done.kept["supernet"] = {name: tensor.numpy().tobytes() for name, tensor in weights(Run(path)).items()}
    done.take("select", path, selected(Run.existing(path), ["gpu-v100"], [], Quiet(), points=2))
    return done


def weights(run: Run) -> dict[str, torch.Tensor]:
    state = checkpoint.load(run, "supernet.pt")
    return {**state["supernet"], **state["gates"]}


@pytest.fixture(scope="module")
def search(space_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    path = tmp_path_factory.mktemp("search") / "run"
    return path, whole_search(space_file, path)


@pytest.fixture(scope="module")
def single(space_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    path = tmp_path_factory.mktemp("train")
    return path, trained(space_file, path)


def differing(one: Outcome, other: Outcome) -> list[str]:
    assert one.kept.keys() == other.kept.keys() and len(one.kept) > 5
    return [name for name, value in one.kept.items() if other.kept[name] != value]


def test_a_search_learns_and_chooses_nothing_from_the_test_split(
        search: tuple[Path, Outcome], space_file: Path, tmp_path: Path) -> None:
    with with_noise("test"):
        noisy = whole_search(space_file, tmp_path / "run")
    assert differing(search[1], noisy) == []
    assert noisy.reported.keys() == search[1].reported.keys() and noisy.reported != search[1].reported


def test_training_and_exits_on_a_network_learn_nothing_from_the_test_split(
        single: tuple[Path, Outcome], space_file: Path, tmp_path: Path) -> None:
    with with_noise("test"):
        noisy = trained(space_file, tmp_path)
    assert differing(single[1], noisy) == [] and noisy.reported != single[1].reported


def test_training_learns_nothing_from_the_selection_split(single: tuple[Path, Outcome], space_file: Path,
                                                          tmp_path: Path) -> None:
    """Weights, their batch norms, the scales of int8 and the heads of exits; thresholds do come from it."""
    with with_noise("select"):
        noisy = trained(space_file, tmp_path)
    learned = [name for name in noisy.kept if name.endswith(".safetensors") or name == "int8"]
    assert len(learned) == 3 and not set(learned) & set(differing(single[1], noisy))
    assert {"train", "exits", "exits: thresholds.json"} <= set(differing(single[1], noisy))


def train_patiently(space_file: Path, path: Path) -> Outcome:
    """``nas train`` without a number of epochs, and how many it took."""
    flags = {"space": str(space_file), "arch": "smallest", "data": "digits", "size": 16, "limit": 160, "threads": 1}
    config, done = resolve(None, ["train.batch=16"], flags, Baseline), Outcome()
    run = Run.open(path, config.to_json())
    done.take("train", path, train_one.train_network(config, run, None, Quiet()).to_json())
    done.kept["train: epochs"] = len(timeline.tuned(run))
    return done


def search_patiently(space_file: Path, path: Path) -> Outcome:
    """A search whose picks have no number of epochs, and how many each took."""
    flags = {"space": str(space_file), "target": ["gpu-v100"], "data": "digits", "size": 16, "limit": 160, "threads": 1}
    short = [text for text in SHORT if not text.startswith(("train.finetune_epochs", "budgets", "evaluations"))]
    config, done = resolve(None, [*short, "budgets=2", "evaluations=4"], flags), Outcome()
    done.take("search", path, searched(config, path))
    done.kept["search: epochs"] = Counter(epoch.id for epoch in timeline.tuned(Run.existing(path)))
    return done


@pytest.fixture
def soon_flat(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most forty epochs, and a held-out loss is flat that does not fall by half."""
    for module, name in ((pipeline, "PICK"), (train_one, "BY_ITSELF")):
        monkeypatch.setattr(module, name, Exposure(1, MOST_EPOCHS, patient=True))
    monkeypatch.setattr(plateau, "GAIN", 0.5)


@pytest.mark.usefixtures("soon_flat")
def test_training_that_ends_where_held_out_loss_is_flat_does_not_see_the_test_split(space_file: Path,
                                                                                   tmp_path: Path) -> None:
    """Neither weights nor their number of epochs nor what is chosen; the selection split does say when to end."""
    alone, whole = train_patiently(space_file, tmp_path / "alone"), search_patiently(space_file, tmp_path / "whole")
    lengths = [alone.kept["train: epochs"], *whole.kept["search: epochs"].values()]
    assert len(lengths) > 2 and every(0 < length < MOST_EPOCHS for length in lengths)
    with with_noise("test"):
        again = [train_patiently(space_file, tmp_path / "a"), search_patiently(space_file, tmp_path / "w")]
    for before, after in zip((alone, whole), again, strict=True):
        assert differing(before, after) == [] and before.reported != after.reported
    with with_noise("select"):
        other = train_patiently(space_file, tmp_path / "other")
    assert "train: log" in differing(alone, other)  # held-out losses are of that split


def test_a_supernet_and_its_gates_learn_nothing_from_the_selection_split(
        search: tuple[Path, Outcome], space_file: Path, tmp_path: Path) -> None:
    config = config_of(space_file, *SEARCH)
    run = Run.open(tmp_path / "run", config.to_json())
    with with_noise("select"):
        here = prepare_inputs(config, run, config.target, Quiet())
        limits = {t: budgets_of_target(here, here.layout, t, [], config.budgets) for t in config.target}
        supernet.train_supernet(here, limits, supernet.ALONE, Quiet())
    now = weights(run)
    assert {name: tensor.numpy().tobytes() for name, tensor in now.items()} == search[1].kept["supernet"]
    networks = [evaluation.calibration_images(at.data, 64, 16, torch.device("cpu"), 0)
                for at in (here, prepare_inputs(config, run, config.target, Quiet()))]
    assert every(torch.equal(one, other) for one, other in zip(*networks, strict=True))


def splits() -> Data:
    return data_module.load("digits", data_dir=None, size=16, seed=0, limit=160)


def test_a_cards_figures_are_of_the_delivered_weights_on_their_own_split(search: tuple[Path, Outcome]) -> None:
    """Recomputed: the share of the split's images, or of shifted views of them, that the weights get right."""
    run, data = Run.existing(search[0]), splits()
    here = load_finished_inputs(settings_of(run), run, ["gpu-v100"])
    result = run.read_json("front.json")
    plain = [card for card in cards_of(result) if not card["exits"]]
    views = list(evaluation.views(data.select, data.augment, 0))
    assert plain and len(views) > 1 and any(card["accuracy"] != card["select_accuracy"] for card in plain)
    for card in plain:
        arch = Arch.from_json(run.read_json(f"archs/{card['id']}/arch.json"))
        assert card["ms"]["gpu-v100"] == pytest.approx(sum(here.costs["gpu-v100"].ms_many(plan(here.layout, arch))))
        model = load_weights(here, arch, "")
        session = onnxruntime.InferenceSession(run.file(card["onnx"]), providers=["CPUExecutionProvider"])

        def right(split: Split, model: Any = model) -> float:
            with torch.no_grad():
                return float((model(normalise(split.images, data)).argmax(1) == split.labels).float().mean())

        logits = session.run(None, {"input": normalise(data.test.images, data).numpy()})[0]
        assert card["accuracy"] == pytest.approx(right(data.test)) == pytest.approx(
            float(np.mean(logits.argmax(1) == data.test.labels.numpy())))
        assert card["select_accuracy"] == pytest.approx(np.mean([right(view) for view in views]))
        assert card["test_images"] == len(data.test)
        for name, n in (("accuracy", len(data.test)), ("select_accuracy", len(data.select))):
            assert card[f"{name}_se"] == pytest.approx((card[name] * (1 - card[name]) / n) ** 0.5)


def test_thresholds_and_shares_of_exits_are_of_their_own_split(single: tuple[Path, Outcome]) -> None:
    """The policy's own point is what its thresholds give on the selection split, the card's on test."""
    folder, data = single[0] / "exits", splits()
    card = json.loads((folder / "card.json").read_text())
    policy = Policy.model_validate_json((folder / "thresholds.json").read_bytes())
    assert policy.n == len(data.select) != len(data.test) == card["n"]
    for split, mean_ms, accuracy in ((data.select, policy.point.mean_ms, policy.point.accuracy),
                                     (data.test, card["mean_ms"], card["accuracy"])):
        runtime = Runtime(folder)
        every = []  # what each exit says of all images
        for index in range(len(policy.prefix_ms)):
            runtime.thresholds = [np.inf] * index + [-np.inf] * (len(policy.prefix_ms) - index)
            every.append(runtime(normalise(split.images, data).numpy()).logits)
        logits = np.stack(every)
        sure = confidences(policy.kind, logits, np.array(policy.temperatures))
        right = logits.argmax(-1) == split.labels.numpy()
        point = outcome(sure, right, policy.point.thresholds, np.array(policy.prefix_ms))
        assert (point.mean_ms, point.accuracy) == pytest.approx((mean_ms, accuracy))


def statistics(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer for name, buffer in net.state_dict().items() if "running_" in name}


def recomputed(net: nn.Module, count: int, part: nn.Module | None = None) -> dict[str, torch.Tensor]:
    """Its batch norms' statistics as they are of training images."""
    other = copy.deepcopy(net)
    within = dict(other.named_modules())[next(name for name, m in net.named_modules() if m is part)] if part else None
    evaluation.recalibrate(other, evaluation.calibration_images(splits(), count, 128, torch.device("cpu"), 0), within)
    return statistics(other)


def alike(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return bool(one) and all(torch.allclose(tensor, other[name], rtol=1e-4, atol=1e-6) for name, tensor in one.items())


def test_delivered_batch_norms_are_those_of_training_images(search: tuple[Path, Outcome],
                                                            single: tuple[Path, Outcome]) -> None:
    """Of fine-tuned picks, of picks with inherited weights, and of the heads of exits."""
    run = Run.existing(search[0])
    here = load_finished_inputs(settings_of(run), run, ["gpu-v100"])
    places = {"": 2000, **{f"selections/{path.name}/": 1000 for path in (search[0] / "selections").iterdir()}}
    assert len(places) == 2
    for place, count in places.items():
        files = sorted((search[0] / place).glob("archs/*/arch.json"))
        assert files
        for file in files:
            net = load_weights(here, Arch.from_json(json.loads(file.read_text())), place)
            assert alike(statistics(net), recomputed(net, count)), file
    one = existing.load_pick(Run.existing(single[0] / "trained"), None, None, True, Quiet())
    heads = method("cache", one.net)
    load_exits(heads, Run(single[0] / "exits"), "")
    assert alike(statistics(heads.eval()), recomputed(heads, 2000, heads.net.net.exits))


def unfinished(search: tuple[Path, Outcome], path: Path, kind: str) -> list[str]:
    """A copy of the search that has still to make the cards of its picks (``card``) or of their exits."""
    shutil.copytree(search[0], path)
    (path / "front.json").unlink()
    cards = sorted(path.glob("archs/*/exits/card.json" if kind == "exits" else "archs/*/card.json"))
    for file in cards:
        file.unlink()
    return [file.parent.name for file in cards]


def test_a_file_that_differs_from_its_weights_is_not_delivered(search: tuple[Path, Outcome], space_file: Path,
                                                               tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert unfinished(search, tmp_path / "run", "card")
    export = deliver.export

    def off(model: Any, path: Path, **named: Any) -> None:
        other = copy.deepcopy(model)
        with torch.no_grad():
            [*other.parameters()][-1].add_(0.05)
        export(other, path, **named)

    monkeypatch.setattr(deliver, "export", off)
    with pytest.raises(verify.Disagreement, match=r"model\.onnx: differs from PyTorch by"):
        searched(config_of(space_file, *SEARCH), tmp_path / "run")
    assert not (tmp_path / "run" / "front.json").exists()
    run = Run.existing(search[0])
    with pytest.raises(verify.Disagreement, match="differs from PyTorch by"):
        pipeline.export(run, None, None, tmp_path / "out", Quiet())


def test_what_exits_may_lose_is_of_the_plain_picks_own_accuracy(search: tuple[Path, Outcome], space_file: Path,
                                                                tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    assert unfinished(search, tmp_path / "run", "exits")
    asked, chosen = list[Any](), picks.choose_exits
    monkeypatch.setattr(picks, "choose_exits", lambda trained, pieces, wishes: (
        asked.append((trained, pieces, wishes)), chosen(trained, pieces, wishes))[1])
    result = searched(config_of(space_file, *SEARCH), tmp_path / "run")
    plain = [card for card in cards_of(result) if not card["exits"]]
    assert len(asked) == len(plain) > 1
    assert {(wishes.lose, wishes.than, wishes.max_ms) for _, _, wishes in asked} == {
        (0.05, card["select_accuracy"], None) for card in plain}
    assert sorted(round(float(pieces.plain_ms), 9) for _, pieces, _ in asked) == sorted(
        round(card["ms"]["gpu-v100"], 9) for card in plain)
    assert cards_of(result) == cards_of(json.loads((search[0] / "front.json").read_text()))


def test_where_the_splits_disagree_the_front_is_that_of_selection() -> None:
    """By selection b beats a and c, which is slower; by test it would be the other way round."""
    networks = [cards.card(id, {"t": ms}, select_accuracy=select, select_accuracy_se=0.25, accuracy=test)
             for id, ms, select, test in (("a", 1.0, 0.5, 0.9), ("b", 2.0, 0.8, 0.6), ("c", 3.0, 0.7, 0.95))]
    here: Any = SimpleNamespace(costs={"t": None}, layout=SimpleNamespace(space="s"), others={}, every=[])
    made = front.make_front(here, networks, Picks(budgets=[], rank_agreement={}))
    assert [card.id for card in made.front] == ["a", "b"] and [card.id for card in made.dominated] == ["c"]
    assert [card.dominated_on_test for card in made.cards] == [False, True, False]
    assert [card.within_error_of for card in made.front] == [None, "a"]  # 0.3 apart, by 0.35 or less by chance
    assert front.find_picks({"": made}, None, 2.5) == ("", ["b"])  # the best for a budget, too
