"""Says how many processes ``torchrun`` started for one search, and which of them this is; without it there is one."""

from __future__ import annotations

import os
import signal


def processes() -> int:
    return _number("WORLD_SIZE", 1)


def processes_here() -> int:
    """Returns how many of the processes run on this machine."""
    return _number("LOCAL_WORLD_SIZE", 1)


def rank() -> int:
    return _number("RANK", 0)


def leads() -> bool:
    """Says whether this is the process that writes, prints and does everything but its part of the training."""
    return rank() == 0


def end_on_signals() -> None:
    """Lets a process that does not lead end at once when it is interrupted: it has nothing to tidy up or say."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def gpu() -> int:
    """Returns the GPU of this process, counted on its machine."""
    return _number("LOCAL_RANK", 0)


def _number(name: str, alone: int) -> int:
    """Reads a number that ``torchrun`` set; RANK and WORLD_SIZE alone mean nothing: other launchers set them, too."""
    return int(os.environ.get(name, alone)) if "TORCHELASTIC_RUN_ID" in os.environ else alone
