"""Trains a network with early exits by any of ``nas.exits.methods``, and records what its exits answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nas.exits.base import Method
from nas.training import evaluation, optimization
from nas.training.data import Data, Split, eval_batches
from nas.training.finetune import FineTuning
from nas.training.recipes import FineTuningRecipe


class ExitTraining(FineTuning):
    """Trains as ``FineTuning`` does, with the loss of a method: resumable between epochs, with the same result.

    Methods compare answers with whole labels, so images are not mixed; weights are not averaged.
    """

    model: Method

    def __init__(self, name: str, method: Method, data: Data, recipe: FineTuningRecipe, seed: int,
                 device: torch.device) -> None:
        plain = recipe.model_copy(update={"mix": "none", "ema": 0.0})
        super().__init__(name, method, None, data, plain, seed, device)

    def rate(self) -> float:
        return optimization.one_cycle(self.model.cycle(self.progress), self.recipe.lr)

    def judge(self) -> float | None:
        return None  # several answers an image: which of them counts depends on thresholds

    def _loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self.model.loss(images, labels, self.progress)
        return loss, {"loss": loss}


def recalibrate(method: Method, images: Sequence[Tensor]) -> None:
    """Recomputes batch norm statistics from training images [N, C, S, S]; on a frozen backbone those of the exits."""
    evaluation.recalibrate(method, images, method.net.net.exits if method.frozen else None)


@dataclass(frozen=True)
class Recorded:
    """Holds what every exit answered on a split, ``logits`` [exits, n, classes] and ``labels`` [n], for policies."""

    logits: np.ndarray
    labels: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """Returns [exits, n]: whether each exit is right."""
        return np.asarray(self.logits.argmax(-1) == self.labels)


def record(model: Callable[[Tensor], list[Tensor]], split: Split, data: Data, device: torch.device,
           batch: int = 256) -> Recorded:
    """Records every exit's predictions over a split, not augmented, because thresholds are used on clean images."""
    logits, labels = [], []
    with torch.inference_mode():
        for images, truth in eval_batches(split, data, batch):
            logits.append(torch.stack(model(images.to(device))).float().cpu())
            labels.append(truth)
    return Recorded(torch.cat(logits, 1).numpy(), torch.cat(labels).numpy())
