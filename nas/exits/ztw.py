"""Trains exits by Zero Time Waste: on a frozen network, each reuses what the exits below it have answered."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.exits.base import Frozen, register
from nas.exits.net import Combine, Network


class Cascade(Combine):
    """Combines cascaded heads in a geometric ensemble (Wolczyk et al., arXiv 2106.05409); ``exits`` counts the head.

    Exit k's logits get V_k LayerNorm(stopgrad z_{k-1}), which is what concatenating that to the features before its
    linear layer comes to. It predicts sum_j exp(w_kj) log p_j / k + b_k over the exits j = 1..k, the head for itself.
    The state are the log p_j so far: LayerNorm takes off what they differ by from logits.
    """

    def __init__(self, exits: int, classes: int) -> None:
        super().__init__()
        self.exits, self.classes = exits, classes
        self.carry = nn.ModuleList(nn.Linear(classes, classes, bias=False) for _ in range(exits - 2))
        self.norms = nn.ModuleList(nn.LayerNorm(classes) for _ in range(exits - 2))
        self.weights = nn.ParameterList(0.01 * torch.randn(k + 1) for k in range(exits - 1))
        self.biases = nn.ParameterList(torch.zeros(classes) for _ in range(exits - 1))

    def forward(self, index: int, logits: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if index == self.exits - 1:
            return logits, None
        log_p = self.cascaded(index, logits, state)
        state = log_p if state is None else torch.cat([state, log_p], 1)
        return self.ensemble(index, state), state if index < self.exits - 2 else None

    def cascaded(self, index: int, logits: Tensor, state: Tensor | None) -> Tensor:
        """Returns log p [N, classes] of exit ``index``."""
        if state is not None:
            below = self.norms[index - 1](state[:, -self.classes:].detach())
            logits = logits + self.carry[index - 1](below)
        return F.log_softmax(logits, 1)

    def ensemble(self, index: int, state: Tensor) -> Tensor:
        shares = self.weights[index].exp() / (index + 1)
        total = self.biases[index]
        for j, share in enumerate(shares.unbind()):
            total = state[:, j * self.classes:(j + 1) * self.classes] * share + total
        return total

    def kept(self, exits: Sequence[int]) -> Cascade | None:
        """Returns the combination for a network with only the first exits, as an exit does not depend on later ones.

        None for other choices of exits, because an exit depends on all below.
        """
        if list(exits) != list(range(len(exits))):
            return None
        first = Cascade(len(exits) + 1, self.classes)
        first.load_state_dict({name: self.state_dict()[name] for name in first.state_dict()})
        return first.train(self.training)

    def width(self, index: int, classes: int) -> int:
        return classes * index if index < self.exits - 1 else 0


@register("ztw")
class ZeroTimeWaste(Frozen):
    """Trains exits of a frozen network: first the cascaded heads, sum_k CE(p_k, y), then the ensemble on top of them.

    ``ensemble`` is the share of the training that is left to the ensemble (in the paper a schedule of its own on stored
    log-probabilities). Heads are those of the network, not the paper's.
    """

    def __init__(self, net: Network, ensemble: float = 0.2, label_smoothing: float = 0.0) -> None:
        if not 0 < ensemble < 1:
            raise ValueError(f"ensemble {ensemble:g}: a share of the training between 0 and 1")
        combine = Cascade(len(net.exits) + 1, net.classes)
        super().__init__(net, combine, label_smoothing)
        self.cascade, self.share = combine, ensemble

    def phases(self) -> int:
        return 2

    def loss(self, images: Tensor, labels: Tensor, progress: float) -> Tensor:
        heads, losses, state = progress < 1 - self.share, [], None
        for index, logits in enumerate(self.net.net.logits(images)[:-1]):
            log_p = self.cascade.cascaded(index, logits if heads else logits.detach(), state)
            state = log_p if state is None else torch.cat([state, log_p], 1)
            losses.append(self.hard(log_p if heads else self.cascade.ensemble(index, state.detach()), labels))
        return torch.stack(losses).sum()
