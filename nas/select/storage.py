"""Shares evaluations between processes by an Optuna storage: SQLite, PostgreSQL, MySQL by URL, or ``journal:FILE``.

One trial is one evaluation of one network: waiting, running, complete (its value is the loss) or failed. Whoever takes
a trial from waiting to running evaluates it; the storage lets only one do so. A network whose trial failed, as that of
a worker that is gone does, is posted again; of two results for one network the first counts.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage, fail_stale_trials
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from nas.arch import Arch
from nas.errors import UserError, setting
from nas.select.evaluation import Evaluation, has_ended

HEARTBEAT_S, GRACE_S = 15, 60  # of a worker that evaluates; after so long without one it is taken for gone
POLL_S = 0.1
TRIES = 3  # failures of one network before the selection gives up
_ID, _ARCH, _WORKER, _ERROR, _ACCURACY = "id", "arch", "worker", "error", "accuracy"


class Board:
    """Posts, hands out and collects the evaluations of one supernet; ``name`` says which, and how it is judged."""

    def __init__(self, url: str, name: str) -> None:
        optuna.logging.set_verbosity(logging.WARNING)
        self._storage = _opened(url)
        # SQLite knows no SELECT FOR UPDATE: two processes may both read that a trial waits
        self._lock = Path(f"{url.partition('///')[2]}.lock") if url.startswith("sqlite") else None
        self._study = optuna.create_study(study_name=name, storage=self._storage, load_if_exists=True)
        self._id = self._storage.get_study_id_from_name(name)

    def results(self) -> dict[str, Evaluation]:
        """Returns the complete evaluations by id of the network; of two for one network the first."""
        done: dict[str, Evaluation] = {}
        for trial in self._trials(TrialState.COMPLETE):
            [loss] = trial.values or [math.inf]
            done.setdefault(trial.user_attrs[_ID], Evaluation(loss, *trial.user_attrs[_ACCURACY]))
        return done

    def archs(self) -> dict[str, Arch]:
        """Returns all networks whose evaluation is complete, by id."""
        return {trial.user_attrs[_ID]: Arch.from_json(json.loads(trial.user_attrs[_ARCH]))
                for trial in self._trials(TrialState.COMPLETE)}

    def post(self, archs: Sequence[Arch]) -> None:
        """Posts the networks that are neither complete nor waiting nor running.

        Raises UserError for one whose evaluation failed too often.
        """
        trials = self._trials()
        live = {trial.user_attrs[_ID] for trial in trials if trial.state != TrialState.FAIL}
        for arch in archs:
            failed = [t for t in trials if t.user_attrs[_ID] == arch.id and _ERROR in t.user_attrs]
            if len(failed) >= TRIES:
                raise UserError(f"{arch.id}: {TRIES} evaluations of it failed: {failed[-1].user_attrs[_ERROR]}; the "
                                f"storage keeps that: once it is mended, give another {setting('storage')} (what this "
                                "run judged stays known)")
            if arch.id not in live:
                attrs = {_ID: arch.id, _ARCH: json.dumps(arch.to_json())}
                self._storage.create_new_trial(self._id, create_trial(state=TrialState.WAITING, user_attrs=attrs))

    def release(self, worker: str | None = None) -> None:
        """Gives up the evaluations of a worker that has ended; without a name, those long without a heartbeat.

        A journal has no heartbeats: there, those of processes of this machine that have ended.
        """
        if worker is None and isinstance(self._storage, RDBStorage):
            fail_stale_trials(self._study)
            return
        for trial in self._trials(TrialState.RUNNING):
            if trial.user_attrs.get(_WORKER) == worker if worker is not None else _gone(trial):
                with contextlib.suppress(UpdateFinishedTrialError):
                    self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    def work(self, evaluate: Callable[[Arch], Evaluation], worker: str) -> bool:
        """Takes one network that waits, if there is one, and evaluates it; says whether there was."""
        with self._alone():
            trial = next(filter(self._taken, self._trials(TrialState.WAITING)), None)
        if trial is None:
            return False
        number = trial._trial_id
        with self._beating(number), contextlib.suppress(UpdateFinishedTrialError):  # that is: taken for gone
            self._storage.set_trial_user_attr(number, _WORKER, worker)
            try:
                evaluation = evaluate(Arch.from_json(json.loads(trial.user_attrs[_ARCH])))
            except BaseException as error:
                if isinstance(error, Exception):
                    self._storage.set_trial_user_attr(number, _ERROR, f"{type(error).__name__}: {error}"[:500])
                self._storage.set_trial_state_values(number, TrialState.FAIL)
                if not isinstance(error, Exception):
                    raise
                return True
            self._storage.set_trial_user_attr(number, _ACCURACY, [evaluation.accuracy, evaluation.accuracy_se])
            loss = evaluation.loss if math.isfinite(evaluation.loss) else math.inf
            self._storage.set_trial_state_values(number, TrialState.COMPLETE, [loss])
        return True

    def evaluated(self, archs: Sequence[Arch], watch: Callable[[], None]) -> Iterator[tuple[Arch, Evaluation]]:
        """Posts the networks and yields them in order as they are complete; ``watch`` is called while waiting."""
        self.post(archs)
        for arch in archs:
            while (evaluation := self.results().get(arch.id)) is None:
                watch()
                self.release()
                self.post([arch])
                time.sleep(POLL_S)
            yield arch, evaluation

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        trials = self._storage.get_all_trials(self._id, deepcopy=False, states=states or None)
        ended = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        ended.sort(key=lambda trial: (trial.datetime_complete is None, trial.datetime_complete, trial.number))
        return [*(trial for trial in trials if trial.state != TrialState.COMPLETE), *ended]

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Lets one process at a time take a trial, by a lock beside the file of a database that cannot do so itself."""
        if self._lock is None:
            yield
            return
        with self._lock.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _taken(self, trial: FrozenTrial) -> bool:
        try:
            return self._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
        except UpdateFinishedTrialError:
            return False

    @contextlib.contextmanager
    def _beating(self, number: int) -> Iterator[None]:
        """Gives a sign of life in the storage now and then while it lasts; a journal has none."""
        storage, stop = self._storage, threading.Event()
        if not isinstance(storage, RDBStorage):
            yield
            return

        def beat() -> None:
            while not stop.wait(HEARTBEAT_S):
                storage.record_heartbeat(number)

        storage.record_heartbeat(number)
        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def _gone(trial: FrozenTrial) -> bool:
    """Says whether the worker that took a trial is known to have ended, or ended before it could write its name."""
    if (worker := trial.user_attrs.get(_WORKER)) is not None:
        return has_ended(str(worker))
    return trial.datetime_start is not None and (datetime.now() - trial.datetime_start).total_seconds() > GRACE_S


def _opened(url: str) -> BaseStorage:
    """Opens a storage by its URL. Raises UserError for one that no storage answers to."""
    if url in ("sqlite://", "sqlite:///:memory:"):
        raise UserError(f"{setting('storage', url)}: is in the memory of one process; write sqlite:///FILE")
    warnings.filterwarnings("ignore", category=ExperimentalWarning, module="optuna|nas.select.storage")  # heartbeats
    try:
        if url.startswith("journal:"):
            return JournalStorage(JournalFileBackend(url.removeprefix("journal:")))
        options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
        return RDBStorage(url, engine_kwargs=options, heartbeat_interval=HEARTBEAT_S, grace_period=GRACE_S)
    except Exception as error:  # of the database's own driver, whichever that is
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{setting('storage', url.split('@')[-1])}: {type(error).__name__}: {reason}; write "
                        "sqlite:///FILE, postgresql+psycopg://USER@HOST/NAME, mysql+pymysql://USER@HOST/NAME or "
                        "journal:FILE") from None
