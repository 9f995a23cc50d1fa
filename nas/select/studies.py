"""Runs Optuna's studies without what they print."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import optuna
from optuna.trial import FrozenTrial

VIOLATIONS = "violations"  # of a trial: one number a constraint, above 0 where it is violated


def violations(trial: FrozenTrial) -> Sequence[float]:
    """Returns a trial's violations, as a sampler's ``constraints_func``."""
    return trial.user_attrs[VIOLATIONS]


@contextmanager
def unwarned() -> Iterator[None]:
    """Silences warnings, as of ``constraints_func``: experimental in Optuna 4, its successor exists from 5 only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Silences Optuna's log of every trial, for as long as this lasts."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
