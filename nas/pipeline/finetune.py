"""Trains the picks: weights are inherited, batch norms recomputed, then all are fine-tuned, a thread for each network.

PyTorch lets other threads run while an operator works, and networks as small as these train faster beside each other,
each on its share of the processor, than one after the other on all of it (docs/decisions.md).
"""

from __future__ import annotations

import contextlib
import copy
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import safetensors.torch
import torch
from torch import nn

from nas.arch import Arch
from nas.errors import UserError
from nas.pipeline.inputs import Inputs, multiply_adds
from nas.progress import Joined, NoProgress, Progress, Task
from nas.run import checkpoint, events
from nas.subnet import Subnet, build
from nas.training import evaluation, placement, randomness
from nas.training.finetune import FineTuning
from nas.training.recipes import GROW, FineTuningRecipe, shares_of_growth

WEIGHTS, CHECKPOINT = "weights.safetensors", "finetune.pt"
FIRST = "generation.safetensors"  # of born-again: what teaches the delivered ones
CHECKPOINTS = {WEIGHTS: CHECKPOINT, FIRST: "generation.pt"}


Ended = Callable[[Arch, FineTuning, threading.Lock], None]  # is called with the lock of the log


def _no_teacher(arch: Arch) -> None:
    """Is the teacher of a network that learns from labels alone: there is none."""


class Origin(Protocol):
    """Gives networks the weights that their training begins with: from a trained supernet, or random ones."""

    def inherit(self, arch: Arch) -> nn.Module:
        """Returns the network of an arch with these weights."""

    def take_back(self, arch: Arch, network: Subnet) -> None:
        """Takes over what a network has learned, where others may inherit it."""


@dataclass(frozen=True)
class RandomWeights:
    """Gives networks random weights, which depend on the run's seed, the network and the name ``stream`` alone."""

    inputs: Inputs
    stream: str

    def inherit(self, arch: Arch) -> Subnet:
        """Returns the network of an arch with random weights."""
        with randomness.seeded(self.inputs.seed, arch.id, self.stream):
            return build(self.inputs.of(arch).layout, arch)

    def take_back(self, arch: Arch, network: Subnet) -> None:
        """Does nothing: random weights are nobody's."""


def network_folder(place: str, arch: Arch) -> str:
    """Returns the folder of a network in a run, with a slash at its end; ``place`` is that of its front."""
    return f"{place}archs/{arch.id}/"


def train_picks(inputs: Inputs, training: Origin, archs: Sequence[Arch], place: str, recipe: FineTuningRecipe,
                progress: Progress) -> None:
    """Trains every pick and writes its weights.

    With ``grow`` they come from the smallest to the largest: each inherits what those before have learned, as far as it
    has weights in common with them. The smaller, the more epochs then: each computes as much, the first the most. With
    distillation the largest comes first and then teaches the others; with ``assistant`` each is taught by the next
    larger one, with ``born-again`` by itself, trained before.
    """
    ordered = sorted(archs, key=lambda arch: (-multiply_adds(inputs, arch), arch.id))
    train = partial(_train, inputs, training, place=place, recipe=recipe, progress=progress)

    def trained(arch: Arch, file: str = WEIGHTS) -> Subnet:
        return placement.placed(load_weights(inputs, arch, place, file), inputs.device)

    if recipe.epochs and recipe.distill == GROW:
        _grow(inputs, training, ordered[::-1], place, recipe, progress)
    elif not recipe.epochs or recipe.distill_weight == 0:
        train(ordered)
    elif recipe.distill == "born-again":
        train(ordered, file=FIRST)
        train(ordered, teacher_of=lambda arch: trained(arch, FIRST))
    elif recipe.distill == "assistant":
        larger = dict(zip(ordered[1:], ordered, strict=False))
        for arch in ordered:
            train([arch], teacher_of=lambda arch: trained(larger[arch]) if arch in larger else None)
    else:
        train(ordered[:1])
        if len(ordered) > 1:
            teacher = trained(ordered[0])
            train(ordered, teacher_of=lambda _: teacher)


