"""Workers on one storage: nothing lost, nothing counted twice, also where one is killed."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from every import every
from optuna.trial import TrialState

from nas import sampling
from nas.arch import Arch
from nas.errors import UserError
from nas.plan import Layout
from nas.select.evaluation import Evaluation, worker_name
from nas.select.storage import TRIES, Board

WORKERS = 4
WORKER = """
import os, sys, time
from pathlib import Path
from nas.select.evaluation import Evaluation
from nas.select.storage import Board
url, log, parent, workers, victim = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
def wait_until(done):
    while os.getppid() == parent and not done():
        time.sleep(0.01)
def evaluate(arch):
    with log.open("a") as file:
        file.write(f"{os.getpid()} {arch.id}\\n")
    wait_until(lambda: len({line.split()[0] for line in log.read_text().splitlines()}) == workers)
    if arch.id == victim and not os.path.islink(f"{log}.victim"):
        os.symlink(str(os.getpid()), f"{log}.victim")
        wait_until(lambda: False)  # killed here
    return Evaluation(int(arch.id, 16) % 1000 / 1000, 0.5, 0.1)
board = Board(url, "test")
while os.getppid() == parent:
    if not board.work(evaluate, str(os.getpid())):
        time.sleep(0.02)
"""


def drawn(layout: Layout, n: int) -> list[Arch]:
    rng = random.Random(0)
    return list(dict.fromkeys(sampling.sample(layout, rng) for _ in range(2 * n)))[:n]


def loss_of(arch: Arch) -> float:
    return int(arch.id, 16) % 1000 / 1000


@pytest.fixture(params=["sqlite", "journal"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'all.db'}" if request.param == "sqlite" else f"journal:{tmp_path / 'all.journal'}"


def test_each_network_is_evaluated_once_and_kept(url: str, tiny: Layout) -> None:
    archs = drawn(tiny, 4)
    board, asked = Board(url, "one"), list[str]()

    def evaluate(arch: Arch) -> Evaluation:
        asked.append(arch.id)
        return Evaluation(loss_of(arch), 0.25, 0.125)

    board.post(archs[:3])
    board.post(archs)
    assert [board.work(evaluate, "me") for _ in range(5)] == [True] * 4 + [False]
    assert sorted(asked) == sorted(arch.id for arch in archs)
    again = Board(url, "one")
    found = list(again.evaluated(archs, lambda: pytest.fail("nothing to wait for")))
    assert found == [(arch, Evaluation(loss_of(arch), 0.25, 0.125)) for arch in archs]
    assert again.archs() == {arch.id: arch for arch in archs}
    assert Board(url, "another supernet").results() == {}


def test_what_a_worker_was_at_when_it_went_is_taken_over(url: str, tiny: Layout) -> None:
    [arch] = drawn(tiny, 1)
    board, other = Board(url, "one"), Board(url, "one")
    board.post([arch])

    def gone(arch: Arch) -> Evaluation:
        other.release("gone")  # taken for dead while it is at work
        other.post([arch])
        assert other.work(lambda arch: Evaluation(1.0, 0.5, 0.1), "other")
        return Evaluation(2.0, 0.5, 0.1)

    assert board.work(gone, "gone")
    assert other.results()[arch.id].loss == 1.0 and not board.work(gone, "gone")


def test_only_one_process_at_a_time_looks_for_a_network_on_sqlite(tmp_path: Path, tiny: Layout,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks for what waits holds the lock beside the file, which nobody else then gets."""
    board, looked, trials = Board(f"sqlite:///{tmp_path / 'all.db'}", "one"), list[str](), Board._trials
    board.post(drawn(tiny, 1))

    def look(self: Board, *states: TrialState) -> Any:
        if states == (TrialState.WAITING,):
            with (tmp_path / "all.db.lock").open("a") as other, pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            looked.append("alone")
        return trials(self, *states)

    monkeypatch.setattr(Board, "_trials", look)
    assert board.work(lambda arch: Evaluation(1.0, 0.5, 0.1), "me") and looked == ["alone"]
    with (tmp_path / "all.db.lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # given back


def test_a_network_that_fails_is_tried_again_and_then_refused(url: str, tiny: Layout) -> None:
    [arch] = drawn(tiny, 1)
    board = Board(url, "one")

    def fails(arch: Arch) -> Evaluation:
        raise ValueError("no memory")

    for _ in range(TRIES):
        board.post([arch])
        assert board.work(fails, "me")
    with pytest.raises(UserError, match=f"{arch.id}: {TRIES} evaluations of it failed: ValueError: no memory"):
        board.post([arch])


def test_a_journal_gives_up_what_a_process_that_is_no_more_was_at(tmp_path: Path, tiny: Layout) -> None:
    archs, url = drawn(tiny, 2), f"journal:{tmp_path / 'all.journal'}"
    board = Board(url, "one")
    board.post(archs)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for worker in (worker_name(ended.pid), "another.machine:1"):  # killed at work: what they took still runs
        trial = next(filter(board._taken, board._trials(TrialState.WAITING)))
        board._storage.set_trial_user_attr(trial._trial_id, "worker", worker)
    assert not board.work(lambda arch: Evaluation(1.0, 0.5, 0.1), worker_name(os.getpid()))
    again = Board(url, "one")
    again.release()
    again.post(archs)
    assert [again.work(lambda arch: Evaluation(1.0, 0.5, 0.1), "me") for _ in range(2)] == [True, False]


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_storage_that_nobody_else_can_open_is_refused(url: str) -> None:
    with pytest.raises(UserError, match=r"is in the memory of one process; write sqlite:///FILE"):
        Board(url, "one")


def test_a_storage_that_is_not_there_is_one_line() -> None:
    with pytest.raises(UserError, match=r"storage=sqlite:////nowhere/at/all\.db: .*write sqlite"):
        Board("sqlite:////nowhere/at/all.db", "one")


def killed_in_the_middle(url: str, archs: list[Arch], log: Path) -> dict[str, float]:
    """Four workers, all of them with a network in hand when one is killed at its own; returns what was found.

    The one that takes ``archs[2]`` first stays at it until it is killed: whatever else the machine does meanwhile.
    """
    board = Board(url, "test")
    board.post(archs)
    command = [sys.executable, "-c", WORKER, url, str(log), str(os.getpid()), str(WORKERS), archs[2].id]
    workers = [subprocess.Popen(command) for _ in range(WORKERS)]

    def watch() -> None:
        assert every(worker.poll() is None for worker in workers if worker is not killed)

    killed = None
    try:
        victim = Path(f"{log}.victim")
        while not victim.is_symlink():
            watch()
            time.sleep(0.02)
        killed = next(worker for worker in workers if str(worker.pid) == os.readlink(victim))
        killed.send_signal(signal.SIGKILL)
        assert killed.wait() == -signal.SIGKILL
        board.release(str(killed.pid))
        return {arch.id: one.loss for arch, one in board.evaluated(archs, watch)}
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def check(url: str, archs: list[Arch], log: Path) -> None:
    found = killed_in_the_middle(url, archs, log)
    assert found == {arch.id: loss_of(arch) for arch in archs}  # as one worker would have
    assert len({line.split()[0] for line in log.read_text().splitlines()}) == WORKERS
    begun = [line.split()[1] for line in log.read_text().splitlines()]
    assert sorted(begun) == sorted(arch.id for arch in [*archs, archs[2]])  # only what was killed was begun twice
    assert len(Board(url, "test").results()) == len(archs)


def test_four_workers_one_killed_on_sqlite(tmp_path: Path, tiny: Layout) -> None:
    check(f"sqlite:///{tmp_path / 'all.db'}", drawn(tiny, 40), tmp_path / "log")


@pytest.fixture
def postgresql() -> Iterator[str]:
    pytest.importorskip("psycopg", reason="no PostgreSQL driver (pip install 'psycopg[binary]')")
    found = shutil.which("initdb") or next(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")), None)
    if found is None:
        pytest.skip("no PostgreSQL server here (Debian: apt-get install postgresql)")
    place, folder = Path(found).resolve().parent, Path(tempfile.mkdtemp())
    server: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL, "cwd": folder}
    if os.getuid() == 0:  # it refuses to run as root; Debian's package makes this user
        shutil.chown(folder, "postgres")
        server["user"] = "postgres"
    subprocess.run([place / "initdb", "-D", folder / "db", "-A", "trust", "-U", "nas"], **server)
    subprocess.run([place / "pg_ctl", "-D", folder / "db", "-w", "-l", folder / "log", "-o",
                    f"-c listen_addresses='' -k {folder}", "start"], **server)
    try:
        yield f"postgresql+psycopg://nas@/postgres?host={folder}"
    finally:
        subprocess.run([place / "pg_ctl", "-D", folder / "db", "-m", "immediate", "stop"], **server)
        shutil.rmtree(folder)


def test_four_workers_one_killed_on_postgresql(postgresql: str, tmp_path: Path, tiny: Layout) -> None:
    check(postgresql, drawn(tiny, 40), tmp_path / "log")
