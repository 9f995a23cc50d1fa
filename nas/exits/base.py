"""Defines what a method of training exits is, and keeps the registry that makes one by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from nas.config.search import Setting
from nas.errors import UserError
from nas.exits.net import Combine, MultiExit, Network
from nas.files import nearest


class Method(nn.Module):
    """Trains a network with exits by the loss of a subclass; parameters beside ``net`` are for training only."""

    frozen = False  # whether the backbone stays as it is, and only what hangs on it learns
    labels = True  # whether it needs to know what the images show

    def __init__(self, net: Network, combine: Combine | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not net.exits:
            raise UserError(f"{type(self).__name__.lower()}: the network has no exits to train")
        self.net, self.label_smoothing = MultiExit(net, combine), label_smoothing

    @property
    def exits(self) -> int:
        """Returns the number of predictions: exits and the head."""
        return len(self.net.net.exits) + 1

    def backbone(self) -> list[nn.Module]:
        """Returns the parts of the network without exits: what runs up to each exit, the rest, and the head."""
        stages = self.net.net.stages()
        return [*(trunk for trunk, _ in stages), stages[-1][1]]

    def phases(self) -> int:
        """Returns how many parts of the training follow each other, each an epoch at least."""
        return 1

    def cycle(self, progress: float) -> float:
        """Returns how far the learning rate is in its cycle at ``progress`` of the training, both from 0 to 1."""
        return progress

    def forward(self, x: Tensor) -> list[Tensor]:
        """Returns the predictions [N, classes] of every exit, the head's last."""
        return self.net(x)

    def loss(self, images: Tensor, labels: Tensor, progress: float) -> Tensor:
        """Returns the loss of a batch [N, C, S, S] with labels [N], at ``progress`` in [0, 1) of the training."""
        raise NotImplementedError

    def hard(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)


class Frozen(Method):
    """Leaves the backbone as it is, in eval mode, because its batch norms must not move; only the exits learn."""

    frozen = True

    def __init__(self, net: Network, combine: Combine | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__(net, combine, label_smoothing)
        for part in self.backbone():
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        for part in self.backbone():
            part.eval()
        return self


_METHODS: dict[str, type[Method]] = {}
M = TypeVar("M", bound=type[Method])


def register(name: str) -> Callable[[M], M]:
    """Registers the class of a method under a name, as a decorator; refuses a name that is taken."""

    def add(cls: M) -> M:
        if name in _METHODS:
            raise ValueError(f"exit training {name!r} is registered already")
        _METHODS[name] = cls
        return cls

    return add


def methods(frozen: bool = False) -> tuple[str, ...]:
    """Returns the names of all methods, or of those that leave the backbone as it is."""
    return tuple(sorted(name for name, cls in _METHODS.items() if cls.frozen or not frozen))


def settings(name: str) -> dict[str, Setting | None]:
    """Returns the settings of a method with their defaults. Raises UserError for an unknown name."""
    if name not in _METHODS:
        raise UserError(f"exits: unknown training {name!r}; {nearest(name, _METHODS)}")
    parameters = list(inspect.signature(_METHODS[name].__init__).parameters.values())[2:]
    return {p.name: p.default for p in parameters}


def method(name: str, net: Network, **values: Any) -> Method:
    """Makes the method called ``name`` around a network with exits.

    Raises UserError for settings that it does not know and values that it refuses.
    """
    known = settings(name)
    if unknown := sorted(values.keys() - known.keys()):
        raise UserError(f"exits: {name}: unknown setting {unknown[0]!r}; {nearest(unknown[0], known)}")
    for key, value in values.items():
        if isinstance(known[key], int | float) and not isinstance(value, int | float):
            raise UserError(f"exits: {name}: {key}: expected a number, got {value!r}")
    try:
        return _METHODS[name](net, **values)
    except ValueError as error:
        raise UserError(f"exits: {name}: {error}") from None
