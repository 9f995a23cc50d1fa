"""Leaves the slots of a space with the branches that learn fastest, where time is too short to train all side by side.

A branch learns from its share of the supernet's images. Where that is little, all networks but the largest stay at
chance, and what is selected among them is drawn by lot. So the branches race first: each has a network that takes it in
every slot, as people build them, of the same latency, that trains alone on as many images. It is successive halving
(Jamieson and Talwalkar, AISTATS 2016), by thirds, on images that selection and gates have.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from nas.arch import Arch, Op
from nas.decision import common_branches, grown, of_branches
from nas.pipeline.deliver import predicted_ms
from nas.pipeline.finetune import RandomWeights
from nas.pipeline.inputs import Inputs
from nas.pipeline.schedule import SUPERNET, minutes_of
from nas.pipeline.setup import cut_to_limits
from nas.pipeline.speed import time_training
from nas.plan import restrict
from nas.progress import Progress
from nas.run import events
from nas.run.branches import BRANCHES, Branches
from nas.run.schedule import SCHEDULE
from nas.select.evaluation import by_loss
from nas.training import evaluation, randomness
from nas.training.data import Split
from nas.training.finetune import FineTuning
from nas.training.recipes import PICK, FineTuningRecipe

RACE = 0.15  # share of the minutes
LEAST_IMAGES = 100_000  # for each branch: what a network alone would see in the supernet's time, some six times as many
LEAST_RACED = 2000  # images of a network in the first round, below which its loss says too little
THIRD = 3  # of the branches one of so many goes on after each round
ABOVE = 1.2  # times the latency that half of the branches reach, at which they race
STEPS = 16  # sizes of a network of one branch, of which one is chosen
CALIBRATED_ON = 1000  # training images, for batch norm statistics
JUDGED = 2000  # held-out images that say how a network did, at most


def with_few_branches(inputs: Inputs, progress: Progress) -> Inputs:
    """Returns the inputs with as many branches in each slot as there is time to train; as they are if that is all, and
    where there is not even time for a race.

    The first call lets the branches race and records which are left.
    """
    run, config, minutes = inputs.run, inputs.config, minutes_of(inputs.config)
    if minutes is None or config.init or run.has(BRANCHES) or run.has(SCHEDULE):
        return inputs
    branches, seconds = common_branches(inputs.layout), RACE * 60 * minutes
    if len(branches) <= (config.branches or 1):  # known before anything is timed
        return inputs
    archs = _networks(inputs, branches)
    image_s = time_training(inputs, next(iter(archs.values())), config.train.batch)  # about that of the others
    most = config.branches or max(1, int(SUPERNET * 60 * minutes / image_s) // LEAST_IMAGES)
    in_round = seconds / len(_rounds(len(archs), most) or [1]) / len(archs) / image_s
    if len(branches) <= most or (in_round < LEAST_RACED and config.branches is None):
        return inputs
    raced = run.record(BRANCHES, Branches, lambda: _race(inputs, archs, most, seconds, progress))
    progress.note(f"branches: {', '.join(raced.kept)} of {len(branches)}, whose networks learned most alone: the time "
                  f"is too short to train all in one supernet (branches={len(branches)} keeps them)")
    return cut_to_limits(inputs, progress)


def race(branches: Sequence[Op], most: int, losses_of: Callable[[Sequence[Op], int], Sequence[float]]) -> Branches:
    """Returns the ``most`` branches that win by the losses that ``losses_of`` gives for those that are in a round.

    A third goes on after each round, but never fewer than ``most``. A loss that is no number comes last, and of equal
    ones the branch stays that was first.
    """
    left, losses = list(branches), dict[str, float | None]()
    for place, count in enumerate(_rounds(len(branches), most)):
        judged = dict(zip(left, losses_of(left, place), strict=True))
        losses |= {str(branch): loss if math.isfinite(loss) else None for branch, loss in judged.items()}
        left = by_loss(left, judged)[:count]
    return Branches(kept=list(map(str, left)), losses=losses)


def _rounds(count: int, most: int) -> list[int]:
    """Returns how many branches are left after each round."""
    left = []
    while count > most:
        count = max(most, -(-count // THIRD))
        left.append(count)
    return left


def _race(inputs: Inputs, archs: Mapping[Op, Arch], most: int, seconds: float, progress: Progress) -> Branches:
    """Lets the branches race for so many seconds, of which the rounds have equal parts.

    What the log has of an earlier call is not trained again.
    """
    image_s = {branch: time_training(inputs, arch, inputs.config.train.batch) for branch, arch in archs.items()}
    before = {(event.branch, event.round): event for event in inputs.run.events(events.BranchRaced)}
    rounds = _rounds(len(archs), most)
    with progress.task("race of branches", sum([len(archs), *rounds[:-1]])) as task:

        def losses_of(left: Sequence[Op], place: int) -> list[float]:
            asked = seconds / len(rounds) / sum(image_s[branch] for branch in left)
            images = next((event.images for (_, of), event in before.items() if of == place), asked)
            for branch in left:
                key = str(branch), place
                if key not in before:
                    before[key] = events.BranchRaced(branch=str(branch), round=place, images=images,
                                                     loss=_loss(inputs, archs[branch], images))
                    inputs.run.log(before[key])
                task.advance(1)
            return [before[str(branch), place].loss for branch in left]

        return race(list(archs), most, losses_of)


def _networks(inputs: Inputs, branches: Sequence[Op]) -> dict[Op, Arch]:
    """Returns the networks that race: the largest of each branch within one latency, in equal proportions of widths and
    depth.

    That is a little above what half of the branches reach with their smallest networks. Those that are slower even so
    are left out: a front of them would begin where those of others have risen.
    """
    target, prices = next(iter(inputs.prices.items()))
    sizes = {branch: grown(restrict(inputs.layout, of_branches(inputs.layout, [branch])), prices, STEPS)
             for branch in branches}
    ms = {branch: [predicted_ms(inputs, arch)[target] for arch in archs] for branch, archs in sizes.items()}
    most_ms = ABOVE * statistics.median_low(row[0] for row in ms.values())
    return {branch: [arch for arch, taken in zip(archs, ms[branch], strict=True) if taken <= most_ms][-1]
            for branch, archs in sizes.items() if ms[branch][0] <= most_ms}


def _loss(inputs: Inputs, arch: Arch, images: float) -> float:
    """Trains a network from random weights on so many images, seen more than once if need be; returns its loss on those
    of the splits that gates and selection have.
    """
    data, config, seed = replace(inputs.data, learn=inputs.data.train), inputs.config, inputs.seed
    epochs = max(1, math.ceil(images / len(data.learn)))
    recipe = FineTuningRecipe.from_config(config, data, PICK).model_copy(update={
        "epochs": epochs, "epoch_images": max(config.train.batch, int(images / epochs)), "patient": False})
    tuning = FineTuning(f"{arch.id}/race", RandomWeights(inputs, "race").inherit(arch), None, data, recipe, seed,
                        inputs.device)
    while not tuning.finished:
        with randomness.seeded(seed, tuning.name, tuning.done):
            tuning.epoch()
    evaluation.recalibrate(tuning.result, evaluation.calibration_images(data, CALIBRATED_ON, 128, inputs.device, seed))
    held_out = Split(*(torch.cat([getattr(split, part) for split in (data.gate, data.select)])
                       for part in ("images", "labels")))
    return evaluation.evaluate(tuning.result, evaluation.part_of(held_out, JUDGED, seed, "race"), data,
                               inputs.device).loss
