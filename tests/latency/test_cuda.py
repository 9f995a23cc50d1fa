"""The GPU with a fake of it: events and graphs of arithmetic, ONNX Runtime on the CPU, an nvidia-smi of our own."""

import contextlib
import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import onnx
import onnxruntime
import pytest
import torch
from every import every
from torch import nn

from nas import cli
from nas.arch import Arch
from nas.errors import UserError
from nas.latency import devices
from nas.latency.devices import cuda, local_device
from nas.latency.devices.cuda import WARM_UP, OrtCuda, TensorRt, Torch
from nas.latency.devices.onnxruntime import Provider
from nas.latency.meta import Conditions, Meta
from nas.latency.profile import profile
from nas.latency.table import LatencyTable
from nas.lower.onnx import export, lower
from nas.ops.layers import ConvBN
from nas.pipeline import measuring
from nas.pipeline.inputs import Inputs
from nas.plan import Layout
from nas.run import tables

GPU_ID, REPLAY_MS = "6a3f", 0.25
SAYS = {"name": "Fake 100", "driver_version": "600.10", "clocks.sm": "1410", "clocks.mem": "[N/A]",
        "clocks.max.sm": "1980", "clocks.max.mem": "2619",
        "clocks_throttle_reasons.applications_clocks_setting": "Active"}


class FakeCuda:
    """Counts what happens; a replay takes 0.25 ms of its clock."""

    def __init__(self) -> None:
        self.now_ms, self.replays, self.synchronised, self.captures = 0.0, 0, 0, 0

    def event(self, enable_timing: bool) -> Any:
        assert enable_timing
        event = types.SimpleNamespace(at=None)
        event.record = lambda: setattr(event, "at", self.now_ms)
        event.synchronize = lambda: setattr(self, "synchronised", self.synchronised + 1)
        event.elapsed_time = lambda end: end.at - event.at
        return event

    def graph(self) -> Any:
        return types.SimpleNamespace(replay=self.replay)

    def replay(self) -> None:
        self.replays += 1
        self.now_ms += REPLAY_MS

    @contextlib.contextmanager
    def capture(self, graph: Any) -> Iterator[None]:
        self.captures += 1
        yield


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeCuda:
    """A machine whose GPU is its CPU."""
    gpu = FakeCuda()
    stream = types.SimpleNamespace(wait_stream=lambda other: None)
    for name, value in {"Stream": lambda: stream, "current_stream": lambda: stream,
                        "stream": lambda _: contextlib.nullcontext(), "Event": gpu.event, "CUDAGraph": gpu.graph,
                        "graph": gpu.capture, "is_available": lambda: True, "get_device_name": lambda _: "Fake",
                        "get_device_properties": lambda _: types.SimpleNamespace(uuid=GPU_ID)}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91000)
    monkeypatch.setattr(cuda, "DEVICE", "cpu")
    monkeypatch.setattr(OrtCuda, "provider", "CPUExecutionProvider")
    monkeypatch.setattr(OrtCuda, "options", lambda self: {})
    nvidia_smi(monkeypatch, tmp_path, SAYS)
    return gpu


