"""What is timed in a process of its own comes back, and so does what goes wrong there."""

import os
import signal
import threading
import time

import pytest

from nas.errors import UserError
from nas.latency.fresh import FORKS, fresh

needs_fork = pytest.mark.skipif(not FORKS, reason="no safe fork on this system")


@needs_fork
def test_the_work_is_done_elsewhere() -> None:
    seen: list[int] = []
    assert fresh(lambda: seen.append(1) or os.getpid()) != os.getpid()
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
    """Once the work has begun: it then would wait for an hour."""
    reader, writer = os.pipe()
    begun: list[int] = []

    def work() -> None:
        os.write(writer, f"{os.getpid()}\n".encode())
        time.sleep(3600)

    def interrupt() -> None:
        begun.append(int(os.read(reader, 100)))
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            fresh(work)
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    with pytest.raises(ProcessLookupError):
        os.kill(begun[0], 0)  # it has ended, too


def test_an_error_that_cannot_be_sent_is_told() -> None:
    class Local(Exception):
        """Of no module: it cannot be pickled."""

    def wrong() -> None:
        raise Local("odd")

    with pytest.raises(RuntimeError if FORKS else Local, match="odd"):
        fresh(wrong)
