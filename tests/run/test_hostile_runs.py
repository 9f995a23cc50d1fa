"""Runs and networks that somebody else has sent, or that were edited: read, or refused in one line with the file."""

import io
import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import onnx
import pytest
import torch
from hostile import (
    TEXTS,
    changed,
    changed_keys,
    json_files,
    put_back,
    read_or_refused,
    reads_as,
    slowly_tried,
    torn,
    tried,
)
from hypothesis import given
from hypothesis import strategies as st
from tiny_search import Quiet, config_of, searched

from nas.arch import Arch, Op
from nas.cli import render
from nas.cli.output import one_line
from nas.errors import UserError
from nas.exits.runtime import KEY, Runtime
from nas.exits.thresholds import Policy
from nas.files import parse_json
from nas.latency import costs
from nas.latency.devices import onnxruntime
from nas.latency.predict import predict
from nas.picks import front_of_run
from nas.pipeline import search as pipeline
from nas.pipeline import setup, supernet
from nas.pipeline.evaluate import _File, evaluate
from nas.pipeline.exits import existing
from nas.pipeline.exits import picks as exits
from nas.pipeline.finetune import load_weights
from nas.pipeline.front import find_picks
from nas.pipeline.inputs import Inputs
from nas.progress import NoProgress
from nas.report.page import page
from nas.report.run_data import collect
from nas.run import events, formats
from nas.run.directory import Run
from nas.run.images import described, recorded_images
from nas.run.provenance import Environment
from nas.run.records import Card, Front, Picks
from nas.run.settings import settings_of
from nas.text import printable
from nas.training.labels import outputs
from nas.training.preprocessing import Preprocessing

V100 = costs.load("gpu-v100")


