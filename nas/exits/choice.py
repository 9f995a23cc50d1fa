"""Chooses which exits a network keeps: tries all subsets on what its exits answered for held-out images."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nas.errors import UserError
from nas.exits import policy
from nas.exits.net import Combine, combined
from nas.exits.runtime import confidences
from nas.exits.thresholds import Point
from nas.plan import OpKey
from nas.units import rounded_up

Array = np.ndarray[Any, Any]
FINE = 1e-9


@dataclass(frozen=True)
class Pieces:
    """Holds the milliseconds of what runs between two exits, ``trunk`` [exits], and of their heads, ``heads`` [exits].

    The network's own head is the last exit.
    """

    trunk: Array
    heads: Array

    @property
    def plain_ms(self) -> float:
        """Returns the milliseconds of the network without its exits."""
        return float(self.trunk.sum() + self.heads[-1])

    def prefix_ms(self, kept: Sequence[int]) -> Array:
        """Returns [kept + 1] ms of leaving at each exit that is kept, those passed included, and of the head."""
        at = [*kept, len(self.heads) - 1]
        return np.asarray(np.cumsum(self.trunk)[at] + np.cumsum(self.heads[at]))


def pieces(keys: Sequence[OpKey], price: Callable[[Iterable[OpKey]], list[float]], asked_ms: float = 0.0) -> Pieces:
    """Computes the ms of the pieces of a plan with all its exits, by ``Costs.ms_many``.

    ``asked_ms`` is what it takes beyond its head to ask an exit whether it is sure. Raises UserError for unknown costs.
    """
    trunk, heads = [0.0], list[float]()
    for key, ms in zip(keys, price(keys), strict=True):
        if key.is_exit or key is keys[-1]:
            heads.append(ms + asked_ms if key.is_exit else ms)
            trunk.append(0.0)
        else:
            trunk[-1] += ms
    return Pieces(np.array(trunk[:-1]), np.array(heads))


@dataclass(frozen=True)
class ExitLogits:
    """Holds what each exit alone answers for held-out images, ``logits`` [exits, n, classes], and ``labels`` [n]."""

    logits: Array
    labels: Array
    combine: Combine
    kind: str = "max-softmax"
    tempered: bool = True

    def predictions(self, kept: Sequence[int]) -> Array | None:
        """Returns the predictions [kept + 1, n, classes] of the network with only the exits ``kept`` and its head.

        None where one of these builds on an exit that is left out.
        """
        combine = self.combine.kept(kept)
        if combine is None:
            return None
        logits = [torch.from_numpy(self.logits[index]) for index in (*kept, len(self.logits) - 1)]
        with torch.no_grad():
            return torch.stack(combined(combine.eval(), logits)).numpy()

    def sure(self, predictions: Array) -> tuple[Array, Array]:
        """Returns how sure each exit is and whether it is right, both [exits, n]."""
        divisors = policy.temperatures(predictions, self.labels) if self.tempered else None
        return confidences(self.kind, predictions, divisors), predictions.argmax(-1) == self.labels

    @property
    def accuracy(self) -> float:
        """Returns the accuracy of the network's own head, which has no say in the exits below."""
        return float((self.logits[-1].argmax(-1) == self.labels).mean())


def subsets(exits: int) -> Iterator[tuple[int, ...]]:
    """Yields all choices of exits before the head, one exit at least: few first."""
    for count in range(1, exits + 1):
        yield from itertools.combinations(range(exits), count)


def choose(answers: ExitLogits, pieces: Pieces, *, budget_ms: float | None = None, accuracy: float = 0.0,
           max_ms: float | None = None) -> tuple[tuple[int, ...], Point]:
    """Returns the exits to keep, and what thresholds for them give on these images.

    With ``budget_ms`` the most accurate within that mean latency; without, the fastest on average that is at least as
    right as ``accuracy``, and where none is, the most accurate. No image takes longer than ``max_ms``. Every subset is
    tried, each with searched thresholds. Raises UserError where ``max_ms`` or ``budget_ms`` leaves nothing.
    """
    options = []
    for kept in subsets(len(answers.logits) - 1):
        predictions, prefix = answers.predictions(kept), pieces.prefix_ms(kept)
        if predictions is None or (max_ms is not None and prefix[-1] > max_ms + FINE):
            continue
        if budget_ms is None:
            options.append((kept, cheapest(*answers.sure(predictions), prefix, accuracy)))
        elif prefix[0] <= budget_ms:
            options.append((kept, policy.by_search(*answers.sure(predictions), prefix, budget_ms)))
    if not options:
        first = pieces.trunk[0] + pieces.heads[0]
        raise UserError(f"exits: none fit: leaving at the first takes {rounded_up(first)} ms, the whole network "
                        f"with one exit at least {rounded_up(pieces.plain_ms + pieces.heads[:-1].min())} ms")
    if budget_ms is not None:
        return max(options, key=lambda option: (option[1].accuracy, -option[1].mean_ms))
    enough = [option for option in options if option[1].accuracy >= accuracy - FINE]
    if not enough:
        return max(options, key=lambda option: (option[1].accuracy, -option[1].mean_ms))
    return min(enough, key=lambda option: (option[1].mean_ms, -option[1].accuracy))


def cross_validated(answers: ExitLogits, kept: Sequence[int], prefix_ms: Array, budget_ms: float) -> Point:
    """Estimates accuracy and latency at a budget on new images: each half of these leaves by thresholds set on the
    other.

    ``thresholds`` are those of the first half, ``shares``, ``mean_ms`` and ``accuracy`` means over both.
    """
    predictions = answers.predictions(kept)
    assert predictions is not None
    sure, right = answers.sure(predictions)
    halves = slice(0, None, 2), slice(1, None, 2)
    points = []
    for fitted, unseen in (halves, halves[::-1]):
        set_on = policy.by_search(sure[:, fitted], right[:, fitted], prefix_ms, budget_ms)
        points.append(policy.outcome(sure[:, unseen], right[:, unseen], set_on.thresholds, prefix_ms))
    n = [sure[:, part].shape[1] for part in halves[::-1]]
    mean = {name: np.average([getattr(p, name) for p in points], axis=0, weights=n)
            for name in ("shares", "mean_ms", "accuracy")}
    return Point(thresholds=points[0].thresholds, shares=tuple(map(float, mean["shares"])),
                 mean_ms=float(mean["mean_ms"]), worst_ms=max(p.worst_ms for p in points),
                 accuracy=float(mean["accuracy"]))


def cheapest(sure: Array, right: Array, prefix_ms: Array, accuracy: float, rule: str = "search") -> Point:
    """Finds the least mean latency whose thresholds, set by the rule, are as right as ``accuracy``; else the most
    right.

    By bisection of the budget: more of it is never less accurate on these images with searched thresholds, and seldom
    with others.
    """
    low, high, set_by = float(prefix_ms[0]), float(prefix_ms[-1]), policy.RULES[rule]
    best = set_by(sure, right, prefix_ms, high)
    for _ in range(6):
        middle = (low + high) / 2
        point = set_by(sure, right, prefix_ms, middle)
        if point.accuracy >= accuracy - FINE:
            best, high = (point if point.mean_ms <= best.mean_ms or best.accuracy < accuracy else best), middle
        else:
            low = middle
    return best
