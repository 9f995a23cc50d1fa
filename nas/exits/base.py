"""What a method of exit training is, and the registry that makes one by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from nas.errors import UserError
from nas.exits.net import Combine, MultiExit
from nas.files import nearest
from nas.subnet import Subnet


class Method(nn.Module):
    """Base of the methods. ``net`` is what is trained and kept; further parameters are needed in training only."""

    frozen = False  # whether the backbone stays as it is, and only what hangs on it learns

    def __init__(self, net: Subnet, combine: Combine | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not net.exits:
            raise UserError(f"{type(self).__name__.lower()}: the network has no exits to train")
        self.net, self.label_smoothing = MultiExit(net, combine), label_smoothing

    @property
    def exits(self) -> int:
        """Number of predictions: exits and the head."""
        return len(self.net.net.exits) + 1

    def forward(self, x: Tensor) -> list[Tensor]:
        """Predictions [N, classes] of every exit, the head's last."""
        return self.net(x)

    def loss(self, images: Tensor, labels: Tensor, progress: float) -> Tensor:
        """Of a batch [N, C, S, S] with labels [N], at ``progress`` in [0, 1) of the training."""
        raise NotImplementedError

    def hard(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)


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


def methods() -> tuple[str, ...]:
    return tuple(sorted(_METHODS))


def settings(name: str) -> dict[str, Any]:
    """Settings of a method and their defaults. Raises UserError for an unknown name."""
    if name not in _METHODS:
        raise UserError(f"exits: unknown training {name!r}; {nearest(name, _METHODS)}")
    parameters = list(inspect.signature(_METHODS[name].__init__).parameters.values())[2:]
    return {p.name: p.default for p in parameters}


def method(name: str, net: Subnet, **values: Any) -> Method:
    """A method around a network with exits. Raises UserError for what it does not know and values it refuses."""
    known = settings(name)
    if unknown := sorted(values.keys() - known.keys()):
        raise UserError(f"exits: {name}: unknown setting {unknown[0]!r}; {nearest(unknown[0], known)}")
    try:
        return _METHODS[name](net, **values)
    except ValueError as error:
        raise UserError(f"exits: {name}: {error}") from None