def _grow(inputs: Inputs, training: Origin, archs: Sequence[Arch], place: str, recipe: FineTuningRecipe,
          progress: Progress) -> None:
    """Trains networks one after the other; each gives its weights back to those that the next one inherits."""
    shares = [1.0] * len(archs)
    if recipe.depends_on_size(inputs.config):
        shares = shares_of_growth([multiply_adds(inputs, arch) for arch in archs])
    epochs = {arch: max(1, round(recipe.epochs * share)) for arch, share in zip(archs, shares, strict=True)}
    left = [arch for arch in archs if not inputs.run.has(network_folder(place, arch) + WEIGHTS)]
    shown = progress if left else NoProgress()
    with shown.task("fine-tune", sum(epochs[arch] for arch in left)) as task:
        for arch in archs:
            of_arch = recipe.model_copy(update={"epochs": epochs[arch]})
            _train(inputs, training, [arch], place, of_arch, Joined(task, progress))
            training.take_back(arch, load_weights(inputs, arch, place))


def train_known(inputs: Inputs, archs: Sequence[Arch], place: str, recipe: FineTuningRecipe,
                progress: Progress) -> None:
    """Trains known networks from random weights and labels alone, side by side, and writes their weights.

    They are those that ``nas train`` gives by the same recipe.
    """
    _train(inputs, RandomWeights(inputs, "weights"), archs, place, recipe, progress)


def train_until(inputs: Inputs, training: Origin, archs: Sequence[Arch], of: int, place: str, recipe: FineTuningRecipe,
                epochs: int, ended: Ended, progress: Progress) -> None:
    """Trains picks side by side to the end of so many ``epochs``, from labels alone, and calls ``ended`` for each.

    They are left of ``of`` that a call which nothing interrupts would train. What goes on later continues from there.
    """
    _train_until(inputs, training, archs, of, place, recipe, progress, _no_teacher, WEIGHTS, epochs, ended)


def load_weights(inputs: Inputs, arch: Arch, place: str, file: str = WEIGHTS) -> Subnet:
    """Loads a network with its trained weights, in eval mode; raises UserError if their file is broken."""
    path = inputs.run.file(network_folder(place, arch) + file)
    model = build(inputs.of(arch).layout, arch)
    try:
        model.load_state_dict(safetensors.torch.load(path.read_bytes()))
    except Exception as error:  # of whatever kind a broken file makes
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path}: not the weights of {arch.id} ({reason}); delete it, then the same command") from None
    return model.eval()


class _Stopped(Exception):
    """Ends the training of a pick at its last checkpoint, because another has failed or the user interrupted."""


def _train(inputs: Inputs, training: Origin, archs: Sequence[Arch], place: str, recipe: FineTuningRecipe,
           progress: Progress, teacher_of: Callable[[Arch], nn.Module | None] = _no_teacher,
           file: str = WEIGHTS) -> None:
    """Trains those of the networks whose weights are not in the run yet.

    How many threads each gets depends on all of ``archs``, so that a run that was continued ends the same.
    """
    left = [arch for arch in archs if not inputs.run.has(network_folder(place, arch) + file)]

    def write(arch: Arch, tuning: FineTuning, lock: threading.Lock) -> None:
        _write_weights(inputs, tuning, network_folder(place, arch), file)

    _train_until(inputs, training, left, len(archs), place, recipe, progress, teacher_of, file, recipe.epochs, write)


def _train_until(inputs: Inputs, training: Origin, archs: Sequence[Arch], of: int, place: str, recipe: FineTuningRecipe,
                 progress: Progress, teacher_of: Callable[[Arch], nn.Module | None], file: str, epochs: int,
                 ended: Ended) -> None:
    """Trains networks, of ``of`` that share the threads, to the end of so many epochs, and calls ``ended`` for each."""
    tunings = [_make_tuning(inputs, training, arch, place, recipe, teacher_of(arch), file) for arch in archs]
    if not tunings:
        return
    threads = torch.get_num_threads()
    at_once = min(of, threads) if recipe.epochs and inputs.device.type == "cpu" else 1
    alone = at_once == 1 or any(_draws_globally(tuning.model, inputs) for tuning in tunings)
    what = "fine-tune" if recipe.epochs else "weights"
    with progress.task(what, len(archs) * epochs, sum(tuning.done for tuning in tunings)) as task:
        shared = _Shared(task, {tuning.name: float(tuning.done) for tuning in tunings})

        def train(arch: Arch, tuning: FineTuning) -> None:
            _tune(inputs, tuning, network_folder(place, arch) + CHECKPOINTS[file], epochs, shared, alone)
            ended(arch, tuning, shared.lock)

        work = [partial(train, arch, tuning) for arch, tuning in zip(archs, tunings, strict=True)]
        if alone:
            for job in work:
                job()
        else:
            side_by_side(work, at_once, shared.stop)


