"""Lets a student learn from a teacher: losses of logits, and the methods that ``train.distill`` names."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.subnet import Subnet

ALPHAS = (-1.0, 1.0)  # of AlphaNet: the one punishes a student that is too sure, the other one that misses classes
CLIP = 5.0  # of AlphaNet: the most that a ratio of probabilities weighs


def kd(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """Returns the loss of knowledge distillation (Hinton et al., arXiv 1503.02531): T^2 KL(teacher, student).

    Logits [N, classes] -> a scalar.
    """
    log_p = F.log_softmax(student / temperature, 1)
    log_q = F.log_softmax(teacher.detach() / temperature, 1)
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * temperature**2


def alpha_divergence(student: Tensor, teacher: Tensor, alpha: float, clip: float = CLIP) -> Tensor:
    """Returns D_alpha(p || q) = sum q ((p/q)^alpha - 1) / (alpha (alpha - 1)) by image: logits [N, classes] -> [N].

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
    """Returns the mean over images of the larger of two ``alpha_divergence`` (AlphaNet): [N, classes] -> a scalar."""
    low, high = (alpha_divergence(student, teacher, alpha) for alpha in ALPHAS)
    return torch.maximum(low, high).mean()


INPLACE = {"kl": kd, "alpha": adaptive}


@dataclass(frozen=True)
class NetOutput:
    """Holds what a network computes: ``logits`` [N, classes] and, if asked, ``maps`` [N, C, S, S] by resolution."""

    logits: Tensor
    maps: tuple[Tensor, ...] = ()


class Distiller(nn.Module):
    """Computes the loss of a student beside a teacher; a subclass is a method, its parameters are trained along.

    ``share`` is the teacher's part of a loss that labels have the rest of, ``smoothing`` that of the labels.
    """

    reads_maps = False

    def __init__(self, student: nn.Module, teacher: nn.Module, share: float, smoothing: float) -> None:
        super().__init__()
        self.share, self.smoothing = share, smoothing

    def loss(self, student: NetOutput, teacher: NetOutput, labels: Tensor, progress: float) -> Tensor:
        """Returns the loss, a scalar; ``labels`` are int64 [N], of mixed images float [N, classes].

        ``progress`` of the training is in [0, 1].
        """
        raise NotImplementedError

    def peer(self) -> nn.Module | None:
        """Returns the network that stands in for the teacher and learns, too; None where the teacher stays as it is."""
        return None

    def mixed(self, logits: Tensor, labels: Tensor, taught: Tensor) -> Tensor:
        return (1 - self.share) * self.by_labels(logits, labels) + self.share * taught

    def by_labels(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self.smoothing)


D = TypeVar("D", bound=type[Distiller])
METHODS: dict[str, type[Distiller]] = {}
BEGIN = 1 / 8  # share of the training that `hints` and `fsp` begin with: RepDistiller's 30 of 240 epochs for fsp


def method(*names: str) -> Callable[[D], D]:
    def keep(kind: D) -> D:
        METHODS.update(dict.fromkeys(names, kind))
        return kind

    return keep


@method("kd", "assistant")
class Logits(Distiller):
    """Learns from logits: (1 - share) CE(labels) + share T^2 KL(teacher, student), T = 2 (arXiv 1503.02531).

    ``assistant`` is the same loss in a chain (Mirzadeh et al., arXiv 1902.03393): each network is taught by the next
    larger one, which was taught so before.
    """

    def loss(self, student: NetOutput, teacher: NetOutput, labels: Tensor, progress: float) -> Tensor:
        return self.mixed(student.logits, labels, kd(student.logits, teacher.logits))


@method("born-again")
class BornAgain(Distiller):
    """Learns from a teacher of the same architecture: (1 - share) CE(labels) + share CE(softmax of the teacher).

    The teacher is trained before from the same first weights (Furlanello et al., arXiv 1805.04770).
    """

    def loss(self, student: NetOutput, teacher: NetOutput, labels: Tensor, progress: float) -> Tensor:
        taught = F.cross_entropy(student.logits, teacher.logits.detach().softmax(1))
        return self.mixed(student.logits, labels, taught)


