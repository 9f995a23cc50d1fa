"""What every training loop shares: seeds from names, one-cycle learning rate, optimizer, judging, BN recomputation."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.errors import UserError
from nas.ops.layers import Dropout
from nas.train.augment import augmented
from nas.train.data import Data, Split, eval_batches, normalise

RAMP = 0.1  # share of a schedule in which the learning rate rises


@dataclass(frozen=True)
class Judged:
    """Mean cross-entropy and number of right answers of ``n`` held-out images."""

    loss: float
    right: float
    n: int

    @property
    def accuracy(self) -> float:
        return self.right / self.n

    @property
    def accuracy_se(self) -> float:
        """Standard error of the accuracy (binomial)."""
        return standard_error(self.accuracy, self.n)


def standard_error(accuracy: float, n: int) -> float:
    """Of an accuracy on ``n`` images (binomial); views of them are no further images."""
    return math.sqrt(accuracy * (1 - accuracy) / n)


def seed_of(*names: object) -> int:
    """A 63-bit seed from names: randomness without a state to store, so that a continued run draws the same."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*names: object, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed_of(*names))


@contextmanager
def seeded(*names: object) -> Iterator[None]:
    """PyTorch's own randomness (initial weights, dropout) from names, restored afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(*names))
        yield


@contextmanager
def drawing_from(model: nn.Module, generator: torch.Generator) -> Iterator[None]:
    """Dropout of ``model`` from its own generator: what trains beside it does not change what it draws."""
    layers = [module for module in model.modules() if isinstance(module, Dropout)]
    for layer in layers:
        layer.generator = generator
    try:
        yield
    finally:
        for layer in layers:
            layer.generator = None


def one_cycle(progress: float, peak: float) -> float:
    """Learning rate at ``progress`` in [0, 1]: a linear ramp, then a cosine to zero."""
    if progress < RAMP:
        return peak * (0.05 + 0.95 * progress / RAMP)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - RAMP) / (1 - RAMP))))


def optimizer(module: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW without decay on biases and batch norms."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    groups = [{"params": [p for _, p in named if p.dim() > 1], "weight_decay": weight_decay},
              {"params": [p for _, p in named if p.dim() <= 1], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), fused=all(p.is_floating_point() for _, p in named))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Optimizer state by parameter name, so that it survives pruning and a new order of parameters."""
    return {name: dict(optimizer.state[p]) for name, p in module.named_parameters() if p in optimizer.state}


def load_optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Takes over what is there for the parameters that are left. Raises ValueError for moments of another shape."""
    for name, p in module.named_parameters():
        if name in state:
            if any(isinstance(v, Tensor) and v.dim() and v.shape != p.shape for v in state[name].values()):
                raise ValueError(f"optimizer state of {name} is of another shape")
            optimizer.state[p] = {k: v.to(p.device) if isinstance(v, Tensor) else v for k, v in state[name].items()}


def recalibrate(model: nn.Module, images: Iterable[Tensor], part: nn.Module | None = None) -> None:
    """Recomputes BN statistics as the plain average over batches of images [N, C, S, S]; always before judging.

    ``part`` of the model alone, if it is given.
    """
    norms = [m for m in (part or model).modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [m.momentum for m in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for batch in images:
            model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def calibration_images(data: Data, count: int, batch: int, device: torch.device, seed: int) -> list[Tensor]:
    """A fixed draw of training images, normalised, without augmentation; none is alone in its batch but an only one.

    A batch norm behind a global mean has no statistics of one image, and others have poor ones.
    """
    chosen = torch.randperm(len(data.train), generator=generator(seed, "calibration"))[:count]
    images = data.train.images[chosen]
    parts = torch.split(images, batch)
    return [normalise(part, data).to(device) for part in parts if len(part) > 1 or len(parts) == 1]


def evaluate(model: Callable[[Tensor], Tensor], split: Split, data: Data, device: torch.device,
             batch: int = 256) -> Judged:
    """Cross-entropy and accuracy over a whole split, without augmentation."""
    loss, right = 0.0, 0
    with torch.inference_mode():
        for images, labels in eval_batches(split, data, batch):
            logits = model(images.to(device)).float().cpu()
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            right += int((logits.argmax(1) == labels).sum())
    return Judged(loss / len(split), right, len(split))


def evaluate_shifted(model: Callable[[Tensor], Tensor], split: Split, data: Data, device: torch.device,
                     augment: str, seed: int, images: int = 1000) -> Judged:
    """As ``evaluate``; a split of fewer than ``images`` is seen several times, at other shifts, to tell networks apart.

    Figures are means over the views, ``n`` and the standard error those of the split.
    """
    judged = [evaluate(model, view, data, device) for view in views(split, augment, seed, images)]
    right = sum(one.right for one in judged) / len(judged)
    return Judged(sum(one.loss for one in judged) / len(judged), right, len(split))


def views(split: Split, augment: str, seed: int, images: int = 1000) -> Iterator[Split]:
    """The split and, where it is of fewer than ``images``, so many times the same at other shifts."""
    yield split
    for view in range(1, -(-images // len(split))):
        yield Split(augmented(split.images, augment, generator(seed, "view", view)), split.labels)


def part_of(split: Split, count: int, *names: object) -> Split:
    """A fixed random part of a split (all of it if it is smaller)."""
    chosen = torch.randperm(len(split), generator=generator(*names))[:count]
    return Split(split.images[chosen], split.labels[chosen])


M = TypeVar("M", bound=nn.Module)


def placed(module: M, device: torch.device) -> M:
    """On the device and in channels_last, which doubles the speed of depthwise convolutions on a CPU."""
    return module.to(device).to(memory_format=torch.channels_last)


def device_of(train_on: str) -> torch.device:
    """``auto`` is CUDA where there is one. Raises UserError for ``cuda`` where there is none."""
    if train_on == "cuda" and not torch.cuda.is_available():
        raise UserError("--train-on cuda: PyTorch sees no GPU here; use --train-on cpu")
    return torch.device("cuda" if train_on != "cpu" and torch.cuda.is_available() else "cpu")
