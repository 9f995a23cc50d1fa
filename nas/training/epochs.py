"""Defines how many images an epoch of a training has, and what it reports: means over its steps, to six places."""

from __future__ import annotations

from dataclasses import dataclass

from nas.supernet.drop import Drop


def epoch_size(images: int, most: int | None) -> int:
    """Returns how many of so many images an epoch has, where it may have ``most``; all of them without it."""
    return min(most or images, images)


@dataclass(frozen=True, kw_only=True)
class TuningEpoch:
    """Reports an epoch of one network; ``epoch`` counts from 0.

    ``label_loss`` is what networks with and without a teacher have alike: the cross-entropy with the labels, on images
    of the training; ``held_out`` is that on others. Exits have neither.
    """

    epoch: int
    loss: float
    label_loss: float | None = None
    held_out: float | None = None


@dataclass(frozen=True, kw_only=True)
class EntryTest:
    """Compares the smallest and the largest network after the warm-up, on images that no weight learned from."""

    smallest_loss: float
    largest_loss: float
    smallest_accuracy: float
    largest_accuracy: float

    @property
    def passed(self) -> bool:
        """Says whether the losses lie clearly apart, as they must for gates to learn anything."""
        return self.smallest_loss - self.largest_loss > 0.02 + 0.05 * self.largest_loss


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """Reports what an epoch of the search dropped, and the supernet that is left.

    ``skip_share`` is the mean probability of leaving a slot out, over the slots that may be left out.
    """

    dropped: tuple[Drop, ...]
    branches: int
    parameters: int
    skip_share: float


@dataclass(frozen=True, kw_only=True)
class SupernetEpoch:
    """Reports an epoch of the supernet; ``epoch`` counts from 0 within its phase. A figure of no step is None.

    ``loss_*`` are cross-entropies with labels, ``kd_*`` divergences from the largest network, ``blockwise`` the error
    of choices in their own slots, ``budget_residual`` how far the expected latency is from the budget, as a share.
    """

    phase: str
    epoch: int
    loss_largest: float | None = None
    loss_random: float | None = None
    kd_random: float | None = None
    kd_smallest: float | None = None
    blockwise: float | None = None
    grad_norm: float | None = None
    gate_loss: float | None = None
    gate_entropy: float | None = None  # nats a slot
    budget_residual: float | None = None
    gate_grad_norm: float | None = None
    pruning: Pruning | None = None
    entry: EntryTest | None = None
