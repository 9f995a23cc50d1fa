"""Times networks on an NVIDIA GPU, as CUDA graphs, in ONNX Runtime (TensorRT or CUDA provider) or else in PyTorch.

The runtime is part of the name of device and table, because they rank networks differently. In- and output stay in the
memory of the GPU. ONNX Runtime gives no event on the stream of a provider, so its runs are timed by the host's clock,
up to when the GPU is done; PyTorch's by CUDA events.
"""

from __future__ import annotations

import copy
import os
import platform
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import nn

from nas.errors import UserError, setting
from nas.latency.devices.kind import Kind
from nas.latency.devices.onnxruntime import Provider, closed, random_feed, session
from nas.latency.meta import Conditions
from nas.latency.onnx_file import entries, load_model
from nas.latency.timing import Run
from nas.lower.onnx import lower
from nas.ops import deployed

DEVICE = "cuda"  # the first GPU
WARM_UP = 10  # runs before the first that counts: graphs are captured, algorithms chosen, clocks up
PRECISIONS = ("fp32", "fp16")
QUERY = ("name", "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem")
LIMITED = ("clocks_event_reasons.applications_clocks_setting",
           "clocks_throttle_reasons.applications_clocks_setting")  # the newer and the older name


@dataclass(frozen=True)
class Software:
    """Names a runtime, its clock, and the versions of the runtime and its libraries; None is not known."""

    runtime: str
    runtime_version: str
    clock: str
    cuda: str | None
    cudnn: int | None = None
    tensorrt: str | None = None


class Gpu(ABC):
    """Is the base class of the runtimes; ``precision`` is fp32 (TF32 in convolutions, as by default) or fp16.

    Raises UserError for a batch or precision that there is not.
    """

    name: str
    align = 32  # channels of a tile, as on the CPU: more curves cost rows, too few would cost accuracy
    reads_onnx = True
    fresh = False  # CUDA does not survive a fork

    def __init__(self, batch: int = 1, precision: str = "fp32") -> None:
        if batch < 1:
            raise UserError(f"{setting('batch', batch)}: must be at least 1")
        if precision not in PRECISIONS:
            raise UserError(f"{setting('precision', precision)}: a GPU has {' and '.join(PRECISIONS)}")
        self.batch, self.precision = batch, precision

    @classmethod
    @abstractmethod
    def lacks(cls) -> str | None:
        """Says why the runtime does not work here; None where it does."""

    @abstractmethod
    def prepare(self, module: nn.Module, *, in_ch: int, size: int) -> Run:
        """Compiles a module for input [batch, in_ch, size, size] and warms it up."""

    @abstractmethod
    def load(self, path: Path, size: int | None = None) -> Run:
        """Loads a finished ONNX file. Raises UserError for one that does not run on the GPU as a whole."""

    @abstractmethod
    def software(self) -> Software:
        """Returns the versions of the runtime and its libraries, and what its clock is."""

    def conditions(self) -> Conditions:
        """Returns what the figures depend on, with the clocks of the GPU at work; None is what is not known."""
        load = self.prepare(nn.Sequential(nn.Conv2d(64, 64, 3, padding=1)), in_ch=64, size=56)
        here = torch.cuda.is_available()  # else a PyTorch without CUDA beside an ONNX Runtime with it
        gpu = f"GPU-{torch.cuda.get_device_properties(0).uuid}" if here else (
            os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0] or "0")
        processor, *values = query(gpu, QUERY, load)
        limited = next((value for field in LIMITED if (value := query(gpu, (field,), load)[0])), None)
        driver, *clocks = values
        sm_mhz, mem_mhz, sm_max_mhz, mem_max_mhz = map(_whole, clocks)
        return Conditions(
            device=self.name, processor=processor or (torch.cuda.get_device_name(0) if here else None), driver=driver,
            sm_mhz=sm_mhz, mem_mhz=mem_mhz, sm_max_mhz=sm_max_mhz, mem_max_mhz=mem_max_mhz,
            clocks_locked=None if limited is None else limited == "Active",
            os=f"{platform.system()} {platform.machine()}", precision=self.precision, threads=1, batch=self.batch,
            **asdict(self.software()))


