"""What judging a network finds."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Evaluation:
    """Loss of a network and what else was found (accuracy, ...)."""

    loss: float
    figures: dict[str, Any]


def label(pid: int) -> str:
    """Of a worker: a process of this machine."""
    return f"{socket.gethostname()}:{pid}"


def gone(worker: str) -> bool:
    """Whether it was a process of this machine that is no more; of others nothing is known."""
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
