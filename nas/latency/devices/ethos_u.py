"""Estimates costs on Arm Ethos-U micro-NPUs with Arm's compiler Vela; nothing is measured on a device.

An operator is lowered to int8 TFLite between two 1x1 convolutions and compiled as a whole; its row is the sum of the
cycles of its own operators: alone it would also pay for bringing its maps into and out of the NPU's layout and memory.
The shipped targets keep maps in SRAM and weights in flash; with maps in DRAM (``Dedicated_Sram``) rows do not add up
at 224 pixels (11 % off over 30 networks of mbconv on the U65), because Vela then decides over the whole network what to
keep.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from torch import nn

from nas.errors import UserError, setting
from nas.latency.bench import Keep, Parts, context_of
from nas.latency.devices.board import SUFFIX, TARGETS, Target, read_board, recorded_target
from nas.latency.devices.kind import Kind
from nas.latency.devices.vela import VERSION, Report, Vela, VelaError
from nas.latency.meta import Conditions
from nas.latency.onnx_graph import Graph
from nas.latency.table import Row
from nas.lower.flatbuffer import MISSING, operators_of
from nas.lower.onnx import plain
from nas.lower.tflite import convert, lower
from nas.ops.layers import ConvBN
from nas.plan import Layout, OpKey
from nas.subnet import Subnet

ANY_SIZE = 2**32  # an arena that the memory mode does not limit: all that 32 bits address
OPTIONS = """
[compiler]
enable_db=true
output_format=TFLite
cop_format=COP1

[scheduler]
optimize=Performance
arena_size_limit={arena}
disable_feature=
cpu_tensor_alignment=16
tensor_allocator=HillClimb
"""  # the defaults of Vela's command line


class EthosU:
    """Compiles for one of ``TARGETS``, by name, or for a board; implements ``nas.latency.bench.Estimator``.

    Raises UserError where Vela is missing or of another version, and for more than one image or thread.
    """

    align = 32  # the depthwise steps at 16 channels, and a Ghost module halves its width: 0.1-1.3 % off between knots

    def __init__(self, target: str | Target, threads: int = 1, batch: int = 1) -> None:
        self.target = TARGETS[target] if isinstance(target, str) else target
        self.name = self.target.name
        if (threads, batch) != (1, 1):
            raise UserError(f"{setting('device', self.name)}: an NPU runs one image at a time: leave out "
                            f"{setting('threads')} and {setting('batch')}")
        self.version = _installed()
        self._vela = Vela()

    def conditions(self) -> Conditions:
        return self.target.conditions(self.version)

    def bench(self, layout: Layout) -> Compiled:
        return Compiled(layout, self)

    def report(self, module: nn.Module, what: object, *, in_ch: int, size: int) -> Report:
        """Compiles a module with typical weights; returns Vela's report. Raises UserError beginning with ``what``."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = lower(_typical(module), in_ch=in_ch, size=size, calibration=[torch.randn(1, in_ch, size, size)])
        return self.compile(model, what)

    def try_out(self, what: object) -> None:
        """Compiles a tiny network, as a check. Raises UserError beginning with ``what`` for a system that Vela refuses.
        """
        self.report(ConvBN(16, 16), what, in_ch=16, size=8)

    def compile(self, model: bytes, what: object) -> Report:
        """Compiles an int8 TFLite file and returns Vela's report. Raises UserError beginning with ``what``."""
        options = OPTIONS.format(arena=self.target.arena or ANY_SIZE)
        try:
            report = self._vela.compile(self.target.architecture, model, self.target.config, options)
        except VelaError as error:
            raise UserError(f"{what}: {error}") from None
        if report.cpu_ops or report.cpu_kinds:
            raise UserError(f"{what}: Vela leaves {', '.join(report.cpu_kinds) or report.cpu_ops} to the CPU, whose "
                            f"time it does not count: not for {self.name}")
        if report.cycles <= 0:
            raise UserError(f"{what}: Vela counts no cycles")
        return report

    def predict(self, graph: Graph) -> list[tuple[str, str, float]]:
        """Estimates a CNN in ONNX as int8 TFLite, scales from Gaussian images: (name, kind, ms) of every operator.

        Raises UserError, which names file and operator.
        """
        graph = graph.in_float()
        try:
            noise = torch.randn(graph.shape, generator=torch.Generator().manual_seed(0))
            model = convert(plain(graph.model, graph.entry, graph.shape), [noise])
        except UserError as error:
            raise UserError(f"{graph.path}: {error}") from None
        operators = dict(enumerate(operators_of(model), 1))
        cycles: Counter[tuple[str, str]] = Counter()
        for source, kind, count in self.compile(model, graph.path).operators:
            cycles[operators.get(source, (f"of Vela: {kind}", kind))] += count
        return [(name, kind, self.ms(count)) for (name, kind), count in cycles.items()]

    def ms(self, cycles: int) -> float:
        return cycles / (self.target.clock_hz / 1e3)


