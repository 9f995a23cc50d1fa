"""Trains exits by L2W-DEN: at each exit, images weigh more that help the exits at which they would leave."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jvp

from nas.exits.base import Method, register
from nas.exits.net import Network
from nas.exits.policy import geometric_shares


@register("weighted")
class Weighted(Method):
    """Trains with sum_k mean_i w_ik CE_ik, w from a small network that learns by meta steps (Han et al., 2209.08310).

    w~ = tanh MLP(the image's losses at all exits); w = 1 + ``strength`` (w~ - mean of w~ over the exits of the image).
    Meta step, every ``interval`` batches: one SGD step of ``inner_lr`` on one half of the batch with these weights; on
    the other half, exit k is charged with the share q_k of images it is surest of among those that are left (the
    geometric shares of ``r``), and the gradient of that loss goes through the step to the MLP; then the halves swap.
    Defaults are those of the released code for CIFAR, but for ``inner_lr``: there the step is the optimizer's own. The
    MLP is trained by the loop's optimizer along with the network (there Adam at 1e-4).
    """

    calls: Tensor

    def __init__(self, net: Network, strength: float = 0.8, interval: int = 1, r: float = 0.75, hidden: int = 500,
                 inner_lr: float = 0.1, label_smoothing: float = 0.0) -> None:
        super().__init__(net, label_smoothing=label_smoothing)
        if not 0 <= strength < 1 or interval < 1 or r <= 0 or hidden < 1 or inner_lr <= 0:
            raise ValueError("strength is from 0 to below 1, interval and hidden from 1, r and inner_lr above 0")
        self.strength, self.interval, self.r, self.inner_lr = strength, interval, r, inner_lr
        self.weigher = nn.Sequential(nn.Linear(self.exits, hidden), nn.ReLU(), nn.Linear(hidden, self.exits), nn.Tanh())
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def loss(self, images: Tensor, labels: Tensor, progress: float) -> Tensor:
        losses = self._each(self(images), labels)
        total = (self.weights(losses.detach()).detach() * losses).mean(0).sum()
        if int(self.calls) % self.interval == 0 and len(labels) > 3:
            total = total + self._meta(images, labels)
        self.calls += 1
        return total

    def weights(self, losses: Tensor) -> Tensor:
        """Returns the weights [N, exits] of losses [N, exits]; 1 on average over the exits of an image."""
        raw = self.weigher(losses)
        return 1 + self.strength * (raw - raw.mean(1, keepdim=True))

    def meta_loss(self, predictions: list[Tensor], labels: Tensor) -> Tensor:
        """Returns sum_k CE of the images that leave at exit k: the floor(n q_k) surest of those left, last the rest."""
        total, left = predictions[0].new_zeros(()), torch.arange(len(labels), device=labels.device)
        shares = geometric_shares(self.r, self.exits)
        for k, logits in enumerate(predictions):
            count = int(len(labels) * shares[k]) if k < self.exits - 1 else len(left)
            order = logits[left].detach().softmax(1).amax(1).argsort(descending=True)
            leaving, left = left[order[:count]], left[order[count:]]
            if len(leaving):
                total = total + self.hard(logits[leaving], labels[leaving])
        return total

    def _meta(self, images: Tensor, labels: Tensor) -> Tensor:
        """Returns zero, with the gradient of the meta loss in the parameters of the weigher and in no others."""
        half = len(labels) // 2
        first, second = (images[:half], labels[:half]), (images[half:], labels[half:])
        sums = []
        for learn, judge in ((first, second), (second, first)):
            losses, credit = self.credit(*learn, *judge)
            sums.append((credit * self.weights(losses)).sum() / 2)
        surrogate = torch.stack(sums).sum()
        return surrogate - surrogate.detach()

    def credit(self, images: Tensor, labels: Tensor, judged: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Returns losses [n, exits] of ``images``, and the derivatives in their weights of the meta loss after a step.

        The step is linear in the weights, theta' = theta - lr sum w_ik d CE_ik / n, so a derivative is -lr / n times
        that of CE_ik in the direction of the meta loss's gradient at theta': exact, with no second derivatives (which
        PyTorch does not have of all activations).
        """
        named = {name: p.detach() for name, p in self.net.named_parameters()}
        losses, stepped = self._step(named, images, labels)
        charged = self.meta_loss(self._run(stepped, judged), truth)
        gradients = torch.autograd.grad(charged, list(stepped.values()), materialize_grads=True)
        direction = dict(zip(stepped, gradients, strict=True))
        change = jvp(lambda at: self._each(self._run(at, images), labels), (named,), (direction,))[1]
        return losses, -self.inner_lr / len(labels) * change.detach()

    def _step(self, named: dict[str, Tensor], images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns losses [n, exits], and the parameters after one step on the weighted loss."""
        at = {name: p.clone().requires_grad_() for name, p in named.items()}
        losses = self._each(self._run(at, images), labels)
        loss = (self.weights(losses.detach()).detach() * losses).mean(0).sum()
        gradients = torch.autograd.grad(loss, list(at.values()))
        stepped = {name: (p.detach() - self.inner_lr * g).requires_grad_()
                   for (name, p), g in zip(at.items(), gradients, strict=True)}
        return losses.detach(), stepped

    def _run(self, parameters: dict[str, Tensor], images: Tensor) -> list[Tensor]:
        """Returns predictions with other parameters; batch norm statistics stay as they are."""
        buffers = {name: buffer.clone() for name, buffer in self.net.named_buffers()}
        return functional_call(self.net, {**parameters, **buffers}, (images,))

    def _each(self, predictions: list[Tensor], labels: Tensor) -> Tensor:
        """Returns the losses [N, exits] of every image at every exit."""
        return torch.stack([F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.label_smoothing)
                            for logits in predictions], 1)
