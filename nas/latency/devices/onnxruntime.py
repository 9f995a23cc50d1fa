"""Times networks on the CPU as they are deployed: ONNX Runtime, full optimisation, a stated number of threads."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from torch import nn

from nas.errors import UserError, setting
from nas.latency.devices.kind import Kind
from nas.latency.meta import Conditions
from nas.latency.onnx_file import runnable
from nas.latency.timing import Run
from nas.lower.onnx import lower
from nas.lower.qdq import quantise
from nas.plan import check_image

PRECISIONS = ("fp32", "int8")
DTYPES: dict[str, Any] = {"float": np.float32, "float16": np.float16, "double": np.float64, "uint8": np.uint8,
                          "int8": np.int8, "int32": np.int32, "int64": np.int64, "bool": np.bool_}  # by name
Array = np.ndarray[Any, Any]
FAST_SUMS = {"avx512_vnni", "avx_vnni", "amx_int8"}  # extensions of processors that sum products of 8 bits in 32


class Cpu:
    """Times modules and ONNX files on the CPU, in fp32 or int8; implements ``nas.latency.timing.Device``."""

    name = "cpu"
    align = 32  # two blocks of 16 channels (NCHWc on AVX-512): half of a Ghost module fills a block
    reads_onnx = True
    fresh = True

    def __init__(self, threads: int = 1, batch: int = 1, precision: str = "fp32") -> None:
        if not 1 <= threads <= (os.cpu_count() or 1):
            raise UserError(f"{setting('threads', threads)}: this machine has {os.cpu_count()} cores")
        if batch < 1:
            raise UserError(f"{setting('batch', batch)}: must be at least 1")
        if precision not in PRECISIONS:
            raise UserError(f"{setting('precision', precision)}: {' or '.join(PRECISIONS)} on the CPU")
        self.threads, self.batch, self.precision = threads, batch, precision

    def prepare(self, module: nn.Module, *, in_ch: int, size: int) -> Run:
        model = lower(module, in_ch=in_ch, size=size)
        if self.precision == "int8":
            model = quantise(model, weight_bits=weight_bits())
        return _run(model.SerializeToString(), self.threads, self.batch)

    def load(self, path: Path, size: int | None = None) -> Run:
        """Loads a finished ONNX file. Raises UserError for one that ONNX Runtime does not load, or does not run."""
        model = runnable(path)
        try:
            run = timed(session(model, self.threads), self.batch, clock(self.threads)[1], size)
            run()
        except UserError as error:
            raise UserError(f"{path}: {str(error).removeprefix('model: ').removeprefix(f'{path}: ')}") from None
        except Exception as error:  # its own classes have no public base
            raise UserError(f"{path}: ONNX Runtime: {' '.join(str(error).split())[:200]}") from None
        return run

    def conditions(self) -> Conditions:
        return Conditions(
            device=self.name, processor=processor(), cores=os.cpu_count(), governor=_governor(),
            os=f"{platform.system()} {platform.machine()}", runtime="onnxruntime",
            runtime_version=onnxruntime.__version__, precision=self.precision,
            weight_bits=weight_bits() if self.precision == "int8" else None, threads=self.threads, batch=self.batch,
            clock=clock(self.threads)[0])


KIND = Kind(lambda name, threads, batch, precision: Cpu(threads, batch, precision or "fp32"), ("cpu",), PRECISIONS)


def _run(model: bytes | Path, threads: int, batch: int) -> Run:
    return timed(session(model, threads), batch, clock(threads)[1])


@dataclass(frozen=True)
class Provider:
    """Names one of ONNX Runtime's execution providers, with options of its own."""

    name: str
    options: Mapping[str, str | bool] = field(default_factory=dict)


