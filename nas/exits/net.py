"""Runs a network with early exits: stages one after another, and how their logits become predictions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn


class Network(Protocol):
    """Describes a network with exits: a ``nas.subnet.Subnet``, or a ``nas.exits.graft.Grafted``."""

    exits: nn.ModuleList

    @property
    def classes(self) -> int:
        """Returns the number of logits of each head."""

    def stages(self) -> Sequence[tuple[nn.Module, nn.Module]]:
        """Returns the network cut at its exits: what runs up to each exit, and its head; last the rest and the head."""

    def logits(self, x: Tensor) -> list[Tensor]:
        """Returns [N, classes] of every exit in order, and of the head."""


class Combine(nn.Module):
    """Makes the prediction of an exit from its logits and those below; this base takes its own logits alone.

    ``state`` is all that is handed from exit to exit, so that the network can be cut at any of them: [N, width(index)]
    into exit ``index``, None into the first and where the width is 0.
    """

    def kept(self, exits: Sequence[int]) -> Combine | None:
        """Returns the combination for a network with only these exits; None where it was not learned for them alone."""
        return self

    def forward(self, index: int, logits: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Turns the logits [N, classes] of exit ``index`` into its prediction, logits again, and the next state."""
        return logits, None

    def width(self, index: int, classes: int) -> int:
        """Returns the number of columns of the state into exit ``index``."""
        return 0


class Additive(Combine):
    """Adds up logits: F_n = f_n + t F_{n-1}, F_1 = f_1 (BoostNet, arXiv 2211.16726); t < 1 softens what is below."""

    def __init__(self, t: float) -> None:
        super().__init__()
        self.t = t

    def forward(self, index: int, logits: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        prediction = logits if state is None else logits + self.t * state
        return prediction, prediction

    def width(self, index: int, classes: int) -> int:
        return classes if index else 0


class Segment(nn.Module):
    """Runs the network between two exits: takes a map [N, C, S, S] (the image in the first) and the state from below.

    Returns the prediction [N, classes] of its exit and, but for the last, the map and (where there is one) the state.
    The modules are the network's own.
    """

    def __init__(self, index: int, last: bool, trunk: nn.Module, head: nn.Module, combine: Combine) -> None:
        super().__init__()
        self.index, self.last = index, last
        self.trunk, self.head, self.combine = trunk, head, combine

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, ...]:
        x = self.trunk(x)
        prediction, state = self.combine(self.index, self.head(x), state)
        if self.last:
            return (prediction,)
        return (prediction, x) if state is None else (prediction, x, state)


def logits_of(stages: Sequence[tuple[nn.Module, nn.Module]], x: Tensor) -> list[Tensor]:
    """Returns the logits [N, classes] of every head in order, each computed on what the stages before it hand on."""
    logits = []
    for trunk, head in stages:
        x = trunk(x)
        logits.append(head(x))
    return logits


def combined(combine: Combine, logits: Sequence[Tensor]) -> list[Tensor]:
    """Returns the predictions [N, classes] of all exits from the logits of each alone."""
    predictions, state = [], None
    for index, alone in enumerate(logits):
        prediction, state = combine(index, alone, state)
        predictions.append(prediction)
    return predictions


class Kept(nn.Module):
    """Keeps only some exits of a network, in order; the modules are the network's own."""

    def __init__(self, net: Network, exits: Sequence[int]) -> None:
        super().__init__()
        stages = net.stages()
        heads = [stages[index][1] for index in exits]
        self.exits, self.head, self.classes = nn.ModuleList(heads), stages[-1][1], net.classes
        bounds = [0, *(index + 1 for index in exits), len(stages)]
        self.trunks = nn.ModuleList(nn.Sequential(*(trunk for trunk, _ in stages[start:stop]))
                                    for start, stop in itertools.pairwise(bounds))

    def stages(self) -> list[tuple[nn.Module, nn.Module]]:
        return list(zip(self.trunks, [*self.exits, self.head], strict=True))

    def logits(self, x: Tensor) -> list[Tensor]:
        return logits_of(self.stages(), x)


class MultiExit(nn.Module):
    """Runs a network with all its exits: [N, in_ch, S, S] -> predictions [N, classes] in order, the head's last."""

    def __init__(self, net: Network, combine: Combine | None = None) -> None:
        super().__init__()
        self.net, self.combine = net, combine or Combine()

    def forward(self, x: Tensor) -> list[Tensor]:
        return combined(self.combine, self.net.logits(x))

    def segments(self) -> list[Segment]:
        stages = self.net.stages()
        return [Segment(index, index == len(stages) - 1, trunk, head, self.combine)
                for index, (trunk, head) in enumerate(stages)]
