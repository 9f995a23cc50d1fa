"""Trains QuickNets: block after block, each on the images that the exits before it get wrong."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.exits.base import Method, register
from nas.exits.net import Combine, Network


class Commitment(Combine):
    """Multiplies the logits of each exit, but not of the head, by how sure a small network is that they are right.

    That factor is in (0, 1): the sigmoid of two linear layers on the exit's log-probabilities. It does not change the
    class, but an exit with a small factor has nearly equal logits and so a low confidence: no image leaves there.
    """

    def __init__(self, exits: int, classes: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(classes, hidden), nn.ReLU(), nn.Linear(hidden, 1))
                                    for _ in range(exits - 1))

    def forward(self, index: int, logits: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if index == len(self.layers):
            return logits, None
        return logits * torch.sigmoid(self.raw(index, logits)), None

    def raw(self, index: int, logits: Tensor) -> Tensor:
        """Returns the factor of an exit's logits before its sigmoid, [N, 1]."""
        raw: Tensor = self.layers[index](F.log_softmax(logits, 1))
        return raw

    def kept(self, exits: Sequence[int]) -> Commitment:
        fewer = Commitment(1, 1, 1)
        fewer.layers = nn.ModuleList(self.layers[index] for index in exits)
        return fewer.train(self.training)


@register("cascade")
class QuickNets(Method):
    """Trains one block and its exit at a time, blocks below frozen, on what no exit below has right (arXiv 2212.12866).

    CE over the images of the batch that are left (all of them are seen: batch norms have their statistics as in use),
    and binary cross-entropy of the commitment layer, on all images, on whether its exit is right. The abstract is what
    there is of the paper: the size of that layer, its loss and how it vetoes are ours. Each block has a learning rate
    cycle of its own and an equal share of the training.
    """

    def __init__(self, net: Network, hidden: int = 16, label_smoothing: float = 0.0) -> None:
        if hidden < 1:
            raise ValueError("hidden is from 1")
        combine = Commitment(len(net.exits) + 1, net.classes, hidden)
        super().__init__(net, combine, label_smoothing)
        self.commitment = combine

    def phases(self) -> int:
        return self.exits

    def cycle(self, progress: float) -> float:
        return progress * self.exits % 1

    def loss(self, images: Tensor, labels: Tensor, progress: float) -> Tensor:
        stage, stages = min(int(progress * self.exits), self.exits - 1), self.net.net.stages()
        left, x = torch.ones_like(labels, dtype=torch.bool), images
        with torch.no_grad():
            for trunk, head in stages[:stage]:
                x = trunk.eval()(x)
                left &= head.eval()(x).argmax(1) != labels
        trunk, head = stages[stage]
        logits = head(trunk(x))
        each = F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.label_smoothing)
        loss = (each * left).sum() / left.sum().clamp(min=1)
        if stage == self.exits - 1:
            return loss
        right = (logits.argmax(1) == labels).float()
        committed = self.commitment.raw(stage, logits.detach())[:, 0]
        return loss + F.binary_cross_entropy_with_logits(committed, right)