@pytest.fixture(scope="module")
def finished(space_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("runs") / "hostile"
    searched(config_of(space_file, "exits.method=boost"), path)
    return Run.existing(path)


def plain_card(run: Run) -> Card:
    return next(card for card in run.read("front.json", Front).cards if not card.exits)


def with_exits(run: Run) -> Card:
    return next(card for card in run.read("front.json", Front).cards if card.exits)


def named(run: Run, kind: str) -> str:
    """The file of a kind."""
    own, early = f"archs/{plain_card(run).id}/", f"{Path(with_exits(run).onnx).parent}/"
    return {"arch.json": f"{own}arch.json", "card.json": f"{own}card.json", "exits": f"{early}card.json",
            "thresholds.json": f"{early}thresholds.json"}.get(kind, kind)


def use_front(run: Run) -> None:
    """Does what is done with a front: the command line's table, an export's choice, the objects of Python."""
    front = run.read("front.json", Front)
    render.front(front)
    for budget in (None, 1.0, 1e-9):
        find_picks({"": front}, None, budget)
    front_of_run(run.path, front)


READERS: dict[str, Callable[[Run, str], Any]] = {  # of each kind of file, as the value that it says
    "front.json": lambda run, name: run.read(name, Front).to_json(),
    "picks.json": lambda run, name: run.read(name, Picks).to_json(),
    "data.json": lambda run, name: described(recorded_images(run)).to_json(),
    "splits.json": lambda run, name: run.read_json(name),
    "config.json": lambda run, name: settings_of(run).to_json(),
    "environment.json": lambda run, name: run.read(name, Environment).to_json(),
    "arch.json": lambda run, name: Arch.from_json(run.read_json(name)).to_json(),
    "card.json": lambda run, name: run.read(name, Card).to_json(),
    "exits": lambda run, name: run.read(name, Card).to_json(),
    "thresholds.json": lambda run, name: run.read(name, Policy).to_json(),
}


@pytest.mark.parametrize("kind", READERS)
@tried
@given(drawn=st.data())
def test_a_file_of_a_run_is_read_as_it_was_written_or_refused_by_its_key(finished: Run, kind: str,
                                                                         drawn: st.DataObject) -> None:
    """What an edit leaves valid reads as what was written, and is written as it reads; else one line has file and key.
    """
    name, restore = named(finished, kind), put_back(finished.path)
    content = finished.file(name).read_bytes()
    before = json.loads(content)
    edited: bytes = drawn.draw(json_files(before))
    try:
        finished.file(name).write_bytes(edited)
        try:
            read = READERS[kind](finished, name)
        except UserError as error:
            line = one_line(error) or ""
            assert Path(name).name in line and any(key in line for key in _mistaken(before, edited)), line
        else:
            written = parse_json(edited)
            assert reads_as(in_order(read), in_order(written)), (read, written)
            finished.write_json(name, read)
            assert READERS[kind](finished, name) == read
    finally:
        finished.file(name).write_bytes(content)
        restore()


def _mistaken(before: Any, edited: bytes) -> set[str]:
    """Returns what may be named as the mistake in a file: a key of what was changed, or that it is no JSON."""
    try:
        keys = changed_keys(before, parse_json(edited))
    except (ValueError, RecursionError):
        return {"not JSON"}
    assert keys is not None, "refused as it was written"
    return {printable(key) for key in keys} or {"file: ", "expected an object"}


ORDER: dict[str, Callable[[list[Any]], list[Any]]] = {
    "ops": lambda ops: [str(Op.parse(op)) if isinstance(op, str) else op for op in ops],
    "budget_ms": lambda budgets: sorted(set(budgets)), "size": lambda sides: sorted(sides, reverse=True)}


def in_order(value: Any) -> Any:
    """Returns a value with what readers bring into an order of their own: knobs of operators, budgets."""
    if isinstance(value, dict):
        return {key: ORDER[key](part) if key in ORDER and isinstance(part, list) else in_order(part)
                for key, part in value.items()}
    return [in_order(part) for part in value] if isinstance(value, list) else value


@pytest.mark.parametrize("kind", READERS)
@slowly_tried
@given(drawn=st.data())
def test_whatever_a_file_of_a_run_holds_there_is_a_page(finished: Run, kind: str, drawn: st.DataObject) -> None:
    name, restore = named(finished, kind), put_back(finished.path)
    content = finished.file(name).read_bytes()
    try:
        finished.file(name).write_bytes(drawn.draw(json_files(json.loads(content))))
        if kind == "front.json":
            read_or_refused(lambda: use_front(finished), name, "budget_ms")
        html = read_or_refused(lambda: page(collect(finished)), "config.json", str(finished.path))
        assert "</html>" in html if html is not None else kind == "config.json"  # without settings there is none
    finally:
        finished.file(name).write_bytes(content)
        restore()


KINDS = [kind for kind in events.Event.__subclasses__() if kind is not events.AnyEvent]


def read_line(line: bytes) -> list[events.Event]:
    """Returns what the kinds of events make of a line: one of them at most."""
    return [event for kind in KINDS if (event := events.read(kind, line)) is not None]


@slowly_tried
@given(drawn=st.data())
def test_a_log_is_read_line_by_line_as_it_was_written(finished: Run, drawn: st.DataObject) -> None:
    """A line that nobody touched is read as before; one that was is read as it stands now, or left out."""
    content = finished.file("log.jsonl").read_bytes()
    lines = [json.loads(line) for line in content.splitlines()]
    untouched = {*content.splitlines(), *(json.dumps(line).encode() for line in lines)}
    broken = changed(lines).filter(lambda value: isinstance(value, list)).map(
        lambda value: b"".join(json.dumps(line).encode() + b"\n" for line in value))
    edited: bytes = drawn.draw(broken | torn(content))
    try:
        finished.file("log.jsonl").write_bytes(edited)
        assert "</html>" in page(collect(finished))
        remembered = pipeline.selection.Judge.read_log(finished)
        read = [event for kind in KINDS for event in finished.events(kind)]
    finally:
        finished.file("log.jsonl").write_bytes(content)
    events_of_lines = [event for line in edited.splitlines() for event in read_line(line)]
    assert sorted(map(repr, read)) == sorted(map(repr, events_of_lines))
    judged = {event.id: (event.loss, event.accuracy) for event in events_of_lines if isinstance(event, events.Judged)}
    assert repr(remembered) == repr(judged)  # no NaN equals another
    for line in edited.splitlines():
        made = read_line(line)
        assert len(made) == 1 if line in untouched else len(made) <= 1
        for event in made:
            written = in_order(json.loads(events.written(event)))
            assert reads_as(written, {**in_order(json.loads(line)), "time": ANY}), (written, json.loads(line))


@slowly_tried
@given(drawn=st.data())
def test_a_whole_command(finished: Run, space_file: Path, drawn: st.DataObject) -> None:
    restore = put_back(finished.path)
    kinds = (".json", ".yaml", ".jsonl", ".safetensors", ".pt")
    files = sorted(path for path in finished.path.rglob("*") if path.suffix in kinds)
    plain, early = plain_card(finished).id, with_exits(finished).id
    file = drawn.draw(st.sampled_from(files))
    content = file.read_bytes()
    is_json = file.suffix == ".json" and len(content) < 100_000
    file.write_bytes(drawn.draw(json_files(json.loads(content)) if is_json else torn(content)))
    commands: dict[str, Callable[[], Any]] = {
        "search": lambda: searched(config_of(space_file, "exits.method=boost"), finished.path),
        "export": lambda: pipeline.export(finished, plain, None, None, Quiet()),
        "export exits": lambda: pipeline.export(finished, early, None, None, Quiet()),
        "evaluate": lambda: evaluate(finished.path, arch=plain),
        "exits": lambda: existing.load_pick(finished, plain, None, False, Quiet()),
        "network": lambda: [pick.load_model() for pick in front_of_run(finished.path, finished.read(
            "front.json", Front))
                            if not pick.exits]}
    try:
        read_or_refused(commands[drawn.draw(st.sampled_from(sorted(commands)))], file.name, str(finished.path))
    finally:
        restore()


@pytest.mark.parametrize("file", ["weights.safetensors", "exits.safetensors"])
@tried
@given(drawn=st.data())
def test_weights(finished: Run, file: str, drawn: st.DataObject) -> None:
    config, card = settings_of(finished), with_exits(finished)
    here = setup.load_finished_inputs(config, finished, config.target)
    path = finished.file(f"archs/{card.of}/{'exits/' if file.startswith('exits') else ''}{file}")
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:8 + length])

    def again(value: Any) -> bytes:
        text = json.dumps(value).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + length:]

    arch = Arch.from_json(finished.read_json(f"archs/{card.of}/arch.json"))
    try:
        path.write_bytes(drawn.draw(changed(header).map(again) | torn(content)))
        read_or_refused(lambda: exits.load_with_all_exits(here, card, "") if file.startswith("exits") else
                        load_weights(here, arch, ""), file)
    finally:
        path.write_bytes(content)


