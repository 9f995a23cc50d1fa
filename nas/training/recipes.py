"""Holds the settings of training loops, with the epochs that follow from the number of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nas.config.gates import LatencyTerm, Projection
from nas.config.search import Config
from nas.config.training import Training
from nas.record import Record
from nas.training.augmentation import Augmentation
from nas.training.epochs import epoch_size

if TYPE_CHECKING:  # images need torch, their number does not
    from nas.training.data import Data

GROW = "grow"  # of several networks each begins with what the smaller ones have learned
WITHOUT_TEACHER = ("none", GROW)
FIRST = 2.0  # times as much as any other pick computes the one from which they grow (docs/decisions.md)
DISTILLED = 0.5  # share of the teacher in the loss of a pick


@dataclass(frozen=True)
class Exposure:
    """Says how long a network trains where the user gives no epochs: on at least so many images, in so many epochs."""

    images: int
    epochs: int
    patient: bool = False  # so long at most: less where held-out loss stops falling

    def epochs_of(self, images: int) -> int:
        """Returns how many passes over ``images`` that is."""
        return max(self.epochs, -(-self.images // images))


SUPERNET = {"warmup": Exposure(48_000, 4), "search": Exposure(9_600, 2), "settle": Exposure(4_800, 1)}
PICK = Exposure(160_000, 5, patient=True)
BY_ITSELF = Exposure(222_400, 12, patient=True)  # as many as a pick sees in all
COMPARED = Exposure(12_000, 5)  # from random weights, one of many
HEADS = Exposure(20_000, 2)


def supernet_epochs(train: Training, images: int) -> dict[str, int]:
    """Returns the epochs of each phase of a supernet that learns from ``images``."""
    given = {"warmup": train.warmup_epochs, "search": train.search_epochs, "settle": train.settle_epochs}
    seen = epoch_size(images, train.epoch_images)
    return {phase: epochs if epochs is not None else SUPERNET[phase].epochs_of(seen)
            for phase, epochs in given.items()}


@dataclass(frozen=True, kw_only=True)
class SupernetRecipe:
    """Holds settings of a supernet's training; ``epochs`` per phase, ``latency`` those of the gates' latency term."""

    epochs: dict[str, int]
    batch: int
    lr: float
    weight_decay: float
    label_smoothing: float
    augment: str
    epoch_images: int | None = None
    sandwich_every: int = 1
    relaxation: str = "two-path"
    gate_lr: float = 0.05
    gate_every: int = 1
    tau: tuple[float, float] = (2.0, 0.3)
    prune: bool | str = True  # "blocks" or "layers": these alone
    latency: LatencyTerm = field(default_factory=Projection)
    update: str = "bilevel"
    inplace: str = "kl"
    ema: float = 0.0
    accumulate: int = 1
    amp: str = "none"
    widths: str = "pair"
    attend: str = "none"
    attend_to: int = 3
    largest_first: float = 0.0  # shares of the warm-up
    blockwise: float = 0.0
    policy: str = "none"
    erase: float = 0.0

    @property
    def augmentation(self) -> Augmentation:
        """Returns what the weights' images get; those of the gates are shifted alone."""
        return Augmentation(self.augment, self.policy, self.erase)

    @staticmethod
    def from_config(config: Config, data: Data) -> SupernetRecipe:
        """Returns what a search's settings ask for on its images."""
        train, gates = config.train, config.gates
        largest_first, blockwise = train.beginning(trained=config.init is not None)
        return SupernetRecipe(
            epochs=supernet_epochs(train, len(data.train)), batch=train.batch, lr=train.lr,
            weight_decay=train.weight_decay, label_smoothing=train.label_smoothing,
            augment=train.augment or data.augment, epoch_images=train.epoch_images,
            sandwich_every=train.sandwich_every, relaxation=gates.relaxation,
            gate_lr=gates.lr, gate_every=gates.every, tau=(gates.tau_start, gates.tau_end), prune=config.prune,
            latency=gates.term, update=gates.update, inplace=train.inplace,
            ema=train.ema, accumulate=train.accumulate, amp=train.amp, widths=gates.widths, attend=train.attend,
            attend_to=train.attend_to, largest_first=largest_first, blockwise=blockwise, policy=train.policy,
            erase=train.erase)


def shares_of_growth(counts: Sequence[float]) -> list[float]:
    """Returns how many times the mean epochs each pick trains where picks grow one from the other, smallest first.

    ``counts`` are their multiply-adds. Each computes as much as any other, however small it is; the first ``FIRST``
    times as much, as all others begin with what it has learned.
    """
    weights = [FIRST if not place and len(counts) > 1 else 1.0 for place in range(len(counts))]
    return [weight / sum(weights) * sum(counts) / count for weight, count in zip(weights, counts, strict=True)]


class FineTuningRecipe(Record):
    """Holds settings of training one network; ``distill_weight`` is the teacher's share of the loss (0: labels).

    ``epochs`` are at most so many if it is ``patient``: it then ends where held-out loss has stopped falling.
    """

    epochs: int
    patient: bool = False
    batch: int
    lr: float
    weight_decay: float
    label_smoothing: float
    augment: str
    epoch_images: int | None = None
    distill_weight: float = DISTILLED
    accumulate: int = 1
    amp: str = "none"
    distill: str = "kd"  # of nas.training.distill.METHODS, or of WITHOUT_TEACHER
    policy: str = "none"  # of nas.training.policies.POLICIES
    erase: float = 0.0
    mix: str = "none"  # of nas.training.mixing.KINDS
    ema: float = 0.0

    @property
    def augmentation(self) -> Augmentation:
        return Augmentation(self.augment, self.policy, self.erase)

    def depends_on_size(self, config: Config) -> bool:
        """Tells whether smaller picks have more epochs: where they grow, but in a race, and where each ends by itself.
        """
        return self.distill == GROW and not self.patient and config.finalists == 1

    @staticmethod
    def from_config(config: Config, data: Data, usual: Exposure, distill: str = "none") -> FineTuningRecipe:
        """Returns what the settings ask for; ``usual`` epochs where they give none, ``distill`` from a teacher."""
        train, given = config.train, config.train.finetune_epochs
        return FineTuningRecipe(
            epochs=given if given is not None else usual.epochs_of(epoch_size(len(data.learn), train.epoch_images)),
            patient=given is None and usual.patient,
            batch=train.batch, accumulate=train.accumulate, amp=train.amp, distill=distill,
            lr=train.finetune_lr, weight_decay=train.weight_decay, label_smoothing=train.label_smoothing,
            augment=train.augment or data.augment, epoch_images=train.epoch_images, policy=train.policy,
            erase=train.erase, mix=train.mix, ema=train.finetune_ema,
            distill_weight=0.0 if distill in WITHOUT_TEACHER else DISTILLED)
