"""Networks judged with the supernet's weights: those of a file, and picks of a search that stopped early."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from every import every
from tiny_search import Quiet, comparable, config_of, searched, weights

from nas import cli, sampling
from nas.arch import Arch
from nas.errors import UserError
from nas.pipeline import search as pipeline
from nas.pipeline import supernet
from nas.pipeline.judging import read_archs
from nas.pipeline.selection import CALIBRATED_ON
from nas.plan import macs, params, plan
from nas.report.run_data import collect
from nas.run import events
from nas.run.directory import Run
from nas.run.records import Front, Picks
from nas.training import evaluation

Made = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def finished(space_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    path = tmp_path_factory.mktemp("run") / "whole"
    return path, searched(config_of(space_file, target="macs"), path)


@pytest.fixture
def run(finished: Made, tmp_path: Path) -> Run:
    shutil.copytree(finished[0], tmp_path / "run")
    return Run.existing(tmp_path / "run")


def written(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def sampled(run: Run, count: int) -> list[Arch]:
    config = pipeline.searched(run)
    _, training = supernet.load_finished(run, config, Quiet())
    rng = random.Random(0)
    return list(dict.fromkeys(sampling.sample(training.supernet.layout, rng) for _ in range(8 * count)))[:count]


def test_given_networks_are_judged_as_the_selector_judges(run: Run, tmp_path: Path) -> None:
    archs = sampled(run, 4)
    file = written(tmp_path / "archs.json", [archs[0].to_json(), {"id": "x", "arch": archs[1].to_json(), "ms": 3},
                                             archs[0].to_json(), archs[2].to_json()])
    found = pipeline.judge_archs(run, file, Quiet()).to_json()
    assert [one["id"] for one in found["networks"]] == [archs[i].id for i in (0, 1, 0, 2)]
    inputs, training = supernet.load_finished(run, pipeline.searched(run), Quiet())
    split = evaluation.part_of(inputs.data.select, inputs.config.judge_images, inputs.seed, "judge")
    assert found["images"] == len(split) and found["split"] == "select"
    for one, arch in zip(found["networks"], (archs[i] for i in (0, 1, 0, 2)), strict=True):
        judged, keys = training.judge(arch, split, CALIBRATED_ON), plan(inputs.layout, arch)
        assert (one["loss"], one["accuracy"], one["accuracy_se"]) == pytest.approx(
            (judged.loss, judged.accuracy, judged.accuracy_se), rel=1e-6)
        assert (one["macs"], one["params"]) == (sum(map(macs, keys)), sum(map(params, keys)))
        assert one["ms"] == {"macs": pytest.approx(one["macs"] / 1e6)}


def test_what_was_judged_is_not_judged_again(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archs = sampled(run, 5)
    file = written(tmp_path / "archs.json", [arch.to_json() for arch in archs])
    before = len(run.events(events.Judged))
    with pytest.raises(KeyboardInterrupt):
        pipeline.judge_archs(run, file, Quiet(2))
    done = {event.id for event in run.events(events.Judged)[before:]}
    known = {event.id for event in run.events(events.Judged)}
    judged: list[str] = []
    judge = pipeline.SupernetTraining.judge

    def counting(self: Any, arch: Arch, *more: Any) -> Any:
        judged.append(arch.id)
        return judge(self, arch, *more)

    monkeypatch.setattr(pipeline.SupernetTraining, "judge", counting)
    first = pipeline.judge_archs(run, file, Quiet())
    assert done and set(judged) == {arch.id for arch in archs} - known
    judged.clear()
    assert pipeline.judge_archs(run, file, Quiet()) == first and judged == []


@pytest.mark.parametrize(("content", "said"), [
    (b"", "not JSON"), (b"{", "not JSON"), (b"[" * 30000, "not JSON"), (b"\xff\xfe", "not JSON"),
    (b"[]", "expected a list of networks"),
    (b"{}", "expected a list of networks"), (b"null", "expected a list of networks"),
    (b"[3]", "network 1: architecture"), (b'[{"arch": 3}]', "network 1: architecture"),
    (b'[{"space": "tiny", "size": 16, "ops": ["?"], "exits": []}]', "network 1"),
    (b'[{"space": "tiny", "size": NaN, "ops": [], "exits": []}]', "network 1: architecture: size"),
    (b'[{"space": "tiny", "size": 16, "ops": [], "exits": [], "more": 1}]', "network 1: architecture"),
])
def test_a_hostile_file_is_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "archs.json").write_bytes(content)
    with pytest.raises(UserError, match=said) as refusal:
        read_archs(tmp_path / "archs.json")
    assert "\n" not in str(refusal.value) and "archs" in str(refusal.value)
    with pytest.raises(UserError, match="No such file"):
        read_archs(tmp_path / "none.json")


@pytest.mark.parametrize("change", [{"space": "other"}, {"size": 32}, {"ops": []}, {"exits": [1]},
                                    {"ops": ["mbconv(hidden=9999, kernel=3, se=0)"] * 4}])
def test_a_network_that_the_supernet_has_not_is_named_before_any_is_judged(run: Run, tmp_path: Path,
                                                                           change: dict[str, Any]) -> None:
    good, before = sampled(run, 1)[0].to_json(), run.events(events.AnyEvent)
    file = written(tmp_path / "archs.json", [good, {**good, **change}])
    with pytest.raises(UserError, match=r"archs: network 2: ") as refusal:
        pipeline.judge_archs(run, file, Quiet())
    assert "prune=false" not in str(refusal.value)  # no search of this space would have it
    assert run.events(events.AnyEvent) == before


def test_a_network_that_was_pruned_comes_with_the_search_that_has_it(run: Run, tmp_path: Path) -> None:
    inputs, training = supernet.load_finished(run, pipeline.searched(run), Quiet())
    kept = [set(slot.ops) for slot in training.supernet.layout.slots]
    archs = (sampling.sample(inputs.measured, random.Random(seed)) for seed in range(1000))
    pruned = next(arch for arch in archs if any(op not in ops for op, ops in zip(arch.ops, kept, strict=True)))
    with pytest.raises(UserError, match=r"network 1: .*prune=false and gates.granularity=space has it$"):
        pipeline.judge_archs(run, written(tmp_path / "archs.json", [pruned.to_json()]), Quiet())


@pytest.fixture
def nas(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*words: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.main(list(map(str, words)))
        return (int(end.value.code or 0), *capfd.readouterr())
    return call


def test_the_command_wants_one_of_its_two_uses(run: Run, tmp_path: Path, nas: Callable[..., Any]) -> None:
    file = written(tmp_path / "archs.json", [arch.to_json() for arch in sampled(run, 2)])
    for words in ((), ("--archs", file, "--storage", "sqlite://")):
        code, _, err = nas("judge", run.path, *words)
        assert code == 2 and "--archs or --storage: give one of the two" in err
    code, out, _ = nas("judge", run.path, "--archs", file, "--json")
    assert code == 0 and len(json.loads(out)["networks"]) == 2
    code, out, _ = nas("judge", run.path, "--archs", file)
    assert code == 0 and "M multiply-adds" in out and "networks: 2, judged on" in out and " ms" not in out


@pytest.mark.parametrize("stages", [["supernet"], ["selection"], ["supernet", "selection"]])
def test_a_search_that_stopped_goes_on_to_the_same_result(finished: Made, space_file: Path, tmp_path: Path,
                                                          stages: list[str]) -> None:
    config = config_of(space_file, target="macs")
    run = Run.open(tmp_path / "run", config.to_json())
    for stage in stages:
        found = pipeline.search(config, run, Quiet(), stage).to_json()
        assert found["until"] == stage and not list(run.path.glob("archs/*/weights.safetensors"))
        assert bool(found["front"]) == (stage == "selection") == run.has("picks.json")
        assert not run.has("front.json")
    if stages[-1] == "selection":
        losses = {event.id: event.accuracy for event in run.events(events.Judged)}
        cards = [*found["front"], *found["dominated"]]
        assert {card["id"]: card["select_accuracy"] for card in cards} == {card["id"]: losses[card["id"]]
                                                                           for card in cards}
        assert not any({"accuracy", "onnx"} & set(card) for card in cards)
        assert {card["id"] for card in cards} == {b["id"] for b in found["budgets"]}
        assert every(b["ms"][target] <= bound for b in found["budgets"] for target, bound in b["budget_ms"].items())
    torch.manual_seed(1)  # of no account
    assert comparable(pipeline.search(config, run, Quiet()).to_json()) == comparable(finished[1])
    assert weights(run.path) == weights(finished[0])


def test_networks_can_be_judged_once_the_supernet_is_trained(space_file: Path, tmp_path: Path) -> None:
    config = config_of(space_file, target="params")
    run = Run.open(tmp_path / "run", config.to_json())
    pipeline.search(config, run, Quiet(), "supernet")
    file = written(tmp_path / "archs.json", [arch.to_json() for arch in sampled(run, 2)])
    assert len(pipeline.judge_archs(run, file, Quiet()).to_json()["networks"]) == 2


def test_an_unknown_stage_is_refused_before_anything_is_made(nas: Callable[..., Any], tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = nas("search", "--target", "macs", "--until", "export")
    assert code == 2 and "--until export: a search can stop behind supernet or selection" in err
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_search_says_what_its_accuracies_are(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    from nas.cli import render

    inputs, _ = supernet.load_finished(run, pipeline.searched(run), Quiet())
    render.stopped(pipeline.judging.stopped_result(inputs, "selection", run.read("picks.json", Picks)))
    out = capsys.readouterr().out
    assert "inherited accuracy" in out and "with inherited weights" in out and "without --until goes on" in out
    assert "M multiply-adds" in out and "predicted ms" not in out


def test_a_front_of_a_count_says_what_it_counts(finished: Made, capsys: pytest.CaptureFixture[str]) -> None:
    from nas.cli import render

    path, result = finished
    assert result["front"]
    assert every(card["ms"] == {"macs": pytest.approx(card["macs"] / 1e6)} for card in result["front"])
    assert every(card["measured_ms"] == {"macs": None} for card in result["front"])
    render.front(Front.model_validate(result))
    out = capsys.readouterr().out
    assert "M multiply-adds" in out and "not applicable" not in out and "measured M" not in out
    assert "not measured" not in out
    assert "predicted ms" not in out and "measured ms" not in out
    assert not (path / "tables").exists()


def test_the_page_says_that_a_count_is_counted(finished: Made) -> None:
    views = collect(Run.existing(finished[0]))["views"]
    assert views and {view["unmeasured"] for view in views} == {"counted, not measured"}


def test_exported_files_say_the_unit(run: Run, tmp_path: Path, nas: Callable[..., Any]) -> None:
    pick = run.read_json("front.json")["front"][0]["id"]
    code, out, _ = nas("export", run.path, "--arch", pick, "--out", tmp_path / "out")
    assert code == 0 and "M multiply-adds" in out and "measured" not in out and "predicted ms" not in out
    assert "drift" not in out  # of a measurement, and nothing measures a count
