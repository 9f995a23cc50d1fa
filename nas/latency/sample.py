"""Writes random networks of a space as ONNX files with their predicted milliseconds, to be measured anywhere."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nas import sampling
from nas.arch import Arch
from nas.errors import UserError, setting
from nas.files import write_json
from nas.latency.base import Costs
from nas.lower.onnx import lower, save
from nas.lower.qdq import quantise
from nas.plan import Layout, plan
from nas.progress import Progress
from nas.subnet import build

SAMPLES, SETTINGS = "samples.json", "settings.json"
PATIENCE = 100  # draws in a row that bring nothing new


@dataclass(frozen=True)
class Sample:
    """Names a network that was written as a file, with its predicted milliseconds; ``onnx`` is the file's name."""

    id: str
    arch: Arch
    onnx: str
    ms: float


def sample(layout: Layout, costs: Costs, n: int, seed: int, out: Path, progress: Progress) -> list[Sample]:
    """Writes ``n`` different networks and ``samples.json`` into ``out``, and returns what that file lists.

    Files that are there are kept, so the same call continues. Raises UserError for a directory that holds something
    else, a space that is too small, and an operator that ``costs`` does not know.
    """
    settings = {"space": layout.space, "size": layout.task.size, "classes": layout.task.classes, "n": n, "seed": seed,
                "target": costs.name}
    _claim(out, settings)
    archs = _distinct(layout, n, random.Random(f"sample {seed}"))
    samples = [Sample(arch.id, arch, f"{arch.id}.onnx", sum(costs.ms_many(plan(layout, arch)))) for arch in archs]
    missing = [drawn for drawn in samples if not (out / drawn.onnx).is_file()]
    with progress.task("sample", n, n - len(missing)) as task:
        for drawn in missing:
            _write(layout, drawn.arch, out / drawn.onnx, costs)
            task.advance()
    write_json(out / SAMPLES, samples)
    return samples


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Checks that the directory is new or was made with the same settings. Raises UserError."""
    path = out / SETTINGS
    if not path.is_file():
        if out.exists() and (not out.is_dir() or any(file.suffix != ".tmp" for file in out.iterdir())):
            raise UserError(f"{setting('out', out)}: there is something else; give a new or empty directory")
        write_json(path, settings)
        return
    try:
        before = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        before = None
    if not isinstance(before, dict):
        raise UserError(f"{path}: truncated or not JSON; give another {setting('out')}")
    changed = [key for key in settings if before.get(key) != settings[key]]
    if changed:
        key = changed[0]
        raise UserError(f"{setting('out', out)}: began with {key} = {before.get(key)!r}, now {settings[key]!r}; give "
                        "another")


def _distinct(layout: Layout, n: int, rng: random.Random) -> list[Arch]:
    """Draws different networks of random depth, so that latencies spread."""
    drawn: dict[Arch, None] = {}
    for arch in _until_nothing_new(layout, rng, drawn):
        drawn[arch] = None
        if len(drawn) == n:
            return list(drawn)
    raise UserError(f"{setting('n', n)}: {layout.space} at {layout.task.size} has {sampling.count(layout)} networks, "
                    f"and {PATIENCE} draws brought none beyond {len(drawn)}")


def _until_nothing_new(layout: Layout, rng: random.Random, drawn: dict[Arch, None]) -> Iterator[Arch]:
    tries = 0
    while tries < PATIENCE:
        arch = sampling.sample_thinned(layout, rng)
        tries = tries + 1 if arch in drawn else 0
        if arch not in drawn:
            yield arch


def _write(layout: Layout, arch: Arch, path: Path, costs: Costs) -> None:
    """Writes a network with random weights that depend on its arch alone; in int8 where the target is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(arch.id, 16))
        model = build(layout, arch)
    task = layout.task
    metadata = {"arch": json.dumps(arch.to_json()), "id": arch.id, "input": "NCHW float32", "size": str(task.size),
                "weights": "random", "producer": "nas"}
    graph = lower(model, in_ch=task.in_ch, size=task.size)
    if costs.int8_on_cpu:
        graph = quantise(graph, weight_bits=costs.weight_bits)
    save(graph, path, metadata)
