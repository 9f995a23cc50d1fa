"""The road end to end on a tiny space: hard budgets, files that stand alone, kills at any moment, broken files."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from every import every
from safetensors.torch import load_file
from tiny_search import SHORT, Quiet, comparable, config_of, searched, searched_in_pieces, searched_once, selected

from nas import sampling
from nas.errors import UserError
from nas.latency.costs import find
from nas.pipeline import search as pipeline
from nas.pipeline import selection, supernet
from nas.pipeline.setup import prepare_inputs
from nas.plan import Layout
from nas.run import checkpoint
from nas.run.directory import Run
from nas.run.events import Judged
from nas.run.settings import named_target
from nas.run.tables import kept_table


@pytest.fixture(scope="module")
def finished(space_file: Path, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("run") / "whole"
    return path, searched_once(config_of(space_file), path, shared)


def test_every_pick_is_within_its_budget_and_the_front_has_no_dominated_point(
        finished: tuple[Path, dict[str, Any]]) -> None:
    _, result = finished
    assert result["budgets"] and every(b["ms"]["gpu-v100"] <= b["budget_ms"]["gpu-v100"] for b in result["budgets"])
    front, cards = result["front"], [*result["front"], *result["dominated"]]
    assert every(a["ms"]["gpu-v100"] < b["ms"]["gpu-v100"] or a["select_accuracy"] > b["select_accuracy"]
                 for a in front for b in cards if a["id"] != b["id"])
    assert [card["ms"]["gpu-v100"] for card in front] == sorted(card["ms"]["gpu-v100"] for card in front)
    assert {b["id"] for b in result["budgets"]} == {c["id"] for c in [*front, *result["dominated"]]}
    assert every(c["measured_ms"] == {"gpu-v100": None} for c in front)  # no V100 here


def test_widths_that_a_wider_one_undercuts_are_not_searched(space_file: Path, tmp_path: Path) -> None:
    told, gone = Quiet(), 0
    whole, left = (prepare_inputs(config_of(space_file, f"gates.granularity={kept}"), Run.open(tmp_path / kept, {}),
                             ["gpu-v100"], told) for kept in ("space", "target"))
    for before, after, ms in zip(whole.layout.slots, left.layout.slots, whole.prices["gpu-v100"].ms, strict=True):
        for branch in before.branches:
            for i, op in enumerate(branch.ops):
                assert (op in after.ops) == all(ms[wider] > ms[op] for wider in branch.ops[i + 1:])
                gone += op not in after.ops
    assert gone and [note.split()[0] for note in told.notes if "are left out" in note] == [str(gone)]


def test_the_run_directory_stands_alone(finished: tuple[Path, dict[str, Any]]) -> None:
    path, result = finished
    for card in result["front"]:
        folder = path / "archs" / card["id"]
        model = onnx.load(folder / "model.onnx")
        metadata = {p.key: p.value for p in model.metadata_props}
        assert metadata["id"] == card["id"] and metadata["classes"].split("\n") == [str(i) for i in range(10)]
        assert metadata["size"] == "16" and len(metadata["mean"].split()) == 3
        session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        assert session.run(None, {"input": np.zeros((2, 3, 16, 16), np.float32)})[0].shape == (2, 10)
        full = json.loads((folder / "card.json").read_text())
        assert not (folder / "model.int8.onnx").exists() and "float_accuracy" not in full  # no int8 target
        assert full["relative_diff"] < 1e-4 and full["fine_tuned"] and full["provenance"]["data"] == "digits"
    names = {p.name for p in path.iterdir()}
    assert {"config.json", "environment.json", "log.jsonl", "space.yaml", "tables", "splits.json", "data.json",
            "supernet.pt", "picks.json", "front.json", "front.png", "archs"} <= names
    assert (path / "front.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert not list(path.rglob("*.tmp")) and not list(path.rglob("finetune.pt"))
    events = [json.loads(line)["event"] for line in (path / "log.jsonl").read_text().splitlines()]
    assert {"epoch", "judged", "selection", "finetune"} <= set(events)


def test_the_same_command_again_gives_the_same_result_at_once(finished: tuple[Path, dict[str, Any]],
                                                              space_file: Path) -> None:
    path, result = finished
    lines = len((path / "log.jsonl").read_text().splitlines())
    assert searched(config_of(space_file), path) == result
    assert len((path / "log.jsonl").read_text().splitlines()) == lines


def test_interrupted_at_many_moments_it_ends_with_the_same_front(
        finished: tuple[Path, dict[str, Any]], space_file: Path, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supernet, "CHECKPOINT_EVERY_S", 0.0)
    result, kills = searched_in_pieces(config_of(space_file), tmp_path / "broken", steps=17)
    assert kills >= 4
    assert comparable(result) == comparable(finished[1])


def test_budgets_are_hard_and_an_impossible_one_names_the_smallest(finished: tuple[Path, dict[str, Any]],
                                                                   space_file: Path, tmp_path: Path) -> None:
    cards = [*finished[1]["front"], *finished[1]["dominated"]]
    bound = max(card["ms"]["gpu-v100"] for card in cards) * 0.9
    run = Run.existing(finished[0])
    result = selected(run, ["gpu-v100"], [bound], Quiet())
    assert every(card["ms"]["gpu-v100"] <= bound for card in [*result["front"], *result["dominated"]])
    with pytest.raises(UserError, match=r"budget_ms=0\.001 is below the smallest reachable 0\.\d+ ms on gpu-v100"):
        selected(run, ["gpu-v100"], [0.001], Quiet())
    with pytest.raises(UserError, match="below the smallest reachable"):
        searched(config_of(space_file, "budget_ms=[0.001]"), tmp_path / "none")


def test_selection_for_another_target_trains_nothing(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    path, _ = finished
    other = json.loads((path / "tables" / "gpu-v100.json").read_text())
    other["name"] = "other"
    (tmp_path / "other.json").write_text(json.dumps(other))
    progress, before = Quiet(), (path / "supernet.pt").stat().st_mtime_ns
    result = selected(Run.existing(path), [str(tmp_path / "other.json")], [], progress)
    assert (path / "supernet.pt").stat().st_mtime_ns == before
    assert any("without" in note and "in view" in note for note in progress.notes)
    assert result["front"] and not any(card["fine_tuned"] for card in result["front"])


def test_networks_are_ranked_on_as_many_images_as_asked_for(finished: tuple[Path, dict[str, Any]], space_file: Path,
                                                            tmp_path: Path) -> None:
    path, _ = finished
    searched(config_of(space_file, "judge_images=4", f"init={path}"), tmp_path / "few")
    judged = {name: [event.accuracy for event in Run.existing(run).events(Judged)]
              for name, run in (("all", path), ("few", tmp_path / "few"))}
    count = len(json.loads((path / "splits.json").read_text())["select"])
    assert count > 4 and len(judged["few"]) >= 12
    assert every(4 * accuracy == round(4 * accuracy) for accuracy in judged["few"])
    assert every(count * accuracy == pytest.approx(round(count * accuracy)) for accuracy in judged["all"])
    assert any(4 * accuracy != round(4 * accuracy) for accuracy in judged["all"])


def test_a_run_finds_its_table_from_any_directory(space_file: Path, tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    table = json.loads(find("gpu-v100").read_text())
    for place in (here, there):
        place.mkdir()
        (place / "phone.json").write_text(json.dumps({**table, "name": place.name}))
    monkeypatch.chdir(here)
    result = searched(config_of(space_file, "budgets=1", target="phone.json"), here / "run")
    monkeypatch.chdir(there)  # where a file of that name is another
    run, target = Run.existing(here / "run"), str(here / "phone.json")
    assert run.config["target"] == [target] == result["target"]
    name = kept_table(run, target)
    assert json.loads(run.file(name).read_text())["name"] == "here" and len(list(run.file("tables").iterdir())) == 1
    card = result["front"][0]
    (file,) = pipeline.export(run, card["id"], None, tmp_path / "out", Quiet()).to_json()["files"]
    assert file["predicted_ms"] == card["ms"]
    (here / "phone.json").unlink()
    again = selected(run, run.config["target"], [], Quiet(), points=1)
    assert [b["ms"] for b in again["budgets"]] and len(list(run.file("tables").iterdir())) == 1
    (run.path / "tables.json").unlink()  # then its path tells
    assert kept_table(run, target) == name
    selected(run, ["phone.json"], [], Quiet(), points=1)
    assert len(list(run.file("tables").iterdir())) == 2  # that of there is another target
    assert [named_target(run, name) for name in (target, "phone.json", "cpu")] == [
        target, str(there / "phone.json"), "cpu"]


def test_a_loss_that_is_no_number_has_no_claim(tiny: Layout) -> None:
    rng = random.Random(0)
    archs = list(dict.fromkeys(sampling.sample(tiny, rng) for _ in range(20)))
    cost: Any = SimpleNamespace(cost=lambda arch, target: 0.95 if arch == archs[2] else 0.5)
    losses = {archs[0]: 0.9, archs[1]: 0.8, archs[2]: float("nan")}
    picked = selection._pick({archs[0].size: cost}, {"a": 1.0}, archs[:3], losses)
    assert picked.id == archs[0].id  # the best of those that take too little
    picked = selection._pick({archs[0].size: cost}, {"a": 1.0}, archs[:3], {**losses, archs[2]: 1.0})
    assert picked.id == archs[2].id


def test_a_selection_in_which_nothing_fits_does_not_stand_in_the_way_of_another(
        finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    shutil.copytree(finished[0], tmp_path / "run", ignore=shutil.ignore_patterns("selections"))
    front = json.loads((tmp_path / "run" / "front.json").read_text())
    (tmp_path / "run" / "selections" / "none").mkdir(parents=True)
    (tmp_path / "run" / "selections" / "none" / "front.json").write_text(
        json.dumps({**front, "front": [], "dominated": [], "budgets": []}))
    run, quiet = Run.existing(tmp_path / "run"), Quiet()
    files = pipeline.export(run, None, None, tmp_path / "out", quiet, "features").to_json()["files"]
    assert len(files) == len(front["front"]) + len(front["dominated"])


def test_two_tables_of_one_name_are_kept_apart(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    path, _ = finished
    table = (path / "tables" / "gpu-v100.json").read_bytes()
    (tmp_path / "gpu-v100.json").write_bytes(table)
    selected(Run.existing(path), [str(tmp_path / "gpu-v100.json")], [], Quiet())
    assert len(list((path / "tables").glob("gpu-v100*.json"))) == 2


def test_a_search_can_start_from_an_earlier_supernet(finished: tuple[Path, dict[str, Any]], space_file: Path,
                                                     tmp_path: Path) -> None:
    progress = Quiet(stop_at=3)
    config = config_of(space_file, f"init={finished[0]}", "train.lr=0.001")
    with pytest.raises(KeyboardInterrupt):
        searched(config, tmp_path / "second", progress)
    assert any(note.startswith("starting from") for note in progress.notes)
    other_split = config_of(space_file, f"init={finished[0]}", "seed=7")
    with pytest.raises(UserError, match="selection split"):
        searched(other_split, tmp_path / "third")
    with pytest.raises(UserError, match="no such run"):
        pipeline.refuse_settings(config_of(space_file, f"init={tmp_path / 'nowhere'}"))


@pytest.mark.parametrize(("change", "seed", "said"), [
    ({"origin": "a copy of the folder"}, 7, "it trained on images of this run's selection split"),
    ({"available": 1700}, 0, r"had 1700 images then and has 1797 now: .*search without init"),
    ({"origin": "another folder", "available": 1700}, 7, None)])
def test_no_supernet_is_taken_over_that_may_have_seen_this_run_s_selection_split(
        finished: tuple[Path, dict[str, Any]], space_file: Path, tmp_path: Path, change: dict[str, Any], seed: int,
        said: str | None) -> None:
    shutil.copytree(finished[0], tmp_path / "first", ignore=shutil.ignore_patterns("selections", "lock"))
    data = json.loads((tmp_path / "first" / "data.json").read_text())
    (tmp_path / "first" / "data.json").write_text(json.dumps({**data, "source": {**data["source"], **change}}))
    config = config_of(space_file, f"init={tmp_path / 'first'}", f"seed={seed}")
    with pytest.raises(UserError if said else KeyboardInterrupt, match=said):
        searched(config, tmp_path / "second", Quiet(stop_at=3))


def test_budgets_are_hard_whatever_told_the_gates_of_them(space_file: Path, tmp_path: Path) -> None:
    options = ["gates.latency=dual", "gates.update=single", "train.inplace=alpha", "train.ema=0.9"]
    config, path = config_of(space_file, *options), tmp_path / "run"
    result = searched(config, path)
    assert result["budgets"] and every(b["ms"]["gpu-v100"] <= b["budget_ms"]["gpu-v100"] for b in result["budgets"])
    assert searched(config, path) == result
    run, bound = Run.existing(path), 0.97 * max(b["ms"]["gpu-v100"] for b in result["budgets"])
    selected(run, ["gpu-v100"], [bound], Quiet())
    average, name = checkpoint.load(run, "supernet.pt")["average"]["net"], "stem.conv.conv.weight"
    delivered = [load_file(file)[name] for file in path.glob("selections/*/archs/*/weights.safetensors")]
    assert every(torch.equal(weight, average[name]) for weight in delivered)  # inherited, not fine-tuned
    with pytest.raises(UserError, match=r"began with train\.ema = 0\.9, now"):
        searched(config_of(space_file, *options[:3]), path)
    progress = Quiet(stop_at=1)
    with pytest.raises(KeyboardInterrupt):
        searched(config_of(space_file, f"init={path}"), tmp_path / "heir", progress)
    assert any(note.startswith("starting from") for note in progress.notes)


def test_export_writes_what_was_asked_for(finished: tuple[Path, dict[str, Any]], tmp_path: Path,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    run, front = Run.existing(finished[0]), finished[1]["front"]
    monkeypatch.delattr("nas.run.images.load")  # an export has no need of the images
    files = pipeline.export(run, front[0]["id"], None, tmp_path / "out", Quiet()).to_json()["files"]
    assert [f["id"] for f in files] == [front[0]["id"]] and Path(files[0]["onnx"]).is_file()
    assert files[0]["relative_diff"] < 1e-4
    with pytest.raises(UserError, match="arch=nope: no such pick"):
        pipeline.export(run, "nope", None, None, Quiet())
    with pytest.raises(UserError, match="cheapest pick"):
        pipeline.export(run, None, 1e-6, None, Quiet())


def test_export_of_the_features(finished: tuple[Path, dict[str, Any]], tmp_path: Path,
                                monkeypatch: pytest.MonkeyPatch) -> None:
    run, card = Run.existing(finished[0]), finished[1]["front"][-1]
    monkeypatch.delattr("nas.run.images.load")
    (file,) = pipeline.export(run, card["id"], None, tmp_path, Quiet(), "features").to_json()["files"]
    assert file["features"] == [{"name": "stride1", "channels": 8, "stride": 1},
                                {"name": "stride2", "channels": 16, "stride": 2}]
    assert file["relative_diff"] < 1e-4 and file["measured_ms"] == {"gpu-v100": None}
    assert 0 < file["predicted_ms"]["gpu-v100"] < card["ms"]["gpu-v100"]
    model = onnx.load(tmp_path / f"{card['id']}.features.onnx")
    assert [y.name for y in model.graph.output] == ["stride1", "stride2"]
    assert json.loads({p.key: p.value for p in model.metadata_props}["features"]) == file["features"]


def test_export_finds_a_pick_of_a_selection(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    run, own = Run.existing(finished[0]), [*finished[1]["front"], *finished[1]["dominated"]]
    bound = 0.97 * max(card["ms"]["gpu-v100"] for card in own)
    chosen = selected(run, ["gpu-v100"], [bound], Quiet())["front"][0]
    assert chosen["id"] not in {card["id"] for card in own}
    (file,) = pipeline.export(run, chosen["id"], None, tmp_path, Quiet()).to_json()["files"]
    assert file["predicted_ms"] == chosen["ms"] and file["onnx"] == str(tmp_path / f"{chosen['id']}.onnx")
    assert file["relative_diff"] < 1e-4


def test_export_as_int8_agrees_with_the_float_network(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    for package in ("tflite", "ai_edge_litert"):
        pytest.importorskip(package, reason="needs the extra: pip install '.[npu]'")
    run, front = Run.existing(finished[0]), finished[1]["front"]
    out = pipeline.export(run, front[0]["id"], None, tmp_path, Quiet(), "tflite").to_json()["files"][0]
    assert Path(out["tflite"]).read_bytes()[4:8] == b"TFL3" and list(tmp_path.iterdir()) == [Path(out["tflite"])]
    assert out["sqnr_db"] > 15 and 0.8 < out["same_top1"] <= 1
    assert out["predicted_ms"] == front[0]["ms"] and out["measured_ms"] == {"gpu-v100": None}


@pytest.mark.parametrize("broken", ["supernet.pt", "picks.json", "data.json", "tables/gpu-v100.json", "space.yaml"])
def test_a_truncated_file_is_one_line_with_its_name(finished: tuple[Path, dict[str, Any]], space_file: Path,
                                                    broken: str) -> None:
    path = finished[0] / broken
    content = path.read_bytes()
    try:
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(UserError, match=Path(broken).name) as caught:
            searched(config_of(space_file), finished[0])
        assert "\n" not in str(caught.value)
    finally:
        path.write_bytes(content)


def test_a_pickle_in_place_of_a_checkpoint_is_not_run(finished: tuple[Path, dict[str, Any]], space_file: Path) -> None:
    path = finished[0] / "supernet.pt"
    content = path.read_bytes()
    try:
        path.write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
        with pytest.raises(UserError, match=r"supernet\.pt"):
            searched(config_of(space_file), finished[0])
    finally:
        path.write_bytes(content)


def command(space_file: Path, path: Path) -> list[str]:
    return [sys.executable, "-m", "nas", "search", "--space", str(space_file), "--target", "gpu-v100", "--size", "16",
            "--data", "digits", "--limit", "160", "--threads", "1", "--run", str(path), "--json", *SHORT]


def events(path: Path) -> list[dict[str, Any]]:
    log = path / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


STAGES: dict[str, Callable[[Path], bool]] = {
    "start": lambda path: (path / "config.json").exists(),
    "warmup": lambda path: (path / "data.json").exists(),
    "search": lambda path: any(e.get("phase") == "warmup" for e in events(path)),
    "settle": lambda path: sum(e.get("phase") == "search" for e in events(path)) == 2,
    "judging": lambda path: sum(e["event"] == "judged" for e in events(path)) >= 3,
    "fine-tuning": lambda path: any(e["event"] == "finetune" for e in events(path)),
    "export": lambda path: bool(list(path.glob("archs/*/weights.safetensors"))),
}


@pytest.mark.slow
def test_real_kills_in_every_stage(space_file: Path, tmp_path: Path, finished: tuple[Path, dict[str, Any]]) -> None:
    path, signals = tmp_path / "killed", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
    environment = {**os.environ, "PYTHONPATH": str(Path(pipeline.__file__).parents[2])}
    for number, (stage, reached) in enumerate(STAGES.items()):
        process = subprocess.Popen(command(space_file, path), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   env=environment, cwd=tmp_path,
                                   preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        while process.poll() is None and not reached(path):
            time.sleep(0.01)
        process.send_signal(signals[number % 3])
        _, errors = process.communicate()
        assert process.returncode in (0, 130, -9), (stage, errors.decode()[-500:])
    last = subprocess.run(command(space_file, path), capture_output=True, env=environment, cwd=tmp_path, check=True)
    assert comparable(json.loads(last.stdout)) == comparable(finished[1])


def test_checkpoints_of_ours_load_without_unpickling(finished: tuple[Path, dict[str, Any]]) -> None:
    state = checkpoint.load(Run.existing(finished[0]), "supernet.pt")
    assert state["done"] == 4 and set(state) >= {"supernet", "gates", "optimizer", "streaks", "keep"}
