"""Lets the best networks of a budget race: all are fine-tuned a while, the better half goes on, until one is left.

Inherited loss ranks well over all and badly among the best; some epochs of their own tell these apart. It is successive
halving (Jamieson and Talwalkar, AISTATS 2016) on the selection split.
"""

from __future__ import annotations

import copy
import math
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence

from nas.arch import Arch
from nas.pipeline.finetune import network_folder, train_until
from nas.pipeline.inputs import Inputs
from nas.pipeline.recheck import figures_of
from nas.progress import Progress
from nas.run import events
from nas.run.records import Pick, Picks
from nas.select.evaluation import by_loss
from nas.training import evaluation
from nas.training.finetune import FineTuning
from nas.training.recipes import FineTuningRecipe
from nas.training.supernet_training import SupernetTraining

Compare = Callable[[Sequence[Arch], int], Mapping[Arch, float]]  # networks, epochs -> loss of each after these


def rounds_of(finalists: int, epochs: int) -> list[int]:
    """Returns the epochs at whose ends the finalists are compared: from a third of all to two thirds, evenly."""
    rounds = max(1, math.ceil(math.log2(finalists))) if finalists > 1 else 0
    shares = [(1 + place / max(1, rounds - 1)) / 3 for place in range(rounds)]
    return [max(1, math.ceil(epochs * share - 1e-9)) for share in shares]


def race(groups: Sequence[Sequence[Arch]], epochs: int, compare: Compare) -> list[Arch]:
    """Returns the winner of each group: after every round its better half goes on, by the losses of ``compare``.

    A loss that is no number comes last; of equal ones the network stays that was first in its group. Networks of which
    a group has one alone are not compared.
    """
    left = [list(group) for group in groups]
    for end in rounds_of(max(map(len, left), default=1), epochs):
        racing = list(dict.fromkeys(arch for group in left if len(group) > 1 for arch in group))
        losses = compare(racing, end) if racing else {}
        left = [_better_half(group, losses) if len(group) > 1 else group for group in left]
    return [group[0] for group in left]


def _better_half(group: Sequence[Arch], losses: Mapping[Arch, float]) -> list[Arch]:
    """Returns the better half of a group, best first; of an odd number the larger half."""
    return by_loss(group, losses)[:math.ceil(len(group) / 2)]


def race_picks(inputs: Inputs, training: SupernetTraining, picks: Picks, place: str, recipe: FineTuningRecipe,
               progress: Progress) -> Picks:
    """Fine-tunes the finalists of every budget in a race, from labels alone, and returns the picks that won.

    What a network was worth stays in the run's log, and how far the winners are trained in their checkpoints, so that a
    later call continues. Those that lose leave nothing but their lines.
    """
    groups = [[pick.arch, *pick.others] for pick in picks.budgets]
    runners = _Runners(inputs, training, place, recipe, progress)
    winners = race(groups, recipe.epochs, runners.compare)
    for arch in {arch for group in groups for arch in group} - set(winners):
        shutil.rmtree(inputs.run.file(network_folder(place, arch)), ignore_errors=True)
    return picks.model_copy(update={"budgets": [
        _with_winner(inputs, pick, arch) for pick, arch in zip(picks.budgets, winners, strict=True)]})


def _with_winner(inputs: Inputs, pick: Pick, arch: Arch) -> Pick:
    """Returns the pick of a budget with the network that won its race."""
    changed = {} if arch == pick.arch else {**figures_of(inputs, pick, arch), "measured_ms": {}}
    return pick.model_copy(update={**changed, "others": []})


class _Runners:
    """Trains finalists from round to round and judges them on the selection split; remembers that in the run's log."""

    def __init__(self, inputs: Inputs, training: SupernetTraining, place: str, recipe: FineTuningRecipe,
                 progress: Progress) -> None:
        self.inputs, self.training, self.place, self.recipe = inputs, training, place, recipe
        self.progress = progress
        self.losses = {(event.id, event.epochs): event.loss for event in inputs.run.events(events.Raced)
                       if event.place == place}

    def compare(self, archs: Sequence[Arch], epochs: int) -> dict[Arch, float]:
        """Returns the loss of each network after so many epochs; trains those that were not judged then."""
        for at in self.inputs.every:
            of_size = [arch for arch in archs if arch.size == at.size]
            new = [arch for arch in of_size if (arch.id, epochs) not in self.losses]
            train_until(at, self.training, new, len(of_size), self.place, self.recipe, epochs, self._judge,
                        self.progress)
        return {arch: self.losses[arch.id, epochs] for arch in archs}

    def _judge(self, arch: Arch, tuning: FineTuning, lock: threading.Lock) -> None:
        """Judges a network on a copy of it, with batch norms recomputed."""
        at, model = self.inputs.of(arch), copy.deepcopy(tuning.result)
        data, augment = at.data, self.recipe.augment
        evaluation.recalibrate(model, evaluation.calibration_images(data, 1000, 128, at.device, at.seed))
        judged = evaluation.evaluate_shifted(model, data.select, data, at.device, augment, at.seed)
        with lock:
            self.losses[arch.id, tuning.done] = judged.loss
            at.run.log(events.Raced(id=arch.id, place=self.place, epochs=tuning.done, loss=judged.loss,
                                    accuracy=judged.accuracy, accuracy_se=judged.accuracy_se))
