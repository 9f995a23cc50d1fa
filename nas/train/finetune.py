"""Fine-tuning of one picked network: inherited weights, BN recomputed, trained on train + gate, distilled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.train import loop
from nas.train.data import Data, batches
from nas.train.distill import kd
from nas.train.stepper import Stepper

IMAGES, LEAST = 2300, 2  # when no epochs are given, a pick sees at least so many images and as many epochs


@dataclass(frozen=True)
class Recipe:
    """Settings of the loop; ``distill_weight`` is the teacher's share of the loss (0: labels alone)."""

    epochs: int
    batch: int
    lr: float
    weight_decay: float
    label_smoothing: float
    augment: str
    distill_weight: float = 0.5
    accumulate: int = 1
    amp: str = "none"


class FineTuning:
    """One network in training; resumable between epochs, all randomness drawn from (seed, name, epoch)."""

    def __init__(self, name: str, model: nn.Module, teacher: nn.Module | None, data: Data, recipe: Recipe, seed: int,
                 device: torch.device) -> None:
        self.name, self.data, self.recipe, self.seed, self.device = name, data, recipe, seed, device
        self.model = loop.placed(model, device)
        self.teacher = teacher.eval() if teacher is not None and recipe.distill_weight > 0 else None
        self.optimizer = loop.optimizer(self.model, recipe.lr, recipe.weight_decay)
        self.stepper = Stepper(device, recipe.accumulate, recipe.amp)
        self.done, self.progress = 0, 0.0

    @property
    def finished(self) -> bool:
        return self.done == self.recipe.epochs

    def epoch(self, on_step: Callable[[int, int], None] = lambda step, of: None) -> dict[str, Any]:
        """Runs the next epoch; returns its mean loss."""
        recipe, names = self.recipe, (self.seed, self.name, self.done)
        learn = self.data.learn
        steps, total = max(1, len(learn) // recipe.batch), 0.0
        self.model.train()
        train = batches(learn, self.data, recipe.batch, generator=loop.generator(*names), augment=recipe.augment)
        with loop.drawing_from(self.model, loop.generator(*names, "dropout", device=self.device)):
            for i, (images, labels) in enumerate(train):
                self.progress = (self.done + i / steps) / recipe.epochs
                loop.set_lr(self.optimizer, loop.one_cycle(self.cycle(self.progress), recipe.lr))
                batch = images.to(self.device), labels.to(self.device)
                total += self.stepper.step(self._loss, batch, self.model, self.optimizer)["loss"]
                on_step(i + 1, steps)
        self.done += 1
        return {"epoch": self.done - 1, "loss": round(total / steps, 6)}

    def cycle(self, progress: float) -> float:
        """How far the learning rate is in its cycle."""
        return progress

    def state(self) -> dict[str, Any]:
        return {"done": self.done, "model": self.model.state_dict(),
                "optimizer": loop.optimizer_state(self.model, self.optimizer), **self.stepper.state()}

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        loop.load_optimizer_state(self.model, self.optimizer, state["optimizer"])
        self.stepper.load(state)
        self.done = state["done"]

    def _loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self.stepper.logits(self.model, images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        if self.teacher is not None:
            with torch.no_grad():
                taught = self.stepper.logits(self.teacher, images)
            share = self.recipe.distill_weight
            loss = (1 - share) * loss + share * kd(logits, taught)
        return loss, {"loss": loss}
