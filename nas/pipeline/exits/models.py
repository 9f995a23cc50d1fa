"""Describes networks that exits are added to, and measures or predicts what it takes to leave at each of these."""

from __future__ import annotations

import random
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from nas.arch import Op
from nas.errors import UserError, setting
from nas.exits.choice import Pieces
from nas.exits.export import BRANCHED, export
from nas.exits.graft import HIDDEN, Grafted, Part
from nas.exits.net import Combine, MultiExit, Network
from nas.exits.thresholds import Point, Policy
from nas.latency.devices.onnxruntime import session, timed
from nas.latency.fresh import fresh
from nas.latency.kernel_model import KernelModel
from nas.latency.onnx_graph import read_graph
from nas.latency.predict import kernels_ms
from nas.latency.profile import one_torch_thread
from nas.latency.timing import Run as Timed
from nas.latency.timing import interleaved
from nas.lower.emit import emit
from nas.lower.onnx import save
from nas.pipeline.exits.card import Reading
from nas.pipeline.exits.serve import Clock, Served, Trained, exit_runs, with_prefix_ms
from nas.plan import Layout, OpKey, macs
from nas.training.data import Data

SECONDS = 2.0  # an exit, timed without a table's yardstick


@dataclass(frozen=True, kw_only=True)
class Model(ABC):
    """Describes a network with untrained exits, the images that they learn from, and the target.

    ``data`` has no images where the user gives others. ``clock`` times runs, where this machine is the target.
    """

    name: str
    net: Network
    plain: Callable[[torch.Tensor], torch.Tensor]
    data: Data
    metadata: dict[str, str]
    target: str
    clock: Clock | None = None
    now_ns: Callable[[], int]
    reading: Reading

    @abstractmethod
    def pieces(self) -> Pieces:
        """Returns the milliseconds that exits are chosen by."""

    def timed(self, trained: Trained, served: Served, folder: Path) -> Served:
        """Returns chosen exits with the milliseconds of their finished file, which is written into ``folder``."""
        return served


@dataclass(frozen=True, kw_only=True)
class Pick(Model):
    """Describes a pick of a run, whose exits are priced by its target's costs.

    ``layout`` is that of its space with exits, ``keys`` are its operators with all exits.
    """

    layout: Layout
    keys: Sequence[OpKey]
    priced: Pieces

    def pieces(self) -> Pieces:
        return self.priced


@dataclass(frozen=True, kw_only=True)
class PredictedOnnx(Model):
    """Describes an ONNX file that the target's kernel model prices part by part."""

    priced: Pieces

    def pieces(self) -> Pieces:
        return self.priced


@dataclass(frozen=True, kw_only=True)
class MeasuredOnnx(Model):
    """Describes an ONNX file, ``graph``, that is timed on this machine."""

    net: Grafted
    graph: onnx.ModelProto

    def pieces(self) -> Pieces:
        return measure_pieces(self.net, self.data, self.graph, self.now_ns)

    def timed(self, trained: Trained, served: Served, folder: Path) -> Served:
        """Returns chosen exits with what leaving at each takes in the finished file, not the sum of measured pieces."""
        side, exits = trained.data.size, len(served.policy.prefix_ms)
        export(trained.network(served.kept), folder, in_ch=trained.data.in_ch, size=side, policy=served.policy,
               metadata={})
        images = np.random.default_rng(0).standard_normal((8, 3, side, side), dtype=np.float32)
        ms, _ = time_here(lambda: exit_runs(folder / BRANCHED, images, np.zeros(8, int), exits, self.now_ns), exits)
        return with_prefix_ms(served, np.maximum.accumulate([ms[f"exit {index}"] for index in range(exits)]).tolist())


def time_here(prepare: Callable[[], Mapping[str, Timed]], count: int) -> tuple[dict[str, float], float | None]:
    """Times runs on this machine, in a process of their own and without a yardstick: ms by name, and no drift."""
    with one_torch_thread():
        timings = fresh(lambda: interleaved(prepare(), seconds=SECONDS * count, rng=random.Random(0), max_rounds=400,
                                            warm=5))
    return {name: timing.ms for name, timing in timings.items()}, None


def measure_pieces(net: Grafted, data: Data, plain: onnx.ModelProto, now_ns: Callable[[], int]) -> Pieces:
    """Times a network with all exits on this machine, and divides the time among trunk and heads.

    It leaves at each exit in turn. What leaving at the last takes beyond the network without exits is the heads' time,
    divided among them by their MACs.
    """
    exits = len(net.exits) + 1
    nobody = Point(thresholds=(*(np.inf,) * (exits - 1), -np.inf), shares=(0.0,) * exits, mean_ms=0.0, worst_ms=0.0,
                   accuracy=0.0)
    made = Policy(kind="max-softmax", temperatures=(1.0,) * exits, prefix_ms=(1.0,) * exits, n=1, point=nobody)
    with tempfile.TemporaryDirectory() as folder:
        export(MultiExit(net, Combine()).eval(), Path(folder), in_ch=3, size=data.size, policy=made, metadata={})
        images = np.random.default_rng(0).standard_normal((8, 3, data.size, data.size), dtype=np.float32)

        def prepare() -> dict[str, Timed]:
            runs = exit_runs(Path(folder) / BRANCHED, images, np.zeros(8, int), exits, now_ns)
            return {**runs, "plain": timed(session(plain.SerializeToString()), 1, now_ns)}

        ms, _ = time_here(prepare, exits + 1)
    prefix = np.maximum.accumulate([ms[f"exit {index}"] for index in range(exits)])
    work = np.array(head_macs(net, data), float)
    over = max(prefix[-1] - ms["plain"], 0.02 * ms["plain"])
    heads = np.r_[over * work / work.sum(), 0.0]
    return Pieces(np.maximum(np.diff(np.r_[0.0, prefix]) - heads, 1e-6), heads)


def predict_pieces(net: Grafted, data: Data, costs: KernelModel) -> Pieces:
    """Predicts the milliseconds of trunk and heads, part by part, with the target's kernel model.

    Raises UserError where that does not know a part.
    """
    try:
        return _predict_part_by_part(net, data, costs)
    except UserError as error:
        raise UserError(f"{setting('target', costs.name)}: {error}; {setting('target', 'cpu')} times the network on "
                        "this machine") from None


def _predict_part_by_part(net: Grafted, data: Data, costs: KernelModel) -> Pieces:
    with tempfile.TemporaryDirectory() as name:
        path, x = Path(name) / "part.onnx", torch.zeros(1, 3, data.size, data.size)
        trunk, heads = [], []
        for part, head in net.stages():
            assert isinstance(part, Part)
            save(part.model, path, {})
            trunk.append(kernels_ms(read_graph(path), costs))
            x = part(x)
            heads.append(0.0)
            if not isinstance(head, nn.Identity):
                save(emit(head, in_ch=x.shape[1], size=x.shape[2]), path, {})
                heads[-1] = kernels_ms(read_graph(path), costs)
    return Pieces(np.array(trunk), np.array(heads))


def head_macs(net: Grafted, data: Data) -> list[int]:
    """Counts the multiply-adds of each exit's head."""
    counts, x = [], torch.zeros(1, data.in_ch, data.size, data.size)
    for part in list(net.parts)[:-1]:
        x = part(x)
        counts.append(macs(OpKey(Op.of("exit_head", hidden=HIDDEN), x.shape[1], net.classes, 1, x.shape[2])))
    return counts
