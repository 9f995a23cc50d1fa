"""The CPU in its two precisions."""

from types import SimpleNamespace

import pytest
from onnx import ModelProto, numpy_helper
from torch import nn

from nas.latency.devices import onnxruntime as device
from nas.latency.devices.onnxruntime import Cpu, weight_bits


@pytest.mark.parametrize(("machine", "flags", "bits"), [
    ("x86_64", "avx2 avx512f", 7), ("x86_64", "avx2 avx_vnni", 8), ("AMD64", "avx512f avx512_vnni", 8),
    ("x86_64", "amx_int8", 8), ("AMD64", "", 7), ("aarch64", "", 8)])
def test_weights_are_narrower_where_sums_would_saturate(monkeypatch: pytest.MonkeyPatch, machine: str, flags: str,
                                                        bits: int) -> None:
    monkeypatch.setattr(device.platform, "machine", lambda: machine)
    monkeypatch.setattr(device, "_cpuinfo", lambda: {"flags": flags})
    assert weight_bits() == bits
    assert Cpu(precision="int8").conditions().weight_bits == bits and Cpu().conditions().weight_bits is None


@pytest.mark.parametrize("bits", [7, 8])
def test_an_int8_module_is_timed_as_such(monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    made: list[bytes] = []
    monkeypatch.setattr(device, "weight_bits", lambda: bits)
    monkeypatch.setattr(device, "_run", lambda model, threads, batch: made.append(model) or (lambda: 1.0))
    assert Cpu(precision="int8").prepare(nn.Conv2d(3, 4, 3), in_ch=3, size=8)() == 1.0
    assert Cpu().prepare(nn.Conv2d(3, 4, 3), in_ch=3, size=8)() == 1.0
    graph, plain = (ModelProto.FromString(model).graph for model in made)
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("Conv") == 1 and "QuantizeLinear" in kinds
    assert {node.op_type for node in plain.node} == {"Conv", "Identity"}
    weights = [numpy_helper.to_array(w) for w in graph.initializer if w.name.endswith("weight/stored")]
    assert abs(weights[0]).max() == 2 ** (bits - 1) - 1


def test_conditions_say_the_precision() -> None:
    assert Cpu(precision="int8").conditions().precision == "int8"
    assert Cpu().conditions().precision == "fp32"


def test_a_run_is_milliseconds_of_the_given_clock_around_one_call() -> None:
    calls: list[str] = []
    now = iter([1_000_000, 3_500_000, 10_000_000, 10_000_001])

    def clock() -> int:
        calls.append("clock")
        return next(now)

    session = SimpleNamespace(get_inputs=lambda: [SimpleNamespace(name="x", type="tensor(float)", shape=[1, 3, 4, 4])],
                              run=lambda outputs, feeds: calls.append(str(feeds["x"].shape)))
    run = device.timed(session, 1, clock)
    assert (run(), run()) == (2.5, 1e-6) and calls == 2 * ["clock", "(1, 3, 4, 4)", "clock"]
