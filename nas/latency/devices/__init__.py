"""What can be measured on or compiled for, by name; the packages of a device are loaded where it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nas.errors import UserError
from nas.files import nearest
from nas.latency.bench import Estimator
from nas.latency.timing import Device, Timing, repeated

SAME = ("processor", "runtime", "runtime_version")  # what makes a table one of this machine


def own() -> tuple[str, ...]:
    """Names of tables that this machine could have: their files are named so at one thread and one image."""
    from nas.latency.devices.cuda import RUNTIMES

    return ("cpu", *RUNTIMES)


def opened(name: str, threads: int = 1, batch: int = 1, precision: str | None = None) -> Device | Estimator:
    """A device by name, ready; ``gpu`` is the best runtime of the GPU, and the name of the device says which.

    ``precision`` None is the device's usual one. Raises UserError for what is not known, not there or not possible.
    """
    from nas.latency.devices.cuda import RUNTIMES
    from nas.latency.devices.cuda import opened as gpu
    from nas.latency.devices.ethos_u import TARGETS, EthosU
    from nas.latency.devices.onnxruntime import Cpu

    if name == "gpu" or name in RUNTIMES:
        return gpu(name, threads, batch, precision or "fp32")
    if name != "cpu" and name not in TARGETS:
        raise UserError(f"--device {name}: {nearest(name, ('cpu', 'gpu', *RUNTIMES, *TARGETS))}")
    device = Cpu(threads, batch) if name == "cpu" else EthosU(name, threads, batch)
    if precision and precision != (usual := device.conditions()["precision"]):
        raise UserError(f"--precision {precision}: {name} has {usual} only")
    return device


def local(meta: dict[str, Any]) -> Device | None:
    """This machine, as a table with that ``meta`` was measured on it: same processor, runtime and version.

    None where the table is of another device or machine.
    """
    name, threads, batch = meta.get("device"), meta.get("threads"), meta.get("batch")
    if name not in own() or not isinstance(threads, int) or not isinstance(batch, int):
        return None
    try:
        device = opened(name, threads, batch, meta.get("precision"))
    except UserError:
        return None  # such as a GPU that is not here
    here = device.conditions()
    return device if not isinstance(device, Estimator) and all(meta.get(key) == here[key] for key in SAME) else None


def measure(path: Path, name: str, *, threads: int = 1, batch: int = 1) -> Timing:
    """Latency of an ONNX file on a device of this machine (``batch`` where the file leaves it open).

    Raises UserError for a device that runs no files and for a file that does not run there.
    """
    device = opened(name, threads, batch)
    if isinstance(device, Estimator):
        raise UserError(f"--device {name}: nothing runs there: cpu and gpu can be measured")
    return repeated(device.load(path))
