"""Compares additive scores by how well they rank networks that they have not seen.

They are the gates' log-probabilities; one-swap loss changes (LANA: Molchanov et al., ECCV 2022, arXiv 2107.10624,
section 3); and fits on what was judged, with or without either of these as their prior.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.stats import kendalltau

from nas.arch import Arch
from nas.select.problem import Problem, Scores
from nas.select.scores import ridge, totals

FOLDS, FEWEST = 5, 10  # of judged networks; with fewer nothing is compared
GATES, SWAPS, FIT = "gates", "swaps", "fit"
Fit = Callable[[Sequence[Arch], Sequence[float]], Scores]


def candidates(problem: Problem, priors: Mapping[str, Scores]) -> dict[str, Fit]:
    """Returns ways to score networks from judged ones, by name: each prior, a fit on each, and a fit without prior."""
    fits = {FIT: _fitted(problem, None)}
    for name, prior in priors.items():
        if any(np.ptp(row) > 0 for row in prior):
            fits[name], fits[f"{FIT} on {name}"] = _given(prior), _fitted(problem, prior)
    return fits


def _given(scores: Scores) -> Fit:
    return lambda archs, losses: scores


def _fitted(problem: Problem, prior: Scores | None) -> Fit:
    return lambda archs, losses: ridge(problem, archs, losses, prior=prior)


def held_out(problem: Problem, fit: Fit, archs: Sequence[Arch], losses: Sequence[float]) -> np.ndarray:
    """Returns the score of each network by scores that were made without it, in ``FOLDS`` parts.

    Each part's scores are moved to the mean of the negative losses of the others, so that parts can be compared.
    """
    picks, result = [problem.indices(arch) for arch in archs], np.zeros(len(archs))
    for fold in range(FOLDS):
        rest = [i for i in range(len(archs)) if i % FOLDS != fold]
        part = [i for i in range(len(archs)) if i % FOLDS == fold]
        known = [losses[i] for i in rest]
        scores = fit([archs[i] for i in rest], known)
        shift = float(totals(scores, [picks[i] for i in rest]).mean() + np.mean(known))
        result[part] = totals(scores, [picks[i] for i in part]) - shift
    return result


def agreements(problem: Problem, fits: Mapping[str, Fit], archs: Sequence[Arch], losses: Sequence[float],
               measured: Sequence[float] | None = None) -> dict[str, float]:
    """Returns Kendall's tau of each candidate's held-out scores with ``measured``: the negative losses unless given.

    Empty with fewer than ``FEWEST`` networks; 0 where either is constant.
    """
    if len(archs) < FEWEST:
        return {}
    truth = [-loss for loss in losses] if measured is None else measured
    return {name: _tau(held_out(problem, fit, archs, losses), truth) for name, fit in fits.items()}


def best(problem: Problem, fits: Mapping[str, Fit], archs: Sequence[Arch], losses: Sequence[float],
         otherwise: str) -> str:
    """Returns the candidate that ranks held-out networks best; ``otherwise`` where too few are known to say."""
    taus = agreements(problem, fits, archs, losses)
    return max(taus, key=lambda name: taus[name]) if taus else otherwise


def swaps(problem: Problem, base: Sequence[int]) -> list[list[int]]:
    """Returns the one-swap neighbours of a network: in each slot all branches at their two extreme widths."""
    neighbours: dict[tuple[int, ...], None] = {}
    for slot, groups in enumerate(problem.branches):
        for group in groups:
            for index in dict.fromkeys((group[0], group[-1])):
                neighbours[(*base[:slot], index, *base[slot + 1:])] = None
    neighbours.pop(tuple(base), None)
    return [list(pick) for pick in neighbours]


def swap_scores(problem: Problem, base: Sequence[int], losses: Mapping[tuple[int, ...], float]) -> Scores:
    """Scores each choice by how much the loss fell when it alone was swapped in, as far as that was judged.

    Widths between two judged ones are interpolated over their logarithm; a branch that was not judged has the mean of
    its slot.
    """
    here = losses[tuple(base)]
    rows = []
    for slot, (groups, ops) in enumerate(zip(problem.branches, problem.allowed, strict=True)):
        row = np.full(len(ops), math.nan)
        for group in groups:
            seen = [i for i in group if math.isfinite(losses.get((*base[:slot], i, *base[slot + 1:]), math.nan))]
            if seen:
                change = [here - losses[(*base[:slot], i, *base[slot + 1:])] for i in seen]
                row[list(group)] = np.interp([_log_width(ops[i].get("hidden")) for i in group],
                                             [_log_width(ops[i].get("hidden")) for i in seen], change)
        rows.append(np.where(np.isnan(row), np.nanmean(row) if not np.isnan(row).all() else 0.0, row))
    return tuple(rows)


def _log_width(hidden: int | str | None) -> float:
    return math.log(hidden) if isinstance(hidden, int) and hidden > 0 else 0.0


def _tau(score: Sequence[float] | np.ndarray, truth: Sequence[float]) -> float:
    tau = float(kendalltau(score, truth).statistic)
    return tau if math.isfinite(tau) else 0.0
