"""Random networks on disk: what is promised of them, and what an interruption leaves."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from tiny_space import TINY

from nas import sampling
from nas.errors import UserError
from nas.latency import costs
from nas.latency import sample as module
from nas.latency.meta import Meta
from nas.latency.sample import Sample, sample
from nas.latency.table import LatencyTable
from nas.plan import Layout, OpKey, Task, layout, plan
from nas.progress import NoProgress
from nas.space import Space


@pytest.fixture(scope="module")
def place() -> Layout:
    return layout(Space.parse(TINY), Task(16, 3, 10))


V100 = costs.load("gpu-v100")


def draw(place: Layout, out: Path, n: int = 5, seed: int = 3) -> list[Sample]:
    return sample(place, V100, n, seed, out, NoProgress())


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_samples_are_different_networks_with_their_predicted_ms(tmp_path: Path, place: Layout) -> None:
    samples = draw(place, tmp_path / "s")
    assert json.loads((tmp_path / "s" / "samples.json").read_text()) == [
        {"id": one.id, "arch": one.arch.to_json(), "onnx": one.onnx, "ms": one.ms} for one in samples]
    assert len({one.id for one in samples}) == 5
    for one in samples:
        assert one.id == one.arch.id and one.ms == pytest.approx(sum(V100.ms(key) for key in plan(place, one.arch)))
        entry = onnx.load(tmp_path / "s" / one.onnx).graph.input[0].type.tensor_type.shape.dim
        assert [side.dim_value for side in entry[1:]] == [3, 16, 16] and entry[0].dim_param
    assert len({len(plan(place, one.arch)) for one in samples}) > 1  # depths differ


class Int8(LatencyTable):
    def ms_many(self, keys: Iterable[OpKey]) -> list[float]:
        return [1.0 for _ in keys]


def test_samples_of_an_int8_target_are_int8_files(tmp_path: Path, place: Layout) -> None:
    table = Int8("cpu-int8", Meta(device="cpu", precision="int8", weight_bits=7))
    (one,) = sample(place, table, 1, 0, tmp_path / "s", NoProgress())
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "s" / one.onnx).graph.node)
    assert kinds["Conv"] and kinds["QuantizeLinear"] >= kinds["Conv"]


def test_an_interrupted_call_continues_to_the_same_bytes(tmp_path: Path, place: Layout,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    draw(place, tmp_path / "whole")
    save, calls = module.save, []

    def interrupted(*args: Any, **kwargs: Any) -> None:
        calls.append(args[1])
        if len(calls) == 3:
            raise KeyboardInterrupt
        save(*args, **kwargs)

    monkeypatch.setattr(module, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        draw(place, tmp_path / "s")
    assert not (tmp_path / "s" / "samples.json").exists()
    torch.manual_seed(99)  # nothing depends on the state of the process
    draw(place, tmp_path / "s")
    assert len(calls) == 3 + 3 and files(tmp_path / "s") == files(tmp_path / "whole")
    draw(place, tmp_path / "s")
    assert len(calls) == 6


def test_another_seed_is_another_draw_and_needs_another_directory(tmp_path: Path, place: Layout) -> None:
    first, second = draw(place, tmp_path / "a", 2, 0), draw(place, tmp_path / "b", 2, 1)
    assert [one.id for one in first] != [one.id for one in second]
    with pytest.raises(UserError, match=r"a: began with seed = 0, now 1; give another$"):
        draw(place, tmp_path / "a", 2, 1)


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_broken_settings_are_named(tmp_path: Path, place: Layout, content: str) -> None:
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(UserError, match=r"settings\.json: truncated or not JSON"):
        draw(place, tmp_path)


def test_a_directory_with_something_else_is_left_alone(tmp_path: Path, place: Layout) -> None:
    (tmp_path / "mine.txt").write_text("x")
    for out in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(UserError, match="there is something else"):
            draw(place, out)
    assert files(tmp_path) == {"mine.txt": b"x"}


def test_what_a_kill_left_of_a_write_is_no_obstacle(tmp_path: Path, place: Layout) -> None:
    (tmp_path / ".settings.json.abc.tmp").write_text("{")
    assert len(draw(place, tmp_path, 1)) == 1


def test_more_networks_than_there_are(tmp_path: Path) -> None:
    small = layout(Space.parse({**TINY, "stages": [{"out": 8, "depth": 1, "stride": 1}],
                                    "ops": {"mbconv": {**TINY["ops"]["mbconv"], "se": [0, 1]}}}), Task(16, 3, 10))
    assert len(draw(small, tmp_path / "all", sampling.count(small))) == sampling.count(small)
    with pytest.raises(UserError, match=rf"n=9: tiny at 16 has {sampling.count(small)} networks"):
        draw(small, tmp_path / "more", 9)


def test_the_draw_thins(place: Layout) -> None:
    """The networks are those of ``genome.sample_thinned`` in order, without repetition."""
    rng = random.Random("sample 3")
    drawn = [sampling.sample_thinned(place, rng) for _ in range(40)]
    assert module._distinct(place, 5, random.Random("sample 3")) == list(dict.fromkeys(drawn))[:5]
