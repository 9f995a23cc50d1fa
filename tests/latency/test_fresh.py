"""What is timed in a process of its own comes back, and so does what goes wrong there."""

import os
import signal
import time

import pytest

from nas.errors import UserError
from nas.latency.fresh import FORKS, fresh

needs_fork = pytest.mark.skipif(not FORKS, reason="no safe fork on this system")


@needs_fork
def test_the_work_is_done_elsewhere() -> None:
    seen: list[int] = []
    assert fresh(lambda: seen.append(1) or os.getpid()) != os.getpid()  # type: ignore[func-returns-value]
    assert seen == []


def test_an_error_comes_back() -> None:
    def wrong() -> None:
        raise UserError("model: no such file")

    with pytest.raises(UserError, match=r"^model: no such file$"):
        fresh(wrong)


@needs_fork
def test_a_killed_process_is_said_to_be_one() -> None:
    with pytest.raises(RuntimeError, match="ended with code -9"):
        fresh(lambda: os.kill(os.getpid(), signal.SIGKILL))


@needs_fork
def test_an_interrupt_ends_the_work() -> None:
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            fresh(lambda: time.sleep(30))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began < 10


def test_an_error_that_cannot_be_sent_is_told() -> None:
    class Local(Exception):
        """Of no module: it cannot be pickled."""

    def wrong() -> None:
        raise Local("odd")

    with pytest.raises(RuntimeError if FORKS else Local, match="odd"):
        fresh(wrong)
