"""Defines the result of judging a network, and which process judged it."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

J = TypeVar("J")  # a network, or what stands for one


@dataclass(frozen=True)
class Evaluation:
    """Holds loss and accuracy of a judged network; ``accuracy_se`` is the standard error of that."""

    loss: float
    accuracy: float
    accuracy_se: float


def by_loss(judged: Sequence[J], losses: Mapping[J, float]) -> list[J]:
    """Returns what was judged in the order of its loss: what is no number comes last, and equal ones stay in order."""
    return sorted(judged, key=lambda each: (math.isnan(losses[each]), losses[each]))


def worker_name(pid: int) -> str:
    """Names a process of this machine, as ``HOST:PID``, for those that share its storage."""
    return f"{socket.gethostname()}:{pid}"


def has_ended(worker: str) -> bool:
    """Says whether a worker was a process of this machine that has ended; of other machines nothing is known."""
    host, _, pid = worker.rpartition(":")
    if host != socket.gethostname() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # somebody else's; no number of a process
        pass
    return False