@slowly_tried
@given(drawn=st.data())
def test_a_checkpoint(finished: Run, set_up: Inputs, drawn: st.DataObject) -> None:
    content = finished.file("supernet.pt").read_bytes()
    state = torch.load(io.BytesIO(content), weights_only=True)

    def saved(value: Any) -> bytes:
        buffer = io.BytesIO()
        torch.save(value, buffer)
        return buffer.getvalue()

    try:
        finished.file("supernet.pt").write_bytes(drawn.draw(changed(state).map(saved) | torn(content)))
        read_or_refused(lambda: supernet.load_trained(set_up), "supernet.pt")
    finally:
        finished.file("supernet.pt").write_bytes(content)


@pytest.fixture(scope="module")
def set_up(finished: Run) -> Inputs:
    config = settings_of(finished)
    return setup.prepare_inputs(config, finished, config.target, NoProgress())


METADATA = st.dictionaries(st.sampled_from(["size", "mean", "std", "classes", "arch", "id", "exits"]),
                           st.sampled_from([*TEXTS, "16", "0.5 0.5 0.5"]) | st.text(max_size=9))


@st.composite
def networks(draw: st.DrawFn, content: bytes) -> bytes:
    """An ONNX file with other metadata, inputs, attributes, nodes or weights than it had."""
    model = onnx.load_from_string(content)
    graph = model.graph
    what = draw(st.sampled_from(("metadata", "shape", "node", "attribute", "weight", "output", "opset", "order")))
    one = graph.node[draw(st.integers(0, len(graph.node) - 1))]
    if what == "metadata":
        onnx.helper.set_model_props(model, draw(METADATA))
    elif what == "shape":
        dims = graph.input[0].type.tensor_type.shape.dim
        dims[draw(st.integers(0, len(dims) - 1))].dim_value = draw(st.sampled_from((-1, 0, 1, 3, 7, 10_000)))
    elif what == "node":
        one.op_type = draw(st.sampled_from(("Relu", "Conv", "", "Nothing", "If", "Reshape", "Shape", "Add")))
    elif what == "attribute":
        name, value = draw(st.sampled_from((("strides", [0, 0]), ("group", 7), ("pads", [1]), ("kernel_shape", [-1]))))
        kept = [a for a in one.attribute if a.name != name]
        del one.attribute[:]
        one.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])
    elif what == "weight":
        tensor = graph.initializer[draw(st.integers(0, len(graph.initializer) - 1))]
        tensor.dims[:] = draw(st.lists(st.integers(-1, 9), max_size=4))
    elif what == "output":
        del graph.output[:]
    elif what == "opset":
        model.opset_import[0].version = draw(st.sampled_from((0, 1, 7, 99)))
    else:
        one.input[:] = list(one.input)[::-1]
    return model.SerializeToString()