def nvidia_smi(monkeypatch: pytest.MonkeyPatch, folder: Path, says: dict[str, str]) -> None:
    """A program of that name on the path, which knows these fields only."""
    program = folder / "nvidia-smi"
    cases = "\n".join(f'{name}) out="$out, {value}";;' for name, value in says.items())
    program.write_text(f'#!/bin/sh\n[ "$1" = --id=GPU-{GPU_ID} ] || exit 6\nfields=${{2#--query-gpu=}}\n'
                       f'for name in $(echo "$fields" | tr , " "); do case $name in\n{cases}\n'
                       '*) echo "Field \\"$name\\" is not a valid field to query."; exit 2;;\nesac; done\n'
                       'echo "${out#, }"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.calls = nn.Conv2d(3, 4, 3), []  # shared with copies: see __deepcopy__

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.append((self.training, torch.is_grad_enabled(), x.dtype, x.shape,
                           x.is_contiguous(memory_format=torch.channels_last)))
        return self.conv(x)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Counted":
        other = Counted()
        other.calls = self.calls
        return other


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_graph_is_warmed_up_and_timed_by_events(fake: FakeCuda, precision: str) -> None:
    module = Counted()
    run = Torch(2, precision).prepare(module, in_ch=3, size=8)
    half, kind = precision == "fp16", torch.float16 if precision == "fp16" else torch.float32
    assert module.calls == [(False, False, kind, (2, 3, 8, 8), half)] * (WARM_UP + 1)
    assert (fake.captures, fake.replays, fake.synchronised) == (1, WARM_UP, WARM_UP)
    assert run() == REPLAY_MS and (fake.replays, fake.synchronised) == (WARM_UP + 1, WARM_UP + 1)
    assert module.training and module.conv.weight.dtype == torch.float32  # the caller's is as it was
    assert isinstance(run, cuda.Replay) and len(run.held) == 2


class FakeSession:
    """A run takes 3 ms of the clock, and 1 ms more until the GPU is done."""

    def __init__(self) -> None:
        self.now_ns, self.done = 0, []

    def get_inputs(self) -> list[Any]:
        return [types.SimpleNamespace(name="input", type="tensor(float)", shape=[2, 3, 8, 8])]

    def get_outputs(self) -> list[Any]:
        return [types.SimpleNamespace(name="output", type="tensor(float)", shape=[2, 10])]

    def io_binding(self) -> Any:
        return types.SimpleNamespace(
            bind_ortvalue_input=lambda name, value: self.done.append((name, value.shape())),
            bind_ortvalue_output=lambda name, value: self.done.append((name, value.shape())),
            synchronize_inputs=lambda: self.done.append("inputs"),
            synchronize_outputs=lambda: self.spend(1, "outputs"))

    def run_with_iobinding(self, binding: Any) -> None:
        self.spend(3, "run")

    def spend(self, ms: int, what: str) -> None:
        self.now_ns += ms * 10**6
        self.done.append(what)


def test_a_run_of_onnx_runtime_is_timed_until_the_gpu_is_done(fake: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    session = FakeSession()
    monkeypatch.setattr(cuda.time, "perf_counter_ns", lambda: session.now_ns)
    run = cuda.warm(cuda.bound(session))
    assert session.done == [("input", [2, 3, 8, 8]), ("output", [2, 10]), "inputs", *["run", "outputs"] * WARM_UP]
    assert run() == 4.0 and session.done[-2:] == ["run", "outputs"]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_onnx_runtime_runs_modules_and_files(fake: FakeCuda, tmp_path: Path, precision: str) -> None:
    device, block = OrtCuda(2, precision), ConvBN(3, 8, 3)
    assert device.prepare(block, in_ch=3, size=8)() > 0
    export(block, tmp_path / "m.onnx", in_ch=3, size=8, metadata={})  # its batch is open
    assert device.load(tmp_path / "m.onnx")() > 0
    typed = device.typed(lower(block, in_ch=3, size=8, batch=2))
    weights = {value.data_type for value in typed.graph.initializer}
    assert weights == {onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.FLOAT}
    with pytest.raises(UserError, match=r"none\.onnx: no such file"):
        device.load(tmp_path / "none.onnx")


def test_the_options_ask_for_a_graph(tmp_path: Path) -> None:
    assert OrtCuda().options()["enable_cuda_graph"] is True
    device = TensorRt(1, "fp16")
    options = device.options()
    assert options["trt_cuda_graph_enable"] is options["trt_fp16_enable"] is True
    assert Path(options["trt_timing_cache_path"]).is_dir() and not TensorRt().options()["trt_fp16_enable"]


KNOWN = {"processor": "Fake 100", "driver": "600.10", "sm_mhz": 1410, "mem_mhz": None, "sm_max_mhz": 1980,
         "mem_max_mhz": 2619, "clocks_locked": True, "precision": "fp16", "threads": 1, "batch": 4}


@pytest.mark.parametrize(("device", "runtime"), [(Torch(4, "fp16"), "pytorch"),
                                                 (OrtCuda(4, "fp16"), "onnxruntime-cuda")], ids=["torch", "ort"])
def test_the_conditions_are_complete(fake: FakeCuda, device: cuda.Gpu, runtime: str) -> None:
    here = device.conditions()
    assert here.model_copy(update=KNOWN) == here and (here.device, here.runtime) == (device.name, runtime)
    assert here.os and here.runtime_version and here.clock
    json.dumps(here.to_json())


def test_what_nvidia_smi_does_not_say_is_none(fake: FakeCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nvidia_smi(monkeypatch, tmp_path, {**SAYS, "clocks_event_reasons.applications_clocks_setting": "Not Active"})
    assert Torch().conditions().clocks_locked is False
    (tmp_path / "nvidia-smi").unlink()
    here = Torch().conditions()
    unknown = (here.driver, here.sm_mhz, here.mem_mhz, here.sm_max_mhz, here.mem_max_mhz, here.clocks_locked)
    assert here.processor == "Fake" and unknown == (None,) * 6


def test_tensorrt_is_named_with_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "version", lambda name: "10.9")
    assert TensorRt().software().runtime_version == f"{onnxruntime.__version__}, TensorRT 10.9"


@pytest.mark.parametrize(("broken", "expected"), [([], "gpu-tensorrt"), (["gpu-tensorrt"], "gpu-ort"),
                                                  (["gpu-tensorrt", "gpu-ort"], "gpu-torch")], ids=str)
def test_gpu_is_the_best_runtime_that_works(monkeypatch: pytest.MonkeyPatch, broken: list[str], expected: str) -> None:
    for name, kind in cuda.RUNTIMES.items():
        monkeypatch.setattr(kind, "lacks", lambda name=name: "broken" if name in broken else None)
    device = devices.open_device("gpu", batch=8, precision="fp16")
    assert isinstance(device, cuda.Gpu) and (device.name, device.batch, device.precision) == (expected, 8, "fp16")
    assert devices.open_device("gpu-torch").name == "gpu-torch"
    with pytest.raises(UserError, match="leave out threads"):
        devices.open_device("gpu", threads=2)
    with pytest.raises(UserError, match="precision=int3: a GPU has fp32 and fp16"):
        devices.open_device("gpu", precision="int3")
    with pytest.raises(UserError, match="precision=fp16: fp32 or int8 on the CPU"):
        devices.open_device("cpu", precision="fp16")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])