@method("hints")
class Hints(Distiller):
    """Learns the teacher's middle map first, then as ``kd`` does (FitNets, arXiv 1412.6550, section 2).

    The first loss is 1/2 (t - r(s))^2, the mean over the map; r is a learned 1x1 convolution from the student's
    channels to the teacher's.
    """

    reads_maps = True

    def __init__(self, student: nn.Module, teacher: nn.Module, share: float, smoothing: float) -> None:
        super().__init__(student, teacher, share, smoothing)
        student_channels, teacher_channels = (channels(net) for net in (student, teacher))
        self.middle = len(student_channels) // 2
        self.regressor = nn.Conv2d(student_channels[self.middle], teacher_channels[self.middle], 1)

    def loss(self, student: NetOutput, teacher: NetOutput, labels: Tensor, progress: float) -> Tensor:
        if progress >= BEGIN:
            return self.mixed(student.logits, labels, kd(student.logits, teacher.logits))
        return F.mse_loss(self.regressor(student.maps[self.middle]), teacher.maps[self.middle].detach()) / 2


@method("fsp")
class Flow(Distiller):
    """Learns the teacher's flow matrices first, by mean squared difference, then labels (Yim et al., CVPR 2017).

    Raises ValueError for two networks whose maps have other channels.
    """

    reads_maps = True

    def __init__(self, student: nn.Module, teacher: nn.Module, share: float, smoothing: float) -> None:
        super().__init__(student, teacher, share, smoothing)
        if channels(student) != channels(teacher):
            raise ValueError(f"fsp: maps of {channels(student)} channels, the teacher's of {channels(teacher)}")

    def loss(self, student: NetOutput, teacher: NetOutput, labels: Tensor, progress: float) -> Tensor:
        if progress >= BEGIN:
            return self.by_labels(student.logits, labels)
        pairs = zip(itertools.pairwise(student.maps), itertools.pairwise(teacher.maps), strict=True)
        return torch.stack([F.mse_loss(flow(*taught), flow(*theirs).detach()) for taught, theirs in pairs]).mean()


@method("mutual")
class Mutual(Distiller):
    """Trains two networks together: CE(labels) + KL(peer, student), and the same of the peer (arXiv 1706.00384).

    The peer begins as a copy of the teacher; what either says is a constant to the other.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, share: float, smoothing: float) -> None:
        super().__init__(student, teacher, share, smoothing)
        self.other = copy.deepcopy(teacher).requires_grad_().train()

    def peer(self) -> nn.Module:
        return self.other

    def loss(self, student: NetOutput, teacher: NetOutput, labels: Tensor, progress: float) -> Tensor:
        both = ((student.logits, teacher.logits), (teacher.logits, student.logits))
        return torch.stack([self.by_labels(logits, labels) + kd(logits, other, 1.0) for logits, other in both]).sum()


def flow(first: Tensor, second: Tensor) -> Tensor:
    """Returns G_ij, the mean over pixels of F1_i F2_j: [N, A, S, S], [N, B, R, R] -> [N, A, B]; pools the larger."""
    side = min(first.shape[-1], second.shape[-1])
    small, other = (F.adaptive_avg_pool2d(map_, side).flatten(2) for map_ in (first, second))
    return small @ other.transpose(1, 2) / side**2


def channels(net: nn.Module) -> list[int]:
    """Returns the channels of the maps that ``net.features`` gives, finest first; nothing is computed."""
    assert isinstance(net, Subnet)
    with torch.device("meta"):
        trial = copy.deepcopy(net).to("meta").eval()
        size, in_ch = net.keys[0].size, net.keys[0].in_ch
        return [map_.shape[1] for map_ in trial.features(torch.empty(1, in_ch, size, size))]
