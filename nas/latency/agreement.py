"""Computes how well predicted milliseconds agree with measured ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import kendalltau, spearmanr


@dataclass(frozen=True)
class Agreement:
    """Says how well ``n`` predictions agree with measurements: mean errors as fractions, and rank correlations.

    ``bias`` is below zero where predictions are too fast. A correlation is None where it is undefined.
    """

    n: int
    mape: float
    bias: float
    kendall: float | None
    spearman: float | None


def agreement(predicted: np.ndarray, measured: np.ndarray) -> Agreement:
    """Compares two arrays [n] of milliseconds."""
    return Agreement(len(predicted), mape(predicted, measured), float(np.mean(predicted / measured - 1)),
                     kendall(predicted, measured), _rank(spearmanr, predicted, measured))


def mape(predicted: np.ndarray, measured: np.ndarray) -> float:
    """Returns the mean absolute relative error, a fraction."""
    return float(np.mean(np.abs(predicted / measured - 1)))


def kendall(a: np.ndarray, b: np.ndarray) -> float | None:
    """Returns Kendall's rank correlation; None where it is undefined: fewer than two networks, or all alike."""
    return _rank(kendalltau, a, b)


def _rank(statistic: Any, a: np.ndarray, b: np.ndarray) -> float | None:
    if len(a) < 2 or len(set(a)) == 1 or len(set(b)) == 1:
        return None
    return float(statistic(a, b).statistic)
