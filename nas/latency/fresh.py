"""Times things in a new process.

In a process that has prepared and dropped other graphs before, the same graph is 2 to 5 % slower than in a new one: its
memory then lies in pieces that were used before. Who deploys a network loads it into a new process, so that is where
it is timed, and always from the same state.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import pickle
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

Result = TypeVar("Result")
FORKS = sys.platform == "linux"  # elsewhere a fork of a process with threads is not safe, or there is none
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


def fresh(work: Callable[[], Result]) -> Result:
    """Calls ``work`` in a process that is forked for it, or in this one where forking is not safe.

    The result is pickled. Raises what ``work`` raises; RuntimeError if the process was killed.
    """
    if not FORKS:
        return work()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(work, sender))
    process.start()
    sender.close()
    try:
        returned, value = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"the process that was timing ended with code {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
        receiver.close()
    if not returned:
        raise value
    result: Result = value
    return result


def _answer(work: Callable[[], Any], sender: Connection) -> None:
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)  # else it would time on beside whoever continues
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; the parent ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        sender.send((True, work()))
    except Exception as error:
        sender.send((False, _portable(error)))


def _portable(error: Exception) -> Exception:
    """Returns an error that can be sent to another process: not every library's can be pickled."""
    try:
        pickle.loads(pickle.dumps(error))  # safe: this process made it
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