def side_by_side(work: Sequence[Callable[[], None]], at_once: int, stop: threading.Event) -> None:
    """Calls the functions ``work`` in threads, ``at_once`` at a time, each with its share of PyTorch's own threads.

    Where one raises an error, ``stop`` is set, which the others look at; once they have ended, the error is raised.
    """
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(threads // at_once,))
    try:
        futures = [pool.submit(job) for job in work]
        wait(futures, return_when=FIRST_EXCEPTION)
    finally:  # also where the user interrupts
        stop.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
    for future in futures:
        if not future.cancelled() and (error := future.exception()) and not isinstance(error, _Stopped):
            raise error


def _make_tuning(inputs: Inputs, training: Origin, arch: Arch, place: str, recipe: FineTuningRecipe,
                 teacher: nn.Module | None, file: str) -> FineTuning:
    """Makes the fine-tuning of a network: with the weights it begins with, or from its last checkpoint on."""
    run, data, name = inputs.run, inputs.data, network_folder(place, arch)
    run.write_json(f"{name}arch.json", arch.to_json())
    model = placement.placed(training.inherit(arch), inputs.device)
    id = arch.id if file == WEIGHTS else f"{arch.id}/first"
    tuning = FineTuning(id, model, teacher, data, recipe, inputs.seed, inputs.device)
    if run.has(name + CHECKPOINTS[file]):
        checkpoint.resume(run, name + CHECKPOINTS[file], tuning)
    else:
        evaluation.recalibrate(model, evaluation.calibration_images(data, 1000, 128, inputs.device, inputs.seed))
    return tuning


def _draws_globally(model: nn.Module, inputs: Inputs) -> bool:
    """Tells whether training draws from PyTorch's global generator, as an operator of the user's own may."""
    trial, before = copy.deepcopy(model).train(), torch.get_rng_state()
    images = torch.zeros(2, inputs.data.in_ch, inputs.data.size, inputs.data.size, device=inputs.device)
    with torch.no_grad(), randomness.drawing_from(trial, randomness.generator("trial", device=inputs.device)):
        trial(images)
    return not torch.equal(before, torch.get_rng_state())


class _Shared:
    """Holds what the threads of a fine-tuning share: the progress bar, the lock of the log, and the event ``stop``."""

    def __init__(self, task: Task, epochs: dict[str, float]) -> None:
        self.stop, self.lock = threading.Event(), threading.Lock()
        self._task, self._epochs = task, epochs

    def reach(self, name: str, epochs: int, step: int, of: int) -> None:
        """Moves the bar to where a network is: ``epochs``, and ``step`` of the next. Raises _Stopped if asked to."""
        if self.stop.is_set():
            raise _Stopped
        with self.lock:
            self._epochs[name] = epochs + step / of
            self._task.advance(sum(self._epochs.values()) - self._task.done)


def _tune(inputs: Inputs, tuning: FineTuning, kept: str, epochs: int, shared: _Shared, alone: bool) -> None:
    """Trains a network to the end of so many epochs, each ``kept`` in a file of the run.

    One that is ``alone`` seeds PyTorch's global generator.
    """
    while tuning.done < epochs and not tuning.finished:
        began = time.monotonic()
        with randomness.seeded(inputs.seed, tuning.name, tuning.done) if alone else contextlib.nullcontext():
            epoch = tuning.epoch(partial(shared.reach, tuning.name, tuning.done))
        with shared.lock:
            inputs.run.log(events.FineTuned(**vars(epoch), id=tuning.name, seconds=round(time.monotonic() - began, 3)))
        checkpoint.save(inputs.run, kept, tuning)


def _write_weights(inputs: Inputs, tuning: FineTuning, name: str, file: str) -> None:
    """Writes the weights of a network that is trained to the end, in place of its checkpoint."""
    if tuning.recipe.epochs:
        images = evaluation.calibration_images(inputs.data, 2000, 128, inputs.device, inputs.seed)
        evaluation.recalibrate(tuning.result, images)
    weights = {key: value.contiguous().cpu() for key, value in tuning.result.state_dict().items()}
    inputs.run.write(name + file, lambda out: out.write(safetensors.torch.save(weights)))
    inputs.run.file(name + CHECKPOINTS[file]).unlink(missing_ok=True)