@pytest.mark.parametrize("words", [["profile", "--device", "gpu"], ["measure", "m.onnx", "--device", "gpu"],
                                   ["profile", "--device", "gpu-torch", "--space", "ghost"],
                                   ["search", "--target", "gpu-torch"]], ids=str)
def test_without_a_gpu_it_ends_in_one_line(no_gpu: None, capfd: pytest.CaptureFixture[str], words: list[str]) -> None:
    Path("m.onnx").touch()
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    out, err = capfd.readouterr()
    assert end.value.code == 2 and out == "" and err.count("\n") == 1
    assert "PyTorch" in err and "NVIDIA GPU" in err and [path.name for path in Path().iterdir()] == ["m.onnx"]


def test_a_provider_that_is_listed_but_does_not_load_is_none(no_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])

    def session(model: bytes, provider: Provider) -> Any:
        onnx.checker.check_model(onnx.load_from_string(model))
        raise UserError("libcudnn")

    monkeypatch.setattr(cuda, "session", session)
    with pytest.raises(UserError, match=r"gpu: .* has no TensorrtEx.*; .* cannot load its CUDAEx.*; PyTorch"):
        devices.open_device("gpu")


def test_a_table_of_this_gpu_is_local(fake: FakeCuda) -> None:
    here = Torch(4, "fp16").conditions()
    device = local_device(here)
    assert isinstance(device, Torch) and (device.batch, device.precision) == (4, "fp16")
    assert local_device(here.model_copy(update={"processor": "Fake 80"})) is None
    assert local_device(here.model_copy(update={"device": "gpu-v100"})) is None


def test_a_table_is_not_local_without_the_gpu(no_gpu: None) -> None:
    meta = Conditions(device="gpu-torch", processor="Fake 100", precision="fp32", threads=1, batch=1)
    assert local_device(meta) is None
    with pytest.raises(UserError, match="device=gpu-ort: "):
        tables.find_costs("gpu-ort")


def test_a_pick_is_measured_as_file_or_as_module(fake: FakeCuda, tiny: Layout, tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    seen, nothing = list[tuple[str, int]](), cast(Any, None)

    def timed(prepare: Any, count: int, layout: Layout, table: LatencyTable, device: Any) -> Any:
        seen.append((device.name, count))
        return {name: run() for name, run in prepare().items()}, None

    monkeypatch.setattr(measuring, "time_networks", timed)
    module, arch = ConvBN(3, 8, 3), Arch("tiny", 16, ())
    export(module, tmp_path / "m.onnx", in_ch=3, size=16, metadata={})
    for device in (Torch(), OrtCuda()):
        table = LatencyTable(device.name, Meta.model_validate(device.conditions().to_json()))
        here = Inputs(nothing, nothing, nothing, tiny, {"t": table}, {}, torch.device("cpu"))
        network = measuring.Network(module, {"float": tmp_path / "m.onnx"})
        ms, _ = measuring.measure(here, "t", {arch: network})[arch]
        assert ms is not None and (ms == REPLAY_MS) == (device.name == "gpu-torch")
    assert seen == [("gpu-torch", 1), ("gpu-ort", 1)]
    with pytest.raises(UserError, match=r"m\.onnx: PyTorch runs no ONNX files"):
        Torch().load(tmp_path / "m.onnx")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", cuda.PRECISIONS)
@pytest.mark.parametrize("name", cuda.RUNTIMES)
def test_this_gpu(tiny: Layout, tmp_path: Path, name: str, precision: str) -> None:
    if reason := cuda.RUNTIMES[name].lacks():
        pytest.skip(reason)
    device = devices.open_device(name, precision=precision)
    result = profile(tiny, tmp_path / f"{name}.json", device=device, validate=4)
    table = LatencyTable.load(tmp_path / f"{name}.json")
    assert result.rows == len(table.rows) and every(0 < row.ms < 100 for row in table.rows.values())
    assert result.validation.mape < 0.5 and table.meta.processor and table.meta.driver
    found = local_device(table.meta)
    assert found is not None and found.name == name
    if found.reads_onnx:
        export(ConvBN(3, 8, 3), tmp_path / "m.onnx", in_ch=3, size=16, metadata={})
        assert 0 < devices.measure(tmp_path / "m.onnx", name).ms < 100
