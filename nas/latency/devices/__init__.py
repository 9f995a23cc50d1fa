"""Opens devices by name, to measure on or compile for; the packages of a device are loaded where it is asked for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from nas.errors import UserError, setting
from nas.files import nearest
from nas.latency.base import Costs
from nas.latency.bench import Estimator
from nas.latency.devices.kind import Kind
from nas.latency.meta import Conditions
from nas.latency.onnx_file import fixed_batch, load_model
from nas.latency.table import LatencyTable
from nas.latency.table import file_name as file_name
from nas.latency.timing import Device, Timing, repeated


def kinds() -> tuple[Kind, ...]:
    """Lists the kinds of devices, a file each; a new kind needs its file and its line here."""
    from nas.latency.devices import cuda, ethos_u, onnxruntime

    return onnxruntime.KIND, cuda.KIND, ethos_u.KIND


def local_targets() -> dict[str, tuple[str, str]]:
    """Returns the targets that stand for this machine at one thread and one image, with device and precision."""
    pairs = [(name, precision) for kind in kinds() for name in kind.names for precision in kind.precisions]
    return {Path(file_name(*pair)).stem: pair for pair in pairs}


def open_device(name: str, threads: int = 1, batch: int = 1, precision: str | None = None) -> Device | Estimator:
    """Opens a device by name, or a board by its file; ``gpu`` is the best runtime of the GPU that works here.

    ``precision`` None is the device's usual one. Raises UserError for what is not known, not there or not possible.
    """
    names = [name for kind in kinds() for name in (*kind.aliases, *kind.names)]
    for kind in kinds():
        if kind.opens(name):
            if name not in names and (stem := Path(name).stem) in {*names, *local_targets()}:
                raise UserError(f"{name}: {stem} is another target's name: rename the file, the board is named after "
                                "it")
            return kind.open(name, threads, batch, precision)
    raise UserError(f"{setting('device', name)}: {nearest(name, names)}")


def local_device(conditions: Conditions) -> Device | None:
    """Opens the device of this machine that figures were measured on, such as those of a table's meta.

    Returns None where they are of another device, machine or runtime.
    """
    threads, batch, precision = conditions.threads, conditions.batch, conditions.precision
    if (conditions.device, precision) not in local_targets().values() or threads is None or batch is None:
        return None
    try:
        device = open_device(conditions.device, threads, batch, precision)
    except UserError:
        return None  # such as a GPU that is not here
    return None if isinstance(device, Estimator) or device.conditions().change_since(conditions) else device


def measured_here(costs: Costs) -> tuple[LatencyTable, Device] | None:
    """Returns a latency table with the device of this machine that it was measured on; None for other costs."""
    if not isinstance(costs, LatencyTable):
        return None
    device = local_device(costs.meta)
    return (costs, device) if device is not None else None


@dataclass(frozen=True)
class Measured(Timing):
    """Holds what a file took, with images a call and threads."""

    batch: int
    threads: int


def measure(path: Path, name: str, *, threads: int = 1, batch: int | None = None, size: int | None = None) -> Measured:
    """Measures the latency of an ONNX file on a device of this machine.

    ``batch`` and ``size`` (height and width) are for what the file leaves open; without a batch it is 1 there. Raises
    UserError for a device that runs no files, for a file that does not run there, and for a file that fixes another
    batch or size.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    device = open_device(name, threads, batch or 1)
    fixed = fixed_batch(load_model(path))
    if batch is not None and fixed not in (batch, None):
        raise UserError(f"{setting('batch', batch)}: {path} is fixed at batch {fixed}; leave out {setting('batch')}, "
                        "or export it with the batch left open")
    images = fixed or batch or 1
    if images > 1 and batch is None:
        device = open_device(name, threads, images)
    if isinstance(device, Estimator):
        raise UserError(f"{setting('device', name)}: nothing runs there: cpu and gpu can be measured")
    return Measured(**asdict(repeated(device.load(path, size))), batch=images, threads=threads)
