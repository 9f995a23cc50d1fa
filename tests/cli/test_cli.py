"""The command line: one JSON value or a table on stdout, one line on stderr for a mistake, exit 0, 2 or 130."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from cards import card, front
from every import every
from pretended import Call, pretend

from nas.errors import UserError
from nas.files import shipped
from nas.latency.costs import KnownTarget
from nas.latency.meta import Validation
from nas.latency.profile import Profiled
from nas.pipeline.budgets import Bounds
from nas.pipeline.npu_memory import Memory
from nas.run.directory import Run
from nas.run.images import RECORDED, Images
from nas.run.records import Budget, Exported, ExportedFile, Front

RESULT = front([card()], budgets=[Budget(budget_ms={"cpu": 0.6}, id=card().id, ms={"cpu": 0.5})])
VERBS = ["profile", "search", "select", "export", "measure", "predict", "sample", "validate", "spaces", "targets",
         "compare", "report", "train", "evaluate", "exits"]


def test_help_is_instant_and_names_every_verb(call: Call) -> None:
    code = "import sys; from nas.cli import app; print({'torch', 'numpy', 'rich', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True)
    assert "torch" not in done.stdout and "numpy" not in done.stdout
    for words in ([], ["--help"], ["-h"]):
        exit_code, out, err = call(*words)
        assert exit_code == 0 and not err
        assert every(verb in out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(call: Call, verb: str) -> None:
    code, out, err = call(verb, "--help")
    assert code == 0 and not err and "--json" in out


@pytest.mark.parametrize(("words", "expected"), [
    (["serach"], "search"),
    (["search", "--nope"], "--nope"),
    (["search"], "--target"),
    (["search", "--target", "cpu", "sed=1"], "did you mean 'seed'"),
    (["search", "--target", "cpu", "--seed", "x"], "--seed"),
    (["search", "--target", "cpu", "--seed", "-1"], "--seed"),
    (["search", "--target", "cpu", "--budget-ms", "0"], "--budget-ms"),
    (["search", "--target", "cpu", "--budget-ms", "nan"], "--budget-ms"),
    (["search", "--target", "cpu", "--selector", "x"], "--selector"),
    (["search", "--target", "cpu", "--config", "none.yaml"], "none.yaml"),
    (["search", "--target", "cpu", "--run", "file"], "file"),
    (["select", "none"], "none: no such run directory"),
    (["select", "."], "not a run directory"),
    (["select"], "RUN"),
    (["select", "run", "--budget-ms", "-1"], "--budget-ms"),
    (["export", "none"], "no such run"),
    (["export", "run", "--arch", "a", "--budget-ms", "1"], "one of the two"),
    (["export", "run", "--budget-ms", "inf"], "--budget-ms"),
    (["export", "run", "--format", "jpeg"], "--format jpeg: known are onnx, int8-onnx and tflite"),
    (["measure", "none.onnx"], "none.onnx"),
    (["measure", "file", "--device", "tpu"], "--device tpu: did you mean 'gpu'? known: cpu, ethos"),
    (["profile", "--threads", "0"], "--threads"),
    (["predict", "none.onnx"], "--target"),
    (["predict", "none.onnx", "--target", "gpu-v100"], "none.onnx: no such file"),
    (["predict", "file", "--target", "gpu-v100"], "file: an empty file, not an ONNX file; fetch it again"),
    (["predict", "file", "--target", "gpu-v10"], "did you mean 'gpu-v100'"),
    (["sample", "--target", "gpu-v100"], "--out"),
    (["sample", "--target", "gpu-v100", "--out", "new", "-n", "0"], "-n"),
    (["sample", "--target", "gpu-v100", "--out", "new", "--space", "gost"], "did you mean 'ghost'"),
    (["sample", "--target", "gpu-v100", "--out", "run"], "--out run: there is something else"),
    (["validate", "--table", "gpu-v100", "none.json", "file"], "none.json: no such file"),
    (["validate", "none.json", "file"], "--table"),
    (["spaces", "--size", "0"], "--size"),
    (["spaces", "--ops", "my.py"], "--ops: goes with --check FILE"),
    (["spaces", "--markdown"], "--markdown: goes with --target"),
    (["spaces", "--target", "gpu-v200"], "gpu-v200"),
    (["spaces", "--check", "none.yaml"], "none.yaml: no such file"),
    (["search", "--target", "gpu-v100", "--ops", "none.py"], "--ops none.py: cannot be read: No such file"),
    (["compare", "--spaces", "ghost", "--spaces", "mbconv"], "--target"),
    (["compare", "--spaces", "ghost", "--target", "gpu-v100"], "--spaces: give two or more"),
    (["compare", "--spaces", "ghost", "--spaces", "mbconv", "--target", "gpu-v100", "gates.lr=1"], "gates: has no"),
])
def test_a_mistake_is_one_line_and_exit_2(call: Call, words: list[str], expected: str) -> None:
    Path("file").touch()
    Run.open("run", {"target": ["cpu"]})
    code, out, err = call(*words)
    assert (code, out) == (2, "") and expected in err
    assert len(err.splitlines()) == 1 and err.startswith("nas: ") and "Traceback" not in err


def test_search_resolves_locks_and_prints_one_object(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def search(config: Any, run: Run, progress: Any, until: str | None) -> Front:
        assert until is None
        with pytest.raises(UserError, match=str(os.getpid())), run.lock():
            pytest.fail("not locked")
        print("chatter")
        os.system("echo chatter of C")
        with progress.task("supernet", 1) as task:
            task.advance()
        assert (config.seed, config.train.lr, config.budget_ms) == (3, 0.5, [0.6])
        return RESULT

    monkeypatch.setattr("nas.pipeline.search.search", search)
    monkeypatch.setattr("nas.pipeline.search.refuse_settings", lambda config: None)
    words = ["search", "train.lr=0.5", "--target", "cpu", "--seed", "3", "--budget-ms", "0.6"]
    code, out, err = call(*words, "--json")
    assert code == 0 and json.loads(out) == RESULT.to_json() and out.count("\n") == 1
    assert "supernet: 1/1" in err and err.count("chatter") == 2
    (made,) = Path("runs").iterdir()
    assert made.name.startswith("ghost-cpu-cluttered-") and Run.existing(made).config["seed"] == 3
    code, out, err = call(*words)  # the same command finds the same run
    assert code == 0 and len(list(Path("runs").iterdir())) == 1
    assert all(part in out for part in ("0123456789ab", "90.0 % +- 1.2", "12.34 M", "0.56 M", card().onnx,
                                   "not measured: no cpu here"))
    assert out.splitlines()[-1] == "runs/x" and "chatter" not in out
    code, out, err = call(*words[:-2], "--run", str(made))
    assert (code, out) == (2, "") and "= [0.6], now []" in err


def test_several_targets_have_a_column_each(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    ms, measured = {"cpu": 0.5, "gpu-v100": 0.25}, {"cpu": 0.52, "gpu-v100": None}
    point = card(ms=ms, measured_ms=measured, dominated_on_test=True)
    monkeypatch.setattr("nas.pipeline.search.refuse_settings", lambda config: None)
    monkeypatch.setattr("nas.pipeline.search.search", lambda *_: front(
        [point], dominated=[card("dominated123", ms, measured_ms=measured)]))
    _, out, _ = call("search", "--target", "cpu", "--target", "gpu-v100")
    assert all(part in out for part in ("predicted ms cpu", "predicted ms gpu-v100", "0.52", "0.25", "standing cpu",
                                   "front, dominated on test", "dominated123", "not measured: no gpu-v100 here"))
    assert "no cpu here" not in out


def test_select_and_export_pass_what_was_asked(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    Run.open("run", {"target": ["cpu", "other"]})
    asked: list[Any] = []
    places: list[Images] = []
    files = Exported(files=[ExportedFile(id="a", onnx="a.onnx", max_abs_diff=1e-6, predicted_ms={"cpu": 0.5},
                                         measured_ms={"cpu": None})], target=["cpu"])

    def select(run: Run, targets: list[str], budget_ms: list[float], progress: Any, fine_tune: bool,
               memory: Memory, bounds: Bounds, points: int | None, storage: str | None,
               workers: int, images: Images) -> Front:
        asked.append((run.path, targets, budget_ms, fine_tune, memory.given, bounds, points, storage, workers))
        places.append(images)
        return RESULT

    def export(run: Run, arch_id: str | None, budget_ms: float | None, out: Path | None, progress: Any,
               kind: str, images: Images) -> Any:
        asked.append((arch_id, budget_ms, out, kind))
        places.append(images)
        return files

    pretend(monkeypatch, "nas.pipeline.search", select=select, export=export)
    assert json.loads(call("select", "run", "--json")[1]) == RESULT.to_json()
    call("select", "run", "--target", "npu", "--budget-ms", "2", "--budget-ms", "1", "--fine-tune",
         "--sram-kb", "256", "--flash-kb", "99.5")
    call("select", "run", "--budget-ms", "cpu=2", "--budget-ms", "other=1", "--max-params", "9000", "--budgets", "50",
         "--storage", "sqlite:///all.db", "--workers", "4")
    assert json.loads(call("export", "run", "--json", "--budget-ms", "2")[1]) == files.to_json()
    code, out, _ = call("export", "run", "--arch", "a", "--out", "there", "--format", "tflite", "--data", "b",
                        "--data-dir", "c")
    assert [*dict.fromkeys(places)] == [RECORDED, Images("b", "c")]
    assert code == 0 and "a.onnx" in out and "1e-06" in out
    assert asked == [(Path("run"), ["cpu", "other"], [], False, {}, Bounds(), None, None, 1),
                     (Path("run"), ["npu"], [1.0, 2.0], True, {"sram_kb": 256, "flash_kb": 99.5}, Bounds(), None,
                      None, 1),
                     (Path("run"), ["cpu", "other"], [], False, {}, Bounds(
                         {"max_params": 9000.0}, {"cpu": 2.0, "other": 1.0}), 50, "sqlite:///all.db", 4),
                     (None, 2.0, None, "onnx"), ("a", None, Path("there"), "tflite")]
    assert call("export", "run", "--features")[0] == 0 and asked[-1] == (None, None, None, "features")
    code, _, err = call("export", "run", "--features", "--format", "tflite")
    assert code == 2 and "--features --format tflite: the maps are written as onnx only" in err


def test_presets_are_listed_apart_from_spaces(call: Call) -> None:
    code, out, _ = call("presets", "--json", "--size", "64", "--classes", "10", "--width", "0.5")
    values = json.loads(out)
    assert code == 0 and [value["name"] for value in values] == [f"{name}@0.5" for name in
                                                                 shipped("search_spaces/presets", ".yaml")]
    assert every(value["params"] > 0 and value["ms"] == {} and Path(value["file"]).is_file() for value in values)
    code, out, _ = call("presets", "--target", "gpu-v100", "--target", "ethos-u55-128")
    assert code == 0 and "ms gpu-v100" in out and "11.69 M" in out
    assert call("presets", "--target", "nope")[0] == 2
    code, out, err = call("presets", "--target", "cpu-emerald-rapids", "--size", "64", "--width", "0.5")
    lines = [line for line in err.splitlines() if "cpu-emerald-rapids" in line]
    assert code == 0 and len(lines) == 1
    assert lines[0].startswith("cpu-emerald-rapids: lacks rows at 64 pixels of fbnet_c@0.5, ")
    assert "nas profile --device cpu --space fbnet_c@0.5 --space " in lines[0] and " --size 64" in lines[0]


def test_profile_fills_one_table_for_all_spaces(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    precisions: list[str | None] = []
    exits: list[int] = []

    def profile(layout: Any, table_path: Path, **options: Any) -> Profiled:
        machine = options["device"]
        calls.append((layout.space, layout.task.size, table_path, machine.threads, options["validate"]))
        precisions.append(machine.precision)
        exits.append(len(layout.exits))
        with options["progress"].task(f"profile {layout.space}", 10) as task:
            task.advance(5)
        check = Validation(n=2, mape=3.0 - len(calls), bias=0.1, kendall=0.9, noise_mape=1.0, noise_kendall=0.9)
        return Profiled(table=str(table_path), rows=10 * len(calls), measured=10, flagged=0,
                        validation=check if options["validate"] else None)

    def planned_s(at: Any, path: Path, device: Any, remeasure: bool, validate: int) -> float:
        return 60.0

    def measure_exit_ms(at: Any, path: Path, again: bool, progress: Any) -> None:
        asked.append((len(at.exits), path, again))

    asked: list[tuple[int, Path, bool]] = []
    for name, function in (("profile", profile), ("planned_s", planned_s), ("measure_exit_ms", measure_exit_ms)):
        monkeypatch.setattr(f"nas.pipeline.profile.{name}", function)
    monkeypatch.setattr("nas.pipeline.profile.open_device", lambda name, threads, batch, precision:
                        types.SimpleNamespace(name=name, threads=threads, precision=precision))
    code, out, err = call("profile", "--size", "32", "--validate", "2", "--threads", "2", "--json")
    value = json.loads(out)
    spaces = shipped("search_spaces", ".yaml")
    assert "profile ghost: 5/10" in err
    where = f"{len(spaces)} spaces at 32 pixels on cpu, into latency_tables/cpu-b1-t2.json"
    assert f"{where}: about {len(spaces)} min" in err
    assert code == 0 and [each[0] for each in calls] == spaces and list(value["spaces"]) == spaces
    assert every(each[1:] == (32, Path("latency_tables/cpu-b1-t2.json"), 2, 2) for each in calls)
    assert (value["rows"], value["measured"], value["validation"]["mape"]) == (10 * len(spaces), 10 * len(spaces), 2.0)
    calls.clear()
    code, out, _ = call("profile", "--space", "ghost", "--width", "0.5", "--out", "t.json")
    assert code == 0 and calls == [("ghost@0.5", 224, Path("t.json"), 1, 0)]
    assert out.splitlines() == ["10 rows measured, 0 already there", "took 0 s in all", "t.json"]
    _, out, _ = call("profile", "--space", "ghost", "--precision", "int8")
    assert out.splitlines()[-1] == "latency_tables/cpu-int8.json" and precisions[-2:] == [None, "int8"]
    assert exits == [0] * len(exits)
    assert not any(count for count, *_ in asked)
    assert call("profile", "--space", "ghost", "--exits")[0] == 0 and exits[-1] == 4
    assert asked[-1] == (4, Path("latency_tables/cpu.json"), False)


def test_measure_prints_the_timing(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from nas.latency.devices import Measured

    asked: list[tuple[Any, ...]] = []

    def measure(path: Path, device: str, **options: Any) -> Measured:
        asked.append((path, device, options))
        return Measured(ms=1.25, p10_ms=1.5, p90_ms=2.0, n=30, batch=4, threads=2)

    pretend(monkeypatch, "nas.latency.devices", measure=measure)
    Path("m.onnx").touch()
    code, out, _ = call("measure", "m.onnx", "--threads", "2", "--size", "64", "--json")
    assert code == 0 and json.loads(out) == {"ms": 1.25, "ms_percentile": 5, "p10_ms": 1.5, "p90_ms": 2.0, "n": 30,
                                             "batch": 4, "threads": 2}
    assert asked == [(Path("m.onnx"), "cpu", {"threads": 2, "batch": None, "size": 64})]
    assert call("measure", "m.onnx")[1].splitlines()[0].split("   ") == [
        " 5th percentile ms", "10th", "90th", "runs", "batch", "threads"]


def test_sample_predict_and_validate_agree(call: Call) -> None:
    """What is sampled is predicted alike as a file; measured 25 % slower, the bias is -20 %."""
    words = ["sample", "--target", "gpu-v100", "--space", "mbconv", "--size", "32", "-n", "3", "--out", "s"]
    code, out, err = call(*words, "--json")
    samples = json.loads(out)
    assert code == 0 and samples == json.loads(Path("s/samples.json").read_text()) and "sample: 3/3" in err
    code, out, err = call(*words, "--seed", "1")
    assert (code, out) == (2, "") and "began with seed = 0, now 1" in err
    code, out, _ = call("predict", f"s/{samples[0]['onnx']}", "--target", "gpu-v100", "--json")
    value = json.loads(out)
    assert code == 0 and value["ms"] == pytest.approx(samples[0]["ms"]) and value["unknown"] == []
    out = call("predict", f"s/{samples[0]['onnx']}", "--target", "gpu-v100-b32")[1]
    assert "Conv+Relu" in out and "at batch 32 on gpu-v100-b32" in out.splitlines()[-1]
    Path("m.csv").write_text("id,ms\n" + "".join(f"{one['id']},{1.25 * one['ms']}\n" for one in samples))
    code, out, _ = call("validate", "--table", "gpu-v100", "s/samples.json", "m.csv", "--json")
    value = json.loads(out)
    assert code == 0 and (value["n"], value["kendall"], value["spearman"]) == (3, pytest.approx(1), pytest.approx(1))
    assert value["bias"] == pytest.approx(-0.2) and value["table"] is None and not Path("latency_tables").exists()
    assert "latency_tables/gpu-v100.json" in call("validate", "--table", "gpu-v100", "s/samples.json", "m.csv",
                                                  "--write")[1]


def test_spaces_and_targets_are_lists_with_name_first(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = call("spaces", "--json", "--size", "32")
    values = json.loads(out)
    assert code == 0 and [value["name"] for value in values] == shipped("search_spaces", ".yaml")
    assert every(next(iter(value)) == "name" and Path(value["file"]).is_file() for value in values)
    ghost = next(value for value in values if value["name"] == "ghost")
    assert (ghost["slots"], ghost["last_map"], ghost["depth"]) == (16, 4, [1, 2, 2, 4, 2, 5])
    assert "10^" in call("spaces", "--size", "32")[1]
    short = ["ghost", "mbconv"]  # a slow test has the costs of all
    monkeypatch.setattr("nas.pipeline.catalogue.shipped", lambda *_: short)
    code, out, _ = call("spaces", "--target", "gpu-v100", "--size", "32", "--classes", "10", "--json")
    assert code == 0 and [value["name"] for value in json.loads(out)] == short
    assert every(0 < one["smallest_ms"] < one["largest_ms"] for value in json.loads(out) for one in value["targets"])
    code, out, _ = call("spaces", "--target", "gpu-v100", "--size", "32", "--classes", "10")
    assert code == 0 and "ms, gpu-v100" in out and "ghost" in out and "what is missing" not in out
    pretend(monkeypatch, "nas.latency.costs", targets=lambda: [KnownTarget(name="cpu", rows=3)])
    assert json.loads(call("targets", "--json")[1]) == [{"name": "cpu", "rows": 3}]
    pretend(monkeypatch, "nas.latency.costs", targets=lambda: [])
    assert call("targets") == (0, "none\n", "")
