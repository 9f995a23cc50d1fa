"""Trains networks with exits: a method is a module around the network that has a loss; ``method`` makes one by name.

One loop serves all of them (``nas.training.exits``), with its own schedule and optimizer; defaults are the settings of
the papers. Importing a method's file registers it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.exits import cascade, weighted, ztw  # noqa: F401
from nas.exits.base import Frozen, Method, method, methods, register, settings
from nas.exits.net import Additive, Network

__all__ = ["Boost", "Cache", "Distill", "Joint", "Method", "method", "methods", "register", "settings"]


@register("joint")
class Joint(Method):
    """Trains all exits together: sum_k w_k CE(f_k, y), w_k = 1 (MSDNet, Huang et al., arXiv 1703.09844).

    ``weights``: one an exit.
    """

    def __init__(self, net: Network, weights: Sequence[float] | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__(net, label_smoothing=label_smoothing)
        self.weights = list(weights) if weights is not None else [1.0] * self.exits
        if len(self.weights) != self.exits or min(self.weights) < 0 or sum(self.weights) == 0:
            raise ValueError(f"weights {self.weights}: {self.exits} are needed, none below 0 and not all 0")

    def loss(self, images: Tensor, labels: Tensor, progress: float) -> Tensor:
        losses = [self.hard(logits, labels) for logits in self(images)]
        return torch.stack([w * loss for w, loss in zip(self.weights, losses, strict=True)]).sum()


@register("boost")
class Boost(Method):
    """Trains exits by boosting (BoostNet, Yu et al., arXiv 2211.16726): exit n learns what the exits below leave over.

    L_n = CE(f_n + stopgrad(t F_{n-1}), y), summed without weights; F_n = f_n + t F_{n-1} predicts (``Additive``). With
    ``rescale`` the gradient into block i (from 0) of N is the mean over the N - i heads behind it: the feature that
    feeds head i has the factor 1 / (N - i), what goes on to the deeper ones N - i - 1.
    """

    def __init__(self, net: Network, t: float = 0.5, rescale: bool = True, label_smoothing: float = 0.0) -> None:
        super().__init__(net, Additive(t), label_smoothing)
        if not 0 <= t <= 1:
            raise ValueError(f"t {t:g}: a factor from 0 to 1")
        self.rescale = rescale

    def loss(self, images: Tensor, labels: Tensor, progress: float) -> Tensor:
        losses, state = [], None
        for index, logits in enumerate(self.weak(images)):
            prediction, state = self.net.combine(index, logits, state.detach() if state is not None else None)
            losses.append(self.hard(prediction, labels))
        return torch.stack(losses).sum()

    def weak(self, x: Tensor) -> list[Tensor]:
        """Returns f_n [N, classes] of every exit, gradients rescaled."""
        outputs = []
        for i, (trunk, head) in enumerate(self.net.net.stages()):
            left = self.exits - i
            x = self._scaled(trunk(x), 1 / left)
            outputs.append(head(x))
            x = self._scaled(x, left - 1)
        return outputs

    def _scaled(self, x: Tensor, factor: float) -> Tensor:
        return _GradientScale.apply(x, factor) if self.rescale else x


@register("cache")
class Cache(Frozen):
    """Teaches the exits of a frozen network its own answers, without labels, by sum_k T^2 KL(q_C || q_k).

    Self-distillation of the layer-caching system (Abedi et al., arXiv 2209.08625), whose exits are there for a network
    that is deployed already; it says neither loss nor temperature, and these are Hinton's (arXiv 1503.02531).
    """

    labels = False

    def __init__(self, net: Network, temperature: float = 2.0, label_smoothing: float = 0.0) -> None:
        super().__init__(net, label_smoothing=label_smoothing)
        if temperature <= 0:
            raise ValueError("temperature is above 0")
        self.temperature = temperature

    def loss(self, images: Tensor, labels: Tensor, progress: float) -> Tensor:
        *exits, head = self(images)
        taught = F.log_softmax(head.detach() / self.temperature, 1)
        each = [F.kl_div(F.log_softmax(logits / self.temperature, 1), taught, reduction="batchmean", log_target=True)
                for logits in exits]
        return self.temperature**2 * torch.stack(each).sum()


class _GradientScale(torch.autograd.Function):
    """Returns its input, and multiplies the gradient that comes back by ``factor``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None


@register("distill")
class Distill(Method):
    """Trains exits that the head teaches (Be your own teacher, Zhang et al., arXiv 1905.08094).

    Exit i: (1 - alpha) CE(q_i, y) + alpha KL(q_C || q_i) at ``temperature`` + ``hint`` ||A_i F_i - F_C||, the head CE
    alone. F is what a head classifies, A_i a learned linear map, there in training only. Defaults are those of the
    released code, and as there the soft term has no factor T^2. The paper squares the norm and the code takes it over
    the whole batch: here it is that of each image, averaged, which does not depend on the batch; and every exit gets
    the hint, where the code leaves one out.
    """

    def __init__(self, net: Network, alpha: float = 0.3, temperature: float = 3.0, hint: float = 0.03,
                 label_smoothing: float = 0.0) -> None:
        super().__init__(net, label_smoothing=label_smoothing)
        if not 0 <= alpha <= 1 or temperature <= 0 or hint < 0:
            raise ValueError("alpha is a share from 0 to 1, temperature above 0 and hint not below 0")
        self.alpha, self.temperature, self.hint = alpha, temperature, hint
        *widths, last = (_embedded_width(head) for _, head in net.stages())
        self.adapters = nn.ModuleList(nn.Linear(width, last) for width in widths)

    def loss(self, images: Tensor, labels: Tensor, progress: float) -> Tensor:
        embedded, logits, x = [], [], images
        for trunk, head in self.net.net.stages():
            x = trunk(x)
            embedded.append(head.embed(x))  # type: ignore[operator]
            logits.append(head.classify(embedded[-1]))  # type: ignore[operator]
        losses = [self.hard(logits[-1], labels)]
        for exit_logits, feature, adapter in zip(logits[:-1], embedded[:-1], self.adapters, strict=True):
            taught = self._soft(exit_logits, logits[-1])
            losses.append((1 - self.alpha) * self.hard(exit_logits, labels) + self.alpha * taught
                          + self.hint * (adapter(feature) - embedded[-1].detach()).norm(dim=1).mean())
        return torch.stack(losses).sum()

    def _soft(self, student: Tensor, taught: Tensor) -> Tensor:
        log_p, log_q = (F.log_softmax(z / self.temperature, 1) for z in (taught.detach(), student))
        return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def _embedded_width(head: nn.Module) -> int:
    classifier = getattr(head, "classifier", None)
    if not isinstance(classifier, nn.Linear) or not hasattr(head, "embed") or not hasattr(head, "classify"):
        raise ValueError(f"the head {type(head).__name__} has no embed, classify and linear classifier for the hint")
    return classifier.in_features
