"""Decides at which exit a network stops: thresholds for a mean latency, worked out on recorded confidences.

All functions are pure: ``confidence`` and ``right`` are [exits, n] (the head is the last exit), ``prefix_ms`` [exits]
is the latency of leaving there, the exits passed included. An image leaves at the first exit that is at least as sure
as its threshold; the head's is -inf.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from nas.errors import UserError
from nas.exits.runtime import CONFIDENCES, confidences
from nas.exits.thresholds import Point, Policy
from nas.plan import OpKey, prefixes
from nas.units import rounded_up

Array = np.ndarray[Any, Any]
POINTS = 39  # of MSDNet's curve
HALVINGS, SWEEPS, TRIED = 30, 20, 16  # of the direct search; thresholds of one exit that are tried in pairs


def prefix_ms(keys: Sequence[OpKey], price: Callable[[Iterable[OpKey]], list[float]]) -> Array:
    """Returns [exits] ms of leaving at each exit of a plan. ``Costs.ms_many`` raises UserError for unknown costs."""
    sums = dict(zip(range(1, len(keys) + 1), np.cumsum(price(keys)), strict=True))
    return np.array([sums[len(prefix)] for prefix in prefixes(keys)])


def leaving(confidence: Array, thresholds: Sequence[float] | Array) -> Array:
    """Returns [n]: the exit at which each image leaves."""
    return np.asarray((confidence >= np.asarray(thresholds)[:, None]).argmax(0))


def outcome(confidence: Array, right: Array, thresholds: Sequence[float] | Array, prefix_ms: Array) -> Point:
    """Computes what thresholds give; the worst latency is that of the deepest exit that an image can reach."""
    at = leaving(confidence, thresholds)
    deepest = int(np.argmax(np.asarray(thresholds) == -np.inf))
    shares = np.bincount(at, minlength=len(confidence)) / at.size
    return Point(thresholds=tuple(map(float, thresholds)), shares=tuple(map(float, shares)),
                 mean_ms=float(shares @ prefix_ms), worst_ms=float(prefix_ms[deepest]),
                 accuracy=float(right[at, np.arange(at.size)].mean()))


def geometric_shares(r: float, exits: int) -> Array:
    """Returns q_k = r^k / sum_j r^j, k = 1..exits: most leave early for r < 1, late for r > 1 (MSDNet, 1703.09844)."""
    powers = r ** np.arange(1, exits + 1)
    return np.asarray(powers / powers.sum())


def geometric(confidence: Array, r: float) -> Array:
    """Returns [exits] thresholds so that about the share q_k of all images leaves at exit k: MSDNet's budgeted batch.

    q_k are the ``geometric_shares`` of ``r``. Of the images that are left at exit k, the floor(n q_k)-th surest sets
    the threshold; where fewer are left, none leaves there (+inf).
    """
    exits, n = confidence.shape
    thresholds, left = _nobody(exits), np.ones(n, bool)
    for k, share in enumerate(geometric_shares(r, exits)[:-1]):
        surest, count = np.sort(confidence[k, left])[::-1], int(n * share)
        if 0 < count <= len(surest):
            thresholds[k] = surest[count - 1]
            left &= confidence[k] < thresholds[k]
    return thresholds


def curve(calibration: tuple[Array, Array], test: tuple[Array, Array], prefix_ms: Array) -> list[Point]:
    """Returns accuracy over mean latency on ``test`` with thresholds from ``calibration``: one point an r = p / 20.

    Both are (confidence, right).
    """
    return [outcome(*test, geometric(calibration[0], p / 20), prefix_ms) for p in range(1, POINTS + 1)]


def area(points: Sequence[Point], low_ms: float, high_ms: float) -> float:
    """Returns the area under accuracy over mean latency, from ``low_ms`` to ``high_ms``, divided by their difference.

    The accuracy at a latency is that of the best point within it; where no point is, it is 0.
    """
    within = sorted(p for p in ((point.mean_ms, point.accuracy) for point in points) if p[0] <= high_ms)
    total, best, at = 0.0, 0.0, low_ms
    for ms, accuracy in within:
        total += best * max(0.0, ms - at)
        at, best = max(at, ms), max(best, accuracy)
    return (total + best * (high_ms - at)) / (high_ms - low_ms)


def anytime(prefix_ms: Array, deadline_ms: float) -> Array:
    """Returns [exits] thresholds for a deadline: every image leaves at the deepest exit that is reached by then.

    Raises UserError where not even the first is.
    """
    reached = np.flatnonzero(np.asarray(prefix_ms) <= deadline_ms)
    if not len(reached):
        raise UserError(f"deadline {deadline_ms:g} ms: the first exit takes {rounded_up(prefix_ms[0])} ms")
    return _everybody_at(int(reached[-1]), len(prefix_ms))


def by_rule(confidence: Array, right: Array, prefix_ms: Array, budget_ms: float) -> Point:
    """Sets thresholds by MSDNet's geometric rule, with the r that comes nearest to a mean of ``budget_ms`` from below.

    Raises UserError where the first exit alone takes longer.
    """
    def at(log_r: float) -> Point:
        return outcome(confidence, right, geometric(confidence, float(np.exp(log_r))), prefix_ms)

    ends = _ends(confidence, right, prefix_ms, budget_ms)
    low, high = np.log(0.001), np.log(1000.0)
    tried = []
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        tried.append(at(middle))
        low, high = (middle, high) if tried[-1].mean_ms <= budget_ms else (low, middle)
    return max((p for p in [*ends, *tried] if p.mean_ms <= budget_ms), key=lambda p: (p.mean_ms, p.accuracy))


def by_search(confidence: Array, right: Array, prefix_ms: Array, budget_ms: float) -> Point:
    """Searches the most accurate thresholds with a mean latency of at most ``budget_ms`` on these images.

    Maximises accuracy - price * ms, one threshold at a time, each exactly, at prices found by bisection; then, within
    the budget, tries other thresholds of one exit with the best of the others. It also starts from ``by_rule`` and so
    is never worse. Raises UserError where the first exit alone takes longer.
    """
    search = _Search(confidence, right, prefix_ms)
    points = [*_ends(confidence, right, prefix_ms, budget_ms), by_rule(confidence, right, prefix_ms, budget_ms)]
    low, high = np.log(1e-6 / prefix_ms[-1]), np.log(1e6 / prefix_ms[-1])  # of the price, accuracy an ms
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        points.append(search.point(search.ascend(_nobody(len(confidence)), price=float(np.exp(middle)))))
        low, high = (low, middle) if points[-1].mean_ms <= budget_ms else (middle, high)
    return search.refined(max((p for p in points if p.mean_ms <= budget_ms), key=_better), budget_ms)


RULES = {"search": by_search, "geometric": by_rule}


def temperatures(logits: Array, labels: Array) -> Array:
    """Returns [exits] divisors of the logits [exits, n, classes] that make confidences probabilities of being right.

    Each minimises the cross-entropy of its exit on held-out images (Guo et al., arXiv 1706.04599).
    """
    def cost(log_t: float, z: Array) -> float:
        scaled = z / np.exp(log_t)
        top = scaled.max(1, keepdims=True)
        log_sum = np.log(np.exp(scaled - top).sum(1)) + top[:, 0]
        return float((log_sum - scaled[np.arange(len(labels)), labels]).mean())

    bounds = (np.log(0.05), np.log(20.0))
    return np.array([np.exp(minimize_scalar(cost, bounds=bounds, args=(z.astype(np.float64),), method="bounded").x)
                     for z in logits])


def calibrate(logits: Array, labels: Array, prefix_ms: Array, budget_ms: float, *, kind: str = "max-softmax",
              rule: str = "search", tempered: bool = True, points: int = 9, chosen: Point | None = None) -> Policy:
    """Sets thresholds for a mean latency of at most ``budget_ms`` from held-out logits [exits, n, classes], labels [n].

    ``points`` further budgets between the first exit and the head are kept, to change to at run time. ``chosen``: the
    thresholds that were chosen before on the same images. Raises UserError for an unknown ``kind`` or ``rule``, and
    where the first exit alone takes longer.
    """
    for what, name, known in (("confidence", kind, CONFIDENCES), ("rule", rule, tuple(RULES))):
        if name not in known:
            raise UserError(f"exits: {what} {name!r}: known are {', '.join(known)}")
    divisors = temperatures(logits, labels) if tempered else np.ones(len(logits))
    confidence, right = confidences(kind, logits, divisors), logits.argmax(-1) == labels

    def shipped(point: Point) -> Point:
        thresholds = tuple(map(float, between(confidence, point.thresholds)))
        return point.model_copy(update={"thresholds": thresholds})

    def point(budget: float) -> Point:
        return shipped(RULES[rule](confidence, right, prefix_ms, budget))

    budgets = np.linspace(prefix_ms[0], prefix_ms[-1], points)
    return Policy(kind=kind, temperatures=tuple(map(float, divisors)), prefix_ms=tuple(map(float, prefix_ms)),
                  n=len(labels), point=shipped(chosen) if chosen else point(budget_ms),
                  points=tuple(point(float(budget)) for budget in budgets))


def between(confidence: Array, thresholds: Sequence[float] | Array) -> Array:
    """Moves thresholds half-way to the next less sure image, so that rounding in a runtime changes nothing."""
    result = np.array(thresholds, float)
    for k, threshold in enumerate(thresholds):
        below = confidence[k][confidence[k] < threshold]
        if np.isfinite(threshold) and len(below):
            result[k] = (threshold + below.max()) / 2
    return result


def _better(point: Point) -> tuple[float, float]:
    return point.accuracy, -point.mean_ms


def _nobody(exits: int) -> Array:
    return np.array([np.inf] * (exits - 1) + [-np.inf])


def _everybody_at(index: int, exits: int) -> Array:
    return np.array([np.inf] * index + [-np.inf] * (exits - index))


def _ends(confidence: Array, right: Array, prefix_ms: Array, budget_ms: float) -> Iterator[Point]:
    """Yields two extremes: every image leaves at the first exit, and none before the head."""
    if budget_ms < prefix_ms[0]:
        raise UserError(f"budget {budget_ms:g} ms: leaving at the first exit takes {rounded_up(prefix_ms[0])} ms")
    for index in (0, len(confidence) - 1):
        yield outcome(confidence, right, _everybody_at(index, len(confidence)), prefix_ms)


class _Search:
    """Searches thresholds on recorded confidences, one at a time, each exactly, while the others stay as they are."""

    def __init__(self, confidence: Array, right: Array, prefix_ms: Array) -> None:
        self.confidence, self.right, self.ms = confidence, right.astype(float), np.asarray(prefix_ms, float)
        self.order = np.argsort(-confidence, axis=1, kind="stable")

    def point(self, thresholds: Array) -> Point:
        return outcome(self.confidence, self.right, thresholds, self.ms)

    def ascend(self, thresholds: Array, price: float) -> Array:
        for _ in range(SWEEPS):
            before = thresholds.copy()
            for k in reversed(range(len(thresholds) - 1)):
                thresholds[k] = self._best(thresholds, k, price, np.inf)
            if np.array_equal(thresholds, before):
                break
        return thresholds

    def refined(self, best: Point, budget_ms: float) -> Point:
        """Moves each threshold and sets the others to what is then best within the budget, as long as that helps."""
        quantiles = np.linspace(0, 1, min(TRIED, self.confidence.shape[1]))
        tried = [np.r_[np.quantile(row, quantiles, method="nearest"), np.inf] for row in self.confidence[:-1]]
        for _ in range(SWEEPS):
            moved = [self._moved(best, k, value, budget_ms) for k, values in enumerate(tried) for value in values]
            better = max((p for p in moved if p.mean_ms <= budget_ms), key=_better, default=best)
            if _better(better) <= _better(best):
                break
            best = better
        return best

    def _moved(self, start: Point, k: int, value: float, budget_ms: float) -> Point:
        thresholds = np.array(start.thresholds)
        thresholds[k] = value
        for other in reversed(range(len(thresholds) - 1)):
            if other != k:
                thresholds[other] = self._best(thresholds, other, 0.0, budget_ms)
        return self.point(thresholds)

    def _best(self, thresholds: Array, k: int, price: float, budget_ms: float) -> float:
        """Returns the best threshold of exit ``k``, exactly: tries to let the m surest images leave, for all m."""
        passes = np.asarray(self.confidence >= thresholds[:, None])
        coming = np.asarray(~passes[:k].any(0))
        fate = k + 1 + passes[k + 1:].argmax(0)
        passing = self.order[k][coming[self.order[k]]]
        images, columns = self.confidence.shape[1], np.arange(self.confidence.shape[1])
        gained = np.r_[0, np.cumsum((self.right[k] - self.right[fate, columns])[passing])] / images
        saved = np.r_[0, np.cumsum((self.ms[fate] - self.ms[k])[passing])] / images
        spent = self.ms[np.where(coming, fate, passes.argmax(0))].mean() - saved
        sure = self.confidence[k, passing]
        allowed = np.r_[True, np.r_[sure[1:] < sure[:-1], True][:len(passing)]] & (spent <= budget_ms)
        if not allowed.any():
            return float(thresholds[k])
        value = np.where(allowed, gained + price * saved, -np.inf)
        m = int(value.argmax())
        return float(sure[m - 1]) if m else float("inf")
