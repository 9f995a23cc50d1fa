"""Distillation losses: how a student learns from a teacher's logits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def kd(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """Knowledge distillation (Hinton et al., arXiv 1503.02531): T^2 KL(teacher, student) of logits [N, classes]."""
    log_p = F.log_softmax(student / temperature, 1)
    log_q = F.log_softmax(teacher.detach() / temperature, 1)
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * temperature**2