@tried
@given(drawn=st.data())
def test_a_network(finished: Run, tmp_path_factory: pytest.TempPathFactory, drawn: st.DataObject) -> None:
    content = finished.file(plain_card(finished).onnx).read_bytes()
    path = tmp_path_factory.getbasetemp() / "broken.onnx"
    path.write_bytes(drawn.draw(networks(content)))

    def evaluated() -> None:
        file = _File(path)
        file.size(None), Preprocessing.from_metadata(file.metadata, path)
        outputs(path, 10, file.names(), [str(i) for i in range(10)])

    read_or_refused(evaluated, "broken.onnx", "size")
    read_or_refused(lambda: onnxruntime.Cpu().load(path)(), "broken.onnx", "model")
    found = read_or_refused(lambda: predict(path, V100, 16, allow_unknown=True), "broken.onnx")
    assert found is None or 0 <= found.ms < math.inf


@tried
@given(drawn=st.data())
def test_the_thresholds_in_a_network_with_exits(finished: Run, tmp_path_factory: pytest.TempPathFactory,
                                                drawn: st.DataObject) -> None:
    """The runtime, which knows nothing of nas: ValueError in place of UserError."""
    model = onnx.load(finished.file(with_exits(finished).onnx))
    metadata = {p.key: p.value for p in model.metadata_props}
    broken = drawn.draw(json_files(json.loads(metadata[KEY]))).decode("latin-1")
    onnx.helper.set_model_props(model, {**metadata, KEY: broken})
    path = tmp_path_factory.getbasetemp() / "exits.onnx"
    onnx.save(model, path)
    try:
        runtime = Runtime(path)
        answer = runtime(np.zeros((2, 3, 16, 16), np.float32))
        runtime.budget(1e9)
        runtime.deadline(1e9)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert answer.logits.shape == (2, 10) and set(answer.exits) <= set(range(runtime.exits))


def test_the_fronts_of_the_experiments_are_as_runs_should_be() -> None:
    files = sorted(Path(__file__).parents[2].glob("experiments/*/*.json"))
    checked = [file for file in files if file.name in ("front.json", "picks.json")]
    assert len(checked) >= 4
    assert [formats.mistake(file.name, json.loads(file.read_bytes())) for file in checked] == [None] * len(checked)
