"""Lets several processes judge the networks of one selection, through a storage (a database) that they share."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from nas.arch import Arch
from nas.errors import UserError
from nas.ops import user_files
from nas.run.directory import Run
from nas.select.evaluation import Evaluation, worker_name

IDLE_S = 0.2  # between two looks for work


class Crew:
    """Starts worker processes for a selection, and stops them at the end of its ``with`` block.

    ``with Crew(run, url, 4, name) as crew`` has four workers here, beside whoever else runs ``nas judge`` on the
    storage. A worker that ends is not replaced, but the network it was judging is given to another. Raises UserError
    once none is left.
    """

    def __init__(self, run: Run, url: str, workers: int, name: str) -> None:
        from nas.select.storage import Board

        self.run, self.url, self.count, self._board = run, url, workers, Board(url, name)
        self._children: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Crew:
        log = self.run.file("workers.log").open("ab")
        files = [str(source.path) for source in user_files.loaded()]
        command = [sys.executable, "-m", "nas.pipeline.worker", str(self.run.path), self.url, str(os.getpid()), *files]
        environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, _cores() // self.count))}
        with log:
            self._children = [subprocess.Popen(command, stdout=log, stderr=log,
                                               stdin=subprocess.DEVNULL, env=environment) for _ in range(self.count)]
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.terminate()
        for child in self._children:
            child.wait()
            self._board.release(worker_name(child.pid))

    def evaluated(self, archs: Sequence[Arch]) -> Iterator[tuple[Arch, Evaluation]]:
        """Yields each network with its evaluation as soon as some worker has made it."""
        yield from self._board.evaluated(archs, self._watch)

    def _watch(self) -> None:
        """Gives the work of workers that have ended to others. Raises UserError where all have."""
        for child in [child for child in self._children if child.poll() is not None]:
            self._board.release(worker_name(child.pid))
            self._children.remove(child)
        if not self._children:
            raise UserError(f"{self.run.file('workers.log')}: all workers have ended; it says why, and the same "
                            "command continues")


def _cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def study_name(run: Run, supernet: str, *judging: Any) -> str:
    """Returns the name under which a storage keeps the evaluations of one supernet, judged in one way."""
    file = run.file(supernet)
    state = file.stat()
    digest = hashlib.sha256(f"{_digest(file, state.st_mtime_ns, state.st_size)} {judging!r}".encode())
    return f"nas-{digest.hexdigest()[:16]}"


@lru_cache(maxsize=8)
def _digest(file: Path, *state: int) -> str:
    """Returns the SHA-256 of a file, computed once for each time and size of it: it may have hundreds of MB."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def serve_evaluations(url: str, name: str, evaluate: Callable[[Arch], Evaluation], parent: int | None) -> None:
    """Evaluates the networks that wait in a storage, until interrupted, or until the process ``parent`` has ended."""
    from nas.select.storage import Board

    board = Board(url, name)
    while parent is None or os.getppid() == parent:
        if not board.work(evaluate, worker_name(os.getpid())):
            time.sleep(IDLE_S)
