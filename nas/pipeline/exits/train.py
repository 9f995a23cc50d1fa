"""Trains the exits of a network in a run directory, from the last checkpoint on, to ``exits.safetensors``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import safetensors.torch
import torch

from nas.arch import Arch
from nas.errors import UserError, setting
from nas.exits.base import Method
from nas.exits.methods import method as make
from nas.exits.net import Network
from nas.plan import Layout
from nas.progress import Progress, Task
from nas.run import checkpoint, events
from nas.run.directory import Run
from nas.subnet import Subnet, build
from nas.training import evaluation, randomness
from nas.training.data import Data
from nas.training.exits import ExitTraining, recalibrate
from nas.training.recipes import FineTuningRecipe

WEIGHTS, CHECKPOINT = "exits.safetensors", "exits.pt"


def with_exits(at: Layout, arch: Arch, plain: Subnet, seed: int) -> Subnet:
    """Returns a trained network with the exits of ``arch`` added, which are untrained yet."""
    with randomness.seeded(seed, arch.id, "exits"):
        net = build(at, arch)
    fresh = net.state_dict()
    net.load_state_dict({**fresh, **plain.state_dict()})
    return net


def train_exits(name: str, net: Network, data: Data, recipe: FineTuningRecipe, run: Run, place: str, seed: int,
                device: torch.device, progress: Progress, *, method: str,
                settings: Mapping[str, Any] | None = None) -> Method:
    """Trains the exits of ``net`` by a method, and returns that in eval mode; it writes ``place`` + ``exits.*``.

    Raises UserError for a file that is broken, and for fewer epochs than the method has phases.
    """
    with randomness.seeded(seed, name, "method"):
        made = make(method, net, **{"label_smoothing": recipe.label_smoothing, **(settings or {})})
    if recipe.epochs < made.phases():
        raise UserError(f"{setting('exits.epochs')}: {method} trains in {made.phases()} phases, each an epoch at "
                        f"least; {recipe.epochs} are too few; give {made.phases()} or more")
    if run.has(place + WEIGHTS):
        load_exits(made, run, place)
        return made.to(device).eval()
    training = ExitTraining(name, made, data, recipe, seed, device)
    if run.has(place + CHECKPOINT):
        checkpoint.resume(run, place + CHECKPOINT, training)
    with progress.task(f"exits of {name}", recipe.epochs, training.done) as task:
        while not training.finished:
            began = time.monotonic()
            with randomness.seeded(seed, name, training.done):
                epoch = training.epoch(partial(_show_progress, task, training.done))
            run.log(events.ExitsTrained(**vars(epoch), id=name, seconds=round(time.monotonic() - began, 3)))
            checkpoint.save(run, place + CHECKPOINT, training)
    recalibrate(made, evaluation.calibration_images(data, 2000, 128, device, seed))
    weights = {key: value.contiguous().cpu() for key, value in made.net.state_dict().items()}
    run.write(place + WEIGHTS, lambda file: file.write(safetensors.torch.save(weights)))
    run.file(place + CHECKPOINT).unlink(missing_ok=True)
    return made.eval()


def _show_progress(task: Task, epochs: int, step: int, of: int) -> None:
    """Moves the progress bar to ``epochs`` and ``step`` of the next."""
    task.advance(epochs + step / of - task.done)


def load_exits(method: Method, run: Run, place: str) -> None:
    """Loads the weights that training wrote. Raises UserError for a file that is broken."""
    path = run.file(place + WEIGHTS)
    try:
        method.net.load_state_dict(safetensors.torch.load(path.read_bytes()))
    except Exception as error:  # of whatever kind a broken file makes
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path}: not the weights of these exits ({reason}); delete it, then the same command"
                        ) from None
