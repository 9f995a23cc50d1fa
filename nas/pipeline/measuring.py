"""Measures networks of a run on those of its targets that are this machine, several of them in the same rounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from torch import nn

from nas.arch import Arch
from nas.latency.bench import TOGETHER
from nas.latency.devices import measured_here
from nas.latency.profile import time_networks
from nas.latency.timing import Device, Run
from nas.pipeline.inputs import Inputs

T = TypeVar("T")


@dataclass(frozen=True)
class Network:
    """Holds a network as a module and as files, ``float`` and ``int8``: a target has that of its precision timed."""

    model: nn.Module
    files: Mapping[str, Path]


class Measured(NamedTuple):
    """Holds the ms of a network on a target, and how many times slower than when its table was made the machine was.

    Both are None where the network is not measured.
    """

    ms: float | None = None
    drift: float | None = None


def is_measured_here(inputs: Inputs, target: str) -> bool:
    """Tells whether a target is this machine, so that networks can be timed for it."""
    return measured_here(inputs.costs[target]) is not None


def measure_on_all(inputs: Inputs, networks: Mapping[Arch, Network]) -> dict[Arch, dict[str, Measured]]:
    """Measures networks on every target that is this machine; returns what each takes by target."""
    times = {target: measure(inputs, target, networks) for target in inputs.costs}
    return {arch: {target: times[target][arch] for target in times} for arch in networks}


def measure(inputs: Inputs, target: str, networks: Mapping[Arch, Network]) -> dict[Arch, Measured]:
    """Measures networks on this machine, if it is the target, at the target's threads and batch.

    Those of one input size run together, in turn with the yardsticks of the table.
    """
    times = dict.fromkeys(networks, Measured())
    if (here := measured_here(inputs.costs[target])) is None:
        return times
    table, device = here
    kind = "int8" if inputs.costs[target].int8_on_cpu else "float"
    for at in inputs.every:
        some = {arch: network for arch, network in networks.items()
                if inputs.at(arch.size) is at and kind in network.files}
        if some:
            ms, drift = time_networks(partial(_prepare, at, some, kind, device), len(some), at.measured, table, device)
            times |= {arch: Measured(ms[arch.id], drift) for arch in some}
    return times


def parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yields parts of a list of networks, each of as many as are measured together."""
    for start in range(0, len(items), TOGETHER):
        yield items[start:start + TOGETHER]


def _prepare(inputs: Inputs, networks: Mapping[Arch, Network], kind: str, device: Device) -> dict[str, Run]:
    """Prepares networks to be timed, by their ids: their files where the device reads ONNX, else the modules."""
    task = inputs.layout.task
    return {arch.id: device.load(network.files[kind]) if device.reads_onnx else
            device.prepare(network.model, in_ch=task.in_ch, size=task.size) for arch, network in networks.items()}
