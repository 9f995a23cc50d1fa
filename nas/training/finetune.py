"""Fine-tunes one picked network: inherited weights, batch norms recomputed, trained on train + gate, distilled."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.subnet import Subnet
from nas.training import evaluation, optimization, placement, randomness
from nas.training.data import Data, batches
from nas.training.distill import METHODS, Distiller, NetOutput
from nas.training.ema import Average
from nas.training.epochs import TuningEpoch, epoch_size
from nas.training.mixing import mixed
from nas.training.plateau import flat_at
from nas.training.recipes import FineTuningRecipe
from nas.training.stepper import Stepper

LOSSES = ("loss", "label_loss")  # figures whose means an epoch returns
WATCHED = 500  # held-out images that say after every epoch whether it was worth it


class FineTuning:
    """Trains one network; resumable between epochs, all randomness drawn from (seed, name, epoch)."""

    def __init__(self, name: str, model: nn.Module, teacher: nn.Module | None, data: Data, recipe: FineTuningRecipe,
                 seed: int, device: torch.device) -> None:
        self.name, self.data, self.recipe, self.seed, self.device = name, data, recipe, seed, device
        self.model = placement.placed(model, device)
        self.teacher = teacher.eval() if teacher is not None and recipe.distill_weight > 0 else None
        self.distiller: Distiller | None = None
        if self.teacher is not None:
            with randomness.seeded(seed, name, "distill"):
                made = METHODS[recipe.distill](model, self.teacher, recipe.distill_weight, recipe.label_smoothing)
            self.distiller, self.teacher = placement.placed(made, device), made.peer() or self.teacher
        self.trained: nn.Module = self.model
        if self.distiller is not None and next(self.distiller.parameters(), None) is not None:
            self.trained = nn.ModuleList([self.model, self.distiller])
        self.optimizer = optimization.optimizer(self.trained, recipe.lr, recipe.weight_decay)
        self.stepper = Stepper(device, recipe.accumulate, recipe.amp)
        self.average = Average(self.model, recipe.ema) if recipe.ema else None
        self.done, self.progress = 0, 0.0
        self.held_out: list[float] = []  # loss after each epoch

    @property
    def flat_at(self) -> int | None:
        """Returns the epoch behind which held-out loss was flat first, while the learning rate was held; None if never.
        """
        return flat_at(self.held_out[:self.recipe.epochs // 2])

    @property
    def epochs(self) -> int:
        """Returns how many epochs there are: those of the recipe or, if it is patient, fewer where the loss was flat.

        The learning rate then falls in as many epochs as it was held.
        """
        held = self.flat_at if self.recipe.patient else None
        return self.recipe.epochs if held is None else 2 * held

    @property
    def finished(self) -> bool:
        return self.done >= self.epochs

    @property
    def result(self) -> nn.Module:
        """Returns the network that is judged and delivered: that of the averaged weights, where they are kept."""
        return self.average.net if self.average else self.model

    def epoch(self, on_step: Callable[[int, int], None] = lambda step, of: None) -> TuningEpoch:
        """Runs the next epoch."""
        recipe, names = self.recipe, (self.seed, self.name, self.done)
        learn, epochs = self.data.learn, self.epochs
        steps, total = max(1, epoch_size(len(learn), recipe.epoch_images) // recipe.batch), dict[str, float]()
        self.trained.train()
        train = batches(learn, self.data, recipe.batch, generator=randomness.generator(*names),
                        augment=recipe.augmentation, most=recipe.epoch_images)
        pairs = random.Random(randomness.seed_of(*names, "mix"))
        with randomness.drawing_from(self.trained, randomness.generator(*names, "dropout", device=self.device)):
            for i, (images, labels) in enumerate(train):
                self.progress = (self.done + i / steps) / epochs
                optimization.set_lr(self.optimizer, self.rate())
                batch = images.to(self.device), labels.to(self.device)
                if recipe.mix != "none":
                    batch = mixed(*batch, recipe.mix, len(self.data.classes), pairs)
                figures = self.stepper.step(self._loss, batch, self.trained, self.optimizer)
                if self.average:
                    self.average.follow(self.model)
                total = {name: total.get(name, 0.0) + figures[name] for name in LOSSES if name in figures}
                on_step(i + 1, steps)
        self.done += 1
        held_out = self.judge()
        self.held_out += [] if held_out is None else [held_out]
        return TuningEpoch(epoch=self.done - 1, held_out=held_out,
                           **{name: round(value / steps, 6) for name, value in total.items()})

    def rate(self) -> float:
        """Returns the learning rate at the present progress of the training."""
        return optimization.held(self.progress, self.recipe.lr)

    def judge(self) -> float | None:
        """Returns the loss on held-out images, by the batch norm statistics of training."""
        split = evaluation.part_of(self.data.select, WATCHED, self.seed, "watched")
        self.model.eval()
        return round(evaluation.evaluate(self.model, split, self.data, self.device).loss, 6) if len(split) else None

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done, "trained": self.trained.state_dict(), "stepper": self.stepper.state_dict(),
                "optimizer": optimization.optimizer_state(self.trained, self.optimizer),
                "average": self.average.state_dict() if self.average else None, "held_out": self.held_out}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a ``state_dict``, on a freshly built object."""
        self.trained.load_state_dict(state["trained"])
        optimization.load_optimizer_state(self.trained, self.optimizer, state["optimizer"])
        self.stepper.load_state_dict(state["stepper"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.done, self.held_out = state["done"], list(state["held_out"])

    def _loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if self.distiller is None or self.teacher is None:
            student = NetOutput(self.stepper.logits(self.model, images))
            loss = self._label_loss(student, labels)
        else:
            student = self._said(self.model, images)
            with nullcontext() if self.distiller.peer() else torch.no_grad():
                teacher = self._said(self.teacher, images)
            loss = self.distiller.loss(student, teacher, labels, self.progress)
        return loss, {"loss": loss, "label_loss": self._label_loss(student, labels).detach()}

    def _label_loss(self, student: NetOutput, labels: Tensor) -> Tensor:
        return F.cross_entropy(student.logits, labels, label_smoothing=self.recipe.label_smoothing)

    def _said(self, net: nn.Module, images: Tensor) -> NetOutput:
        if self.distiller is None or not self.distiller.reads_maps:
            return NetOutput(self.stepper.logits(net, images))
        assert isinstance(net, Subnet)
        with self.stepper.casting():
            maps = net.features(images)
            logits: Tensor = net.head(maps[-1])
        return NetOutput(logits.float(), tuple(map_.float() for map_ in maps))
