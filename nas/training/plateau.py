"""Tells when a held-out loss has stopped falling, so that training may end."""

from __future__ import annotations

from collections.abc import Sequence

GAIN = 0.01  # share by which the loss has to fall to count as falling
RECENT, LEAST = 0.25, 4  # the last quarter of the epochs, of at least four, is compared with those before


def is_flat(losses: Sequence[float]) -> bool:
    """Tells whether the best of the recent losses is no better than the best before; of too few epochs nothing is told.
    """
    recent = max(LEAST, -(-len(losses) // round(1 / RECENT)))
    if len(losses) < 2 * recent:
        return False
    return min(losses[-recent:]) > (1 - GAIN) * min(losses[:-recent])


def flat_at(losses: Sequence[float]) -> int | None:
    """Returns behind how many epochs the losses were flat first; None if never."""
    return next((done for done in range(1, len(losses) + 1) if is_flat(losses[:done])), None)
