"""Measures what it takes to ask an exit whether it is sure, beyond the operators of its head, on files as deployed."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from nas import sampling
from nas.exits import choice
from nas.exits.export import BRANCHED, export
from nas.exits.net import Additive, MultiExit
from nas.exits.thresholds import Point, Policy
from nas.latency.base import Costs
from nas.latency.devices.onnxruntime import clock
from nas.latency.profile import time_networks
from nas.latency.table import LatencyTable
from nas.latency.timing import Device, Run
from nas.pipeline.exits.serve import exit_runs, timed_here
from nas.plan import Layout, plan
from nas.progress import Progress
from nas.subnet import build
from nas.training import randomness

NETWORKS = 3  # random ones, with all their exits
IMAGES = 16  # random, one after another


def measure_exit_ms(at: Layout, path: Path, again: bool, progress: Progress) -> None:
    """Measures ``exit_ms`` and puts it into the table ``path``, if that is of this machine, one thread and one image.

    Else the user is told that it is not measured. One that is in the table stays, unless it is to be measured
    ``again``.
    """
    if not at.exits:
        return
    if not (here := timed_here(LatencyTable.load(path))):
        progress.note(f"{path}: what it takes to ask an exit is not measured, and counts as nothing: that is measured "
                      "for this machine's CPU in fp32, with one thread and one image")
        return
    table, device = here
    if again or table.meta.exit_ms is None:
        table.meta.exit_ms = round(exit_ms(at, table, device, progress), 6)
        table.save(path)


def exit_ms(at: Layout, table: LatencyTable, device: Device, progress: Progress) -> float:
    """Measures the milliseconds that it takes to ask an exit whether an image leaves there; 0 or more.

    By least squares over the exits of a few random networks: what the file with ``If`` takes beyond the sum of the
    table's rows, over how many exits were asked. ``at`` is a layout with exits. The table's yardstick runs beside.
    """
    asked, beyond = list[float](), list[float]()
    with progress.task("cost of asking exits", NETWORKS) as task:
        for number in range(NETWORKS):
            _time_asking(at, table, device, number, asked, beyond)
            task.advance()
    return max(0.0, float(np.dot(asked, beyond) / np.dot(asked, asked)))


def _time_asking(at: Layout, table: LatencyTable, device: Device, number: int, asked: list[float],
                 beyond: list[float]) -> None:
    """Adds, for each exit of a random network, how many exits are asked there and the ms beyond the sum of its rows."""
    arch = replace(sampling.sample(at, random.Random(f"exits {number}")), exits=tuple(e.slot for e in at.exits))
    with randomness.seeded("exit_ms", number):
        net = MultiExit(build(at, arch), Additive(0.5)).eval()
    count = len(at.exits)
    prefix = choice.pieces(plan(at, arch), table.ms_many).prefix_ms(range(count))
    with tempfile.TemporaryDirectory() as folder:
        write_untrained(net, Path(folder), at, prefix)
        ms, _ = time_networks(_runs(Path(folder) / BRANCHED, at, count), count + 1, at, table, device)
    for index in range(count + 1):
        asked.append(min(index + 1, count))
        beyond.append(ms[f"exit {index}"] - float(prefix[index]))


def known_exit_ms(costs: Costs) -> float:
    """Returns a target's ``exit_ms`` where its costs have one, else 0, as those of a GPU or an NPU."""
    return costs.meta.exit_ms or 0.0


def write_untrained(net: MultiExit, folder: Path, at: Layout, prefix: np.ndarray) -> None:
    """Writes the files of a network whose exits are untrained; ``prefix`` [exits + 1] are the ms of leaving at each."""
    count = len(at.exits)
    exits = count + 1
    point = Point(thresholds=(*(0.5,) * count, -np.inf), shares=(1 / exits,) * exits, mean_ms=float(prefix.mean()),
                  worst_ms=float(prefix[-1]), accuracy=0.0)
    policy = Policy(kind="max-softmax", temperatures=(1.5,) * exits, prefix_ms=tuple(map(float, prefix)), n=1,
                    point=point)
    export(net, folder, in_ch=at.task.in_ch, size=at.task.size, policy=policy, metadata={})


def _runs(path: Path, at: Layout, count: int) -> Callable[[], Mapping[str, Run]]:
    shape = IMAGES, at.task.in_ch, at.task.size, at.task.size
    images = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).numpy()
    return lambda: exit_runs(path, images, np.zeros(IMAGES, int), count + 1, clock(1)[1])
