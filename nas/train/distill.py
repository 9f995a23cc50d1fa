"""Distillation losses: how a student learns from a teacher's logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ALPHAS = (-1.0, 1.0)  # of AlphaNet: the one punishes a student that is too sure, the other one that misses classes
CLIP = 5.0  # of AlphaNet: the most that a ratio of probabilities weighs


def kd(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """Knowledge distillation (Hinton et al., arXiv 1503.02531): T^2 KL(teacher, student) of logits [N, classes]."""
    log_p = F.log_softmax(student / temperature, 1)
    log_q = F.log_softmax(teacher.detach() / temperature, 1)
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * temperature**2


def alpha_divergence(student: Tensor, teacher: Tensor, alpha: float, clip: float = CLIP) -> Tensor:
    """D_alpha(p || q) = sum q ((p/q)^alpha - 1) / (alpha (alpha - 1)) of each image: logits [N, classes] -> [N].

    p is the teacher, q the student; alpha = 1 is KL(p || q), alpha = 0 KL(q || p). AlphaNet (arXiv 2102.07954, section
    3): (p/q)^alpha is cut at ``clip`` in the value, and in the gradient, -sum q (p/q)^alpha / alpha d log q, as a
    constant. The limits are not cut, as in its released code for alpha = 1, the only one it uses.
    """
    log_p, log_q = F.log_softmax(teacher.detach(), 1), F.log_softmax(student, 1)
    with torch.no_grad():
        p, q, log_ratio = log_p.exp(), log_q.exp(), log_p - log_q
        if alpha == 0:
            value, weight = -q * log_ratio, q * log_ratio
        elif alpha == 1:
            value, weight = p * log_ratio, p
        else:
            power = (alpha * log_ratio).exp().clamp(max=clip)
            value, weight = q * (power - 1) / (alpha * (alpha - 1)), q * power / alpha
    surrogate = -(weight * log_q).sum(1)
    return value.sum(1) + surrogate - surrogate.detach()


def adaptive(student: Tensor, teacher: Tensor) -> Tensor:
    """The larger of the two ``alpha_divergence`` of each image, their mean over [N, classes] (AlphaNet, section 3)."""
    low, high = (alpha_divergence(student, teacher, alpha) for alpha in ALPHAS)
    return torch.maximum(low, high).mean()


INPLACE = {"kl": kd, "alpha": adaptive}
