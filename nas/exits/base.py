"""What a method of exit training is, and the registry that makes one by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from nas.errors import UserError
from nas.exits.net import Combine, MultiExit, Network
from nas.files import nearest


class Method(nn.Module):
    """Base of the methods. ``net`` is what is trained and kept; further parameters are needed in training only."""

    frozen = False  # whether the backbone stays as it is, and only what hangs on it learns
    labels = True  # whether it needs to know what the images show

    def __init__(self, net: Network, combine: Combine | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not net.exits:
            raise UserError(f"{type(self).__name__.lower()}: the network has no exits to train")
        self.net, self.label_smoothing = MultiExit(net, combine), label_smoothing

    @property
    def exits(self) -> int:
        """Number of predictions: exits and the head."""
        return len(self.net.net.exits) + 1

    def backbone(self) -> list[nn.Module]:
        """What was there before the exits: what runs up to each of them, the rest, and the head."""
        stages = self.net.net.stages()
        return [*(trunk for trunk, _ in stages), stages[-1][1]]

    def phases(self) -> int:
        """Parts of the training that follow each other, each an epoch at least."""
        return 1

    def cycle(self, progress: float) -> float:
        """How far the learning rate is in its cycle at ``progress`` of the training."""
        return progress

    def forward(self, x: Tensor) -> list[Tensor]:
        """Predictions [N, classes] of every exit, the head's last."""
        return self.net(x)

    def loss(self, images: Tensor, labels: Tensor, progress: float) -> Tensor:
        """Of a batch [N, C, S, S] with labels [N], at ``progress`` in [0, 1) of the training."""
        raise NotImplementedError

    def hard(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)


class Frozen(Method):
    """One under which the backbone stays as it is, in eval mode: its batch norms are not to move."""

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
    """Class decorator; a name that is taken is refused."""

    def add(cls: M) -> M:
        if name in _METHODS:
            raise ValueError(f"exit training {name!r} is registered already")
        _METHODS[name] = cls
        return cls

    return add


def methods(frozen: bool = False) -> tuple[str, ...]:
    """All, or those that leave the backbone as it is."""
    return tuple(sorted(name for name, cls in _METHODS.items() if cls.frozen or not frozen))


def settings(name: str) -> dict[str, Any]:
    """Settings of a method and their defaults. Raises UserError for an unknown name."""
    if name not in _METHODS:
        raise UserError(f"exits: unknown training {name!r}; {nearest(name, _METHODS)}")
    parameters = list(inspect.signature(_METHODS[name].__init__).parameters.values())[2:]
    return {p.name: p.default for p in parameters}


def method(name: str, net: Network, **values: Any) -> Method:
    """A method around a network with exits. Raises UserError for what it does not know and values it refuses."""
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