def _open(name: str, threads: int, batch: int, precision: str | None) -> EthosU:
    """Opens one of ``TARGETS``, or a board from its file, for which a small network is compiled as a check."""
    if precision is not None:
        raise UserError(f"{setting('device', name)}: an NPU runs int8 only: leave out {setting('precision')}")
    if name in TARGETS:
        return EthosU(name, threads, batch)
    device = EthosU(read_board(Path(name)), threads, batch)
    device.try_out(name)
    return device


KIND = Kind(_open, tuple(TARGETS), suffix=SUFFIX)


def compiler_of_table(conditions: Conditions) -> EthosU | None:
    """Returns the compiler that made the figures of a table; None where that is not Vela.

    Raises UserError where Vela is missing.
    """
    target = recorded_target(conditions)
    return _shared(target) if target else None


@cache
def _shared(target: Target) -> EthosU:
    """Returns one compiler a target and process, because each has a worker that takes seconds to start."""
    return EthosU(target)


@dataclass(frozen=True)
class Compiled:
    """Fills a table from Vela's cycles, which are the same at every call: nothing is repeated or corrected."""

    layout: Layout
    device: EthosU

    method = "vendor-compiler: an estimate of Arm's Vela, not a measurement"
    protocol = "int8 TFLite, Gaussian weights; cycles of the operator's own part between two 1x1 convolutions"
    drift = 1.0
    spread = 1.0
    yardstick = None
    slow = False
    corrected = False

    def was_slow_at_first(self) -> bool:
        return False

    def rows(self, keys: list[OpKey]) -> dict[OpKey, Row | None]:
        return {key: self.alone(key) for key in keys}

    def alone(self, key: OpKey) -> Row:
        context = context_of(self.layout, key)
        report = self.device.report(context.module(), key, in_ch=key.in_ch, size=key.size)
        ms = self.device.ms(own_cycles(report, first=context.first, last=context.last, what=key))
        return Row.of(key, ms=ms, raw_ms=ms, p10_ms=ms, p90_ms=ms, n=1, how="compiled")

    def networks(self, plans: list[list[OpKey]], parts: Parts = (), keep: Keep = lambda parts: None,
                 ) -> tuple[np.ndarray, np.ndarray]:
        task, done = self.layout.task, list(parts)
        for keys in plans[sum(part.shape[1] for part in done):]:
            report = self.device.report(Subnet(keys), f"a network of {len(keys)} operators", in_ch=task.in_ch,
                                        size=task.size)
            done.append(np.full((2, 1), self.device.ms(report.cycles)))
            keep(done)
        first, second = np.concatenate(done, axis=1)
        return first, second


def own_cycles(report: Report, *, first: bool, last: bool, what: object) -> int:
    """Returns the cycles of a network without its first convolution (unless ``first``) and last (unless ``last``).

    Raises UserError where Vela joins the operator between them with one of these.
    What copies the graph's input to where the first convolution reads it goes with that convolution.
    """
    sources = [source for source, _, _ in report.operators]
    around = {*(() if first else (min(sources),)), *(() if last else (max(sources),))}
    if any(kind not in ("Conv2D", "Relu", "MemoryCopy") for source, kind, _ in report.operators if source in around):
        raise UserError(f"{what}: Vela joins it with the convolutions around it")
    cycles = sum(cycles for source, _, cycles in report.operators if source not in around)
    if cycles <= 0:
        raise UserError(f"{what}: Vela counts no cycles")
    return cycles


def _typical(module: nn.Module) -> nn.Module:
    """Sets a module to Gaussian weights and plain batch norms, which are typical of trained networks.

    Vela compresses weights, and zeros (as at the start of training) cost next to nothing; trained networks and Gaussian
    ones differ by 0.3 % at most.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight)
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.ones_(part.weight)
    return module


def _installed() -> str:
    """Returns Vela's version. Raises UserError where Vela is missing or of a version with another interface."""
    try:
        installed = version("ethos-u-vela")
    except PackageNotFoundError:
        raise UserError(MISSING) from None
    if not installed.startswith(f"{VERSION}."):
        raise UserError(f"ethos-u-vela {installed} is installed, {VERSION}.* is needed: {MISSING.partition(': ')[2]}")
    return installed