class OrtGpu(Gpu):
    """Times with ONNX Runtime, which captures a CUDA graph only where every node runs on the GPU; else UserError."""

    provider: str
    runtime: str

    @classmethod
    def lacks(cls) -> str | None:
        known = f"onnxruntime {onnxruntime.__version__}"
        if cls.provider not in onnxruntime.get_available_providers():
            return f"{known} has no {cls.provider}"
        onnxruntime.set_default_logger_severity(4)  # a library that is not there is said below, in one line
        try:
            session(lower(nn.Sequential(nn.ReLU()), in_ch=1, size=1, batch=1).SerializeToString(),
                    provider=Provider(cls.provider))
        except UserError:
            return f"{known} cannot load its {cls.provider} (no GPU, or a library of CUDA, cuDNN or TensorRT missing)"
        finally:
            onnxruntime.set_default_logger_severity(2)
        return None

    def prepare(self, module: nn.Module, *, in_ch: int, size: int) -> Run:
        return self._run(lower(module, in_ch=in_ch, size=size, batch=self.batch))

    def load(self, path: Path, size: int | None = None) -> Run:
        model = load_model(path)
        try:
            for entry in entries(model.graph):
                dims = entry.type.tensor_type.shape.dim
                sides = closed(entry.name, [dim.dim_value for dim in dims], self.batch, size)
                for dim, side in zip(dims, sides, strict=True):
                    dim.dim_value = side
            return self._run(model)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    def _run(self, model: onnx.ModelProto) -> Run:
        made = session(self.typed(model).SerializeToString(), provider=Provider(self.provider, self.options()))
        run = bound(made)
        try:
            return warm(run)
        except Exception as error:  # ONNX Runtime's own classes have no public base
            raise UserError(f"model: {self.runtime}: {str(error).splitlines()[0][:200]}") from None

    def typed(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Converts the model to the precision of the device, where the provider does not do that."""
        return model

    @abstractmethod
    def options(self) -> dict[str, str | bool]:
        """Returns the options of the provider."""

    def software(self) -> Software:
        return Software(self.runtime, onnxruntime.__version__, cuda=getattr(onnxruntime, "cuda_version", None) or None,
                        clock="elapsed time of a synchronised CUDA graph replay, in- and output in device memory")


class TensorRt(OrtGpu):
    """Times with ONNX Runtime's TensorRT provider, which tries kernels: a graph takes seconds to build."""

    name, provider, runtime = "gpu-tensorrt", "TensorrtExecutionProvider", "onnxruntime-tensorrt"

    def __init__(self, batch: int = 1, precision: str = "fp32") -> None:
        super().__init__(batch, precision)
        self._timings = tempfile.TemporaryDirectory(prefix="nas-tensorrt-")  # a layer is timed once

    def options(self) -> dict[str, str | bool]:
        return {"trt_fp16_enable": self.precision == "fp16", "trt_cuda_graph_enable": True,
                "trt_timing_cache_enable": True, "trt_timing_cache_path": self._timings.name}

    def software(self) -> Software:
        tensorrt = _installed("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
        both = f"{onnxruntime.__version__}, TensorRT {tensorrt}" if tensorrt else onnxruntime.__version__
        return replace(super().software(), runtime_version=both, tensorrt=tensorrt)


class OrtCuda(OrtGpu):
    """Times with ONNX Runtime's CUDA provider, which finds the fastest of cuDNN's kernels by trying them."""

    name, provider, runtime = "gpu-ort", "CUDAExecutionProvider", "onnxruntime-cuda"

    def typed(self, model: onnx.ModelProto) -> onnx.ModelProto:
        if self.precision == "fp32":
            return model
        from onnxruntime.transformers.float16 import convert_float_to_float16

        return convert_float_to_float16(model, keep_io_types=True)

    def options(self) -> dict[str, str | bool]:
        return {"enable_cuda_graph": True, "arena_extend_strategy": "kSameAsRequested"}  # many sessions at once


class Torch(Gpu):
    """Times modules in PyTorch in eval mode, where batch norms are separate kernels; it runs no ONNX files."""

    name = "gpu-torch"
    reads_onnx = False

    @classmethod
    def lacks(cls) -> str | None:
        if torch.cuda.is_available():
            return None
        what = "finds no GPU or driver" if torch.version.cuda else "is built without CUDA"
        return f"PyTorch {torch.__version__} {what}"

    def prepare(self, module: nn.Module, *, in_ch: int, size: int) -> Run:
        half = self.precision == "fp16"
        kind: dict[str, Any] = {  # tensor cores want fp16 images channels last
            "device": DEVICE, "dtype": torch.float16 if half else torch.float32,
            "memory_format": torch.channels_last if half else torch.contiguous_format}
        network = copy.deepcopy(deployed(module)).eval().to(**kind)
        images = torch.randn(self.batch, in_ch, size, size, generator=torch.Generator().manual_seed(0)).to(**kind)
        return warm(captured(network, images))

    def load(self, path: Path, size: int | None = None) -> Run:
        raise UserError(f"{path}: PyTorch runs no ONNX files: for this GPU install onnxruntime-gpu")

    def software(self) -> Software:
        return Software("pytorch", str(torch.__version__), "CUDA events around a CUDA graph replay", torch.version.cuda,
                        torch.backends.cudnn.version())  # type: ignore[no-untyped-call]


RUNTIMES: dict[str, type[Gpu]] = {kind.name: kind for kind in (TensorRt, OrtCuda, Torch)}  # best first


def _open(name: str, threads: int, batch: int, precision: str | None) -> Gpu:
    """Opens the GPU with one of ``RUNTIMES``; ``gpu`` is the first of them that works here.

    Raises UserError, which says what is missing, where it does not work.
    """
    if threads != 1:
        raise UserError(f"{setting('device', name)}: leave out {setting('threads')}")
    reasons = []
    for kind in RUNTIMES.values() if name == "gpu" else [RUNTIMES[name]]:
        if (reason := kind.lacks()) is None:
            return kind(batch, precision or "fp32")
        reasons.append(reason)
    raise UserError(f"{setting('device', name)}: {'; '.join(reasons)}: it takes an NVIDIA GPU with its driver, and "
                    "onnxruntime-gpu or a PyTorch for CUDA")


KIND = Kind(_open, tuple(RUNTIMES), PRECISIONS, aliases=("gpu",))


def bound(made: onnxruntime.InferenceSession) -> Run:
    """Makes a function that runs a session once on random input, waits for the GPU, and returns the milliseconds.

    In- and output lie in device memory at fixed addresses, as a CUDA graph needs it.
    """
    entry, binding = made.get_inputs()[0], made.io_binding()
    image = random_feed(entry)
    binding.bind_ortvalue_input(entry.name, onnxruntime.OrtValue.ortvalue_from_numpy(image, DEVICE, 0))
    for exit_ in made.get_outputs():
        shape, dtype = closed(exit_.name, exit_.shape, None, None), random_feed(exit_).dtype
        place = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, dtype, DEVICE, 0)
        binding.bind_ortvalue_output(exit_.name, place)
    binding.synchronize_inputs()

    def run() -> float:
        start = time.perf_counter_ns()
        made.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return (time.perf_counter_ns() - start) / 1e6

    return run


@dataclass
class Replay:
    """Replays a CUDA graph and returns its milliseconds; keeps network and input alive, of which it knows addresses."""

    graph: torch.cuda.CUDAGraph
    start: torch.cuda.Event
    end: torch.cuda.Event
    held: tuple[nn.Module, torch.Tensor]

    def __call__(self) -> float:
        self.start.record()
        self.graph.replay()
        self.end.record()
        self.end.synchronize()
        return self.start.elapsed_time(self.end)


def captured(network: nn.Module, images: torch.Tensor) -> Replay:
    """Captures a CUDA graph of one call, after calls on a side stream, as PyTorch asks for."""
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.no_grad():
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                network(images)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            network(images)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    return Replay(graph, start, end, (network, images))


def warm(run: Run) -> Run:
    """Calls a run a few times, so that kernels are chosen and clocks are up when it is timed, and returns it."""
    for _ in range(WARM_UP):
        run()
    return run


def query(gpu: str, fields: Sequence[str], load: Callable[[], object]) -> list[str | None]:
    """Asks nvidia-smi for fields of a GPU (index or UUID) while ``load`` runs on it; None is what it leaves out."""
    command = ["nvidia-smi", f"--id={gpu}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        asked = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        return [None] * len(fields)
    while asked.poll() is None:
        load()  # an idle GPU would show the clocks of its sleep
    values = [value.strip() for value in asked.communicate()[0].split("\n")[0].split(",")]
    if asked.returncode or len(values) != len(fields):
        return [None] * len(fields)
    return [None if "N/A" in value or "Not Supported" in value else value for value in values]


def _whole(value: str | None) -> int | None:
    """Returns the number that nvidia-smi says; None where it says none."""
    return int(value) if value and value.isdigit() else None


def _installed(*names: str) -> str | None:
    """Returns the version of the first of these packages that is installed."""
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None
