"""A run's inputs are loaded without measuring anything; filling in latency tables is a step of its own."""

from pathlib import Path

import pytest
from tiny_search import Quiet, config_of

from nas.pipeline import setup
from nas.pipeline.setup import load_inputs, prepare_inputs
from nas.run import events, timeline
from nas.run.directory import Run


def test_loading_inputs_asks_for_no_latency_table(space_file: Path, tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "copied", None)  # calling it is a TypeError
    config = config_of(space_file)
    run = Run.open(tmp_path / "run", config.to_json())
    inputs = load_inputs(config, run, Quiet())
    assert (inputs.costs, inputs.prices) == ({}, {}) and inputs.layout.slots
    assert run.has("space.yaml") and run.has("data.json") and not run.file("tables").exists()
    with pytest.raises(TypeError):
        prepare_inputs(config, run, ["gpu-v100"], Quiet())


def test_filling_in_tables_is_a_phase_and_a_line_of_the_log(space_file: Path, tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "LEAST_S", 0.0)
    config = config_of(space_file)
    run = Run.open(tmp_path / "run", config.to_json())
    inputs = prepare_inputs(config, run, ["gpu-v100", "macs"], Quiet(), timed_in=run)
    assert [event.name for event in run.events(events.Phase)] == ["inputs", "latency table", "inputs"]
    copied = [(event.target, event.file) for event in run.events(events.TableCopied)]
    assert copied == [("gpu-v100", "tables/gpu-v100.json")]  # a count has no table
    assert list(inputs.costs) == list(inputs.prices) == ["gpu-v100", "macs"]
    prepare_inputs(config, run, ["gpu-v100"], Quiet())
    assert len(run.events(events.TableCopied)) == 1 and len(run.events(events.Phase)) == 3
