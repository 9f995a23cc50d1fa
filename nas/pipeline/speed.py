"""Measures how long networks take to train here, before anything is planned: a few steps of a few of them.

Seconds of an image grow with a network's multiply-adds, but not in proportion: a small map keeps a processor waiting.
So some networks between the smallest and the largest are timed, and others lie on the line between their neighbours.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import nn

from nas import sampling
from nas.arch import Arch
from nas.decision import largest, smallest
from nas.pipeline.finetune import RandomWeights, side_by_side
from nas.pipeline.inputs import Inputs, multiply_adds
from nas.record import Record
from nas.training import optimization, placement, randomness
from nas.training.augmentation import Augmentation
from nas.training.data import batches
from nas.training.stepper import Stepper

SPEED = "speed.json"
BETWEEN = 3  # networks that are timed beside the smallest and the largest
STEPS, LEAST_S, MOST_S = 4, 0.4, 4.0  # of a network: at least so many steps and seconds, if that is not too long
DRAWN = 200  # networks that those between the ends are chosen from


class Speed(Record):
    """Holds the seconds that an image takes in training, of networks by their multiply-adds in ascending order.

    ``alone`` is of a network that has all threads, ``beside`` of several that share them, as picks do: the seconds of
    one image of any of these.
    """

    macs: list[float]
    alone: list[float]
    beside: list[float]

    def of_supernet(self, macs: float) -> float:
        """Returns the seconds of an image in a network of so many multiply-adds that trains alone."""
        return float(np.interp(macs, self.macs, self.alone))

    def of_pick(self, macs: float) -> float:
        """Returns the seconds of an image in a network that trains beside others."""
        return float(np.interp(macs, self.macs, self.beside))


def measured_speed(inputs: Inputs) -> Speed:
    """Returns the speed that an earlier call of the run has measured; the first call measures it."""
    return inputs.run.record(SPEED, Speed, lambda: measure_speed(inputs, inputs.config.train.batch))


def measure_speed(inputs: Inputs, batch: int) -> Speed:
    """Times training steps of some networks of a run's space, from the smallest to the largest."""
    archs = _between_ends(inputs)
    threads = torch.get_num_threads()
    alone = [time_training(inputs, arch, batch) for arch in archs.values()]
    at_once = threads if inputs.device.type == "cpu" else 1
    beside = [_side_by_side(inputs, arch, batch, at_once) for arch in archs.values()] if at_once > 1 else alone
    return Speed(macs=list(archs), alone=_rising(alone), beside=_rising(beside))


def time_training(inputs: Inputs, arch: Arch, batch: int) -> float:
    """Returns the seconds that an image takes in the training of one network that has all threads."""
    return _seconds_an_image(inputs, _model(inputs, arch), batch)


def _between_ends(inputs: Inputs) -> dict[float, Arch]:
    """Returns networks from the smallest to the largest by their multiply-adds, in even steps as far as some lie there.
    """
    prices, rng = next(iter(inputs.prices.values())), random.Random(0)
    ends = [smallest(inputs.layout, prices), largest(inputs.layout, prices)]
    drawn = [sampling.sample_thinned(inputs.layout, rng) for _ in range(DRAWN)]
    counted = {multiply_adds(inputs, arch): arch for arch in [*drawn, *ends]}
    low, high = (multiply_adds(inputs, arch) for arch in ends)
    steps = np.linspace(min(low, high), max(low, high), BETWEEN + 2)
    counts = np.array(sorted(counted))
    nearest = {float(counts[np.abs(counts - step).argmin()]) for step in steps}
    return {count: counted[count] for count in sorted(nearest)}


def _rising(seconds: Sequence[float]) -> list[float]:
    """Returns seconds that do not fall with the size of the network, as only noise makes them."""
    return [round(float(value), 9) for value in np.maximum.accumulate(seconds)]


def _side_by_side(inputs: Inputs, arch: Arch, batch: int, at_once: int) -> float:
    """Returns the seconds of an image where so many copies of a network train at once, each on its share of threads."""
    results: list[float] = []
    models = [_model(inputs, arch) for _ in range(at_once)]

    def run(model: nn.Module) -> None:
        results.append(_seconds_an_image(inputs, model, batch))

    side_by_side([partial(run, model) for model in models], at_once, threading.Event())
    return statistics.mean(results) / at_once


def _model(inputs: Inputs, arch: Arch) -> nn.Module:
    return placement.placed(RandomWeights(inputs, "speed").inherit(arch), inputs.device)


def _seconds_an_image(inputs: Inputs, model: nn.Module, batch: int,
                      clock: Callable[[], float] = time.perf_counter) -> float:
    """Returns the median seconds of a training step, without the first, which also warms caches up, by its images."""
    data, stepper = inputs.data, Stepper(inputs.device, 1, inputs.config.train.amp)
    optimizer = optimization.optimizer(model.train(), 1e-4, 0.0)
    loss, seconds, passes = nn.CrossEntropyLoss(), list[float](), 0

    def loss_of(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return loss(stepper.logits(model, images), labels), {}

    while True:
        drawn = batches(data.train, data, batch, generator=randomness.generator("speed", passes),
                        augment=Augmentation.from_config(inputs.config.train, data.augment))
        began = clock()
        for images, labels in drawn:
            stepper.step(loss_of, (images.to(inputs.device), labels.to(inputs.device)), model, optimizer)
            seconds.append(clock() - began)
            total = sum(seconds)
            if (len(seconds) >= STEPS and total >= LEAST_S) or (len(seconds) > 1 and total >= MOST_S):
                return statistics.median(seconds[1:]) / min(batch, len(data.train))
            began = clock()
        passes += 1
