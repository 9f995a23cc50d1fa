"""Runs the other processes of a search under ``torchrun``, which help the first to train the supernet and nothing else.

The first one sends what they need, its checkpoint included; they load the images themselves and never touch the run.
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch

from nas.config.search import Config
from nas.decision import Prices
from nas.errors import UserError, setting
from nas.ops import user_files
from nas.plan import Layout
from nas.progress import Progress
from nas.training import memory, placement
from nas.training.data import load
from nas.training.ranks import Ranks, joined
from nas.training.recipes import SupernetRecipe
from nas.training.supernet_training import SupernetTraining


@dataclass(frozen=True)
class Errand:
    """Holds what the first process hands out: settings, the images by their fingerprint, and where training stands."""

    config: Config
    images: str
    layout: Layout
    prices: tuple[Prices, ...]
    ranges: tuple[tuple[float, float], ...]
    grid: tuple[float, ...]
    recipe: SupernetRecipe
    state: bytes
    sizes: tuple[int, ...]
    ops: tuple[tuple[str, str], ...]  # files of the user's own operators, with their hashes


def begin(config: Config, training: SupernetTraining, progress: Progress) -> None:
    """Starts a training: notes the memory it takes, and sends other processes, if any, where ``training`` stands.

    Raises UserError where there is clearly too little memory.
    """
    if not training.finished:
        progress.note(memory.check_memory(training))
    ranks = training.stepper.ranks
    if ranks.count == 1:
        return
    buffer = io.BytesIO()
    torch.save(training.state_dict(), buffer)
    ops = tuple((str(file.path.resolve()), file.sha256) for file in user_files.loaded())
    ranks.broadcast(Errand(config, training.data.source.fingerprint, training.layout, tuple(training.prices),
                           tuple(training.gates.ranges), training.pruner.grid, training.recipe, buffer.getvalue(),
                           tuple(training.sizes), ops))


def follow() -> NoReturn:
    """Trains along with the first process until the end, then exits; its one message goes to stderr."""
    try:
        with joined() as ranks:
            training = _training(ranks.broadcast(), ranks)
            while not training.finished:
                training.epoch()
    except UserError as error:
        print(f"nas: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)


def _training(errand: Errand, ranks: Ranks) -> SupernetTraining:
    config = errand.config
    for file, sha256 in errand.ops:  # the user named them for this very command
        if user_files.digest(user_files.read_source(Path(file))) != sha256:
            raise UserError(f"process {ranks.rank}: {setting('ops', file)}: another file than the first process has")
        user_files.load([file])
    torch.set_num_threads(config.threads or torch.get_num_threads())
    place = Path(config.data_dir) if config.data_dir and config.data == "cifar10" else None
    data = load(config.data, data_dir=place, size=config.side, seed=config.seed, limit=config.limit)
    if data.source.fingerprint != errand.images:
        raise UserError(f"process {ranks.rank}: other images than the first process has (fingerprint "
                        f"{data.source.fingerprint}, there {errand.images}); give every machine the same")
    training = SupernetTraining(errand.layout, data, errand.prices, errand.ranges, errand.grid, errand.recipe,
                                config.seed, placement.device_of(config.train_on), ranks, errand.sizes)
    training.load_state_dict(torch.load(io.BytesIO(errand.state), map_location="cpu", weights_only=True))
    return training
