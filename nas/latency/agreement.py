"""How well predicted milliseconds agree with measured ones, and where a table keeps that."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import kendalltau, spearmanr


def agreement(predicted: np.ndarray, measured: np.ndarray) -> dict[str, Any]:
    """``n``, ``mape``, ``bias`` (below zero: predicted too fast), ``kendall``, ``spearman`` of two [n] of ms."""
    return {"n": len(predicted), "mape": mape(predicted, measured), "bias": float(np.mean(predicted / measured - 1)),
            "kendall": kendall(predicted, measured), "spearman": _rank(spearmanr, predicted, measured)}


def mape(predicted: np.ndarray, measured: np.ndarray) -> float:
    """Mean absolute relative error, a fraction."""
    return float(np.mean(np.abs(predicted / measured - 1)))


def kendall(a: np.ndarray, b: np.ndarray) -> float | None:
    """None where it is undefined: fewer than two networks, or all alike."""
    return _rank(kendalltau, a, b)


def note(meta: dict[str, Any], validation: dict[str, Any]) -> None:
    """``validation`` is the newest one, those before it stand in ``earlier_validations``, oldest first."""
    if meta.get("validation"):
        meta["earlier_validations"] = [*meta.get("earlier_validations", []), meta["validation"]]
    meta["validation"] = validation


def _rank(statistic: Any, a: np.ndarray, b: np.ndarray) -> float | None:
    if len(a) < 2 or len(set(a)) == 1 or len(set(b)) == 1:
        return None
    return float(statistic(a, b).statistic)