def session(model: bytes | Path, threads: int = 1,
            provider: Provider = Provider("CPUExecutionProvider")) -> onnxruntime.InferenceSession:
    """Makes a session as a user would deploy it (sequential; its defaults for spinning and arenas).

    Raises UserError for a file that ONNX Runtime does not load, and where the provider does not work.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4  # what goes wrong is raised, and said once
    source = model if isinstance(model, bytes) else str(model)
    try:
        made = onnxruntime.InferenceSession(source, options, providers=[(provider.name, dict(provider.options))],
                                                enable_fallback=0)
    except Exception as error:  # ONNX Runtime's own classes have no public base
        reason = str(error).splitlines()[0][:200]
        raise UserError(f"{'model' if isinstance(model, bytes) else model}: ONNX Runtime: {reason}") from None
    if provider.name not in made.get_providers():  # it only logs a library that is missing
        raise UserError(f"onnxruntime {onnxruntime.__version__} cannot load its {provider.name}")
    return made


def clock(threads: int) -> tuple[str, Callable[[], int]]:
    """Chooses the clock: returns its name, for a table's meta, and the function that reads it in nanoseconds.

    One thread does all the work itself, so its own CPU time is the latency of an idle machine, whoever else runs here:
    with a load of 8 on 2 cores it scattered three times less than elapsed time. Several threads need the latter.
    """
    return ("thread CPU time", time.thread_time_ns) if threads == 1 else ("elapsed time", time.perf_counter_ns)


def timed(session: onnxruntime.InferenceSession, batch: int, now_ns: Callable[[], int],
          size: int | None = None) -> Run:
    """Makes a function that runs a session once on fixed random input and returns the milliseconds.

    Copies of in- and output are part of them, as where the network is deployed.
    """
    entries = session.get_inputs()
    if len(entries) != 1:
        raise UserError(f"model: has {len(entries)} inputs, expected one")
    feeds = {entries[0].name: random_feed(entries[0], batch, size)}

    def run() -> float:
        start = now_ns()
        session.run(None, feeds)
        return (now_ns() - start) / 1e6

    return run


def random_feed(entry: Any, batch: int | None = None, size: int | None = None) -> Array:
    """Draws random values for an in- or output of a session, of its type. Raises UserError as ``closed`` does."""
    kind = str(entry.type).removeprefix("tensor(").removesuffix(")")
    if kind not in DTYPES:
        raise UserError(f"model: {entry.name} is {entry.type}; expected a tensor of {', '.join(DTYPES)}")
    shape, rng = closed(entry.name, entry.shape, batch, size), np.random.default_rng(0)
    if np.issubdtype(DTYPES[kind], np.floating):
        return np.asarray(rng.standard_normal(shape, dtype=np.float32).astype(DTYPES[kind]))
    return np.asarray(rng.integers(0, 2 if kind == "bool" else 128, shape).astype(DTYPES[kind]))


def closed(name: str, shape: Sequence[Any], batch: int | None, size: int | None) -> list[int]:
    """Fills the open sides of a shape: ``batch`` and, in images, ``size``. Raises UserError for what else is open."""
    sides = [side if isinstance(side, int) and side > 0 else None for side in shape]
    if sides and sides[0] is None:
        sides[0] = batch
    if len(sides) == 4:
        check_image(f"model: {name}", sides[2:], size)
        if size is not None and any(side not in (size, None) for side in sides[2:]):
            raise UserError(f"{setting('size', size)}: {name} is fixed at {sides[2]}x{sides[3]}")
        sides[2:] = [side or size for side in sides[2:]]
    elif size is not None:
        raise UserError(f"{setting('size', size)}: {name} is no image [N, C, H, W] but {list(shape)}")
    if None in sides:
        advice = (f"; give {setting('size')}" if len(sides) == 4 and sides[1] else
                  ": only the batch, and of images height and width")
        raise UserError(f"model: {name} leaves open what is {list(shape)}{advice}")
    return [side for side in sides if side is not None]


def processor() -> str:
    """Names the processor, with family and model number: virtual machines call many of them "Xeon Processor"."""
    fields = _cpuinfo()
    if "model name" not in fields:
        return platform.processor() or platform.machine()
    return f"{fields['model name']} (family {fields.get('cpu family')}, model {fields.get('model')})"


def weight_bits() -> int:
    """Returns the bits of int8 weights: 7 where an x86 without VNNI adds two products in 16 bits, which can saturate.

    As ONNX Runtime advises (its ``reduce_range``); 7 also where an x86 does not say what it has.
    """
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return 7 if x86 and not FAST_SUMS & set(_cpuinfo().get("flags", "").split()) else 8


def _cpuinfo() -> dict[str, str]:
    """Returns what Linux says of the first core; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _governor() -> str | None:
    path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
