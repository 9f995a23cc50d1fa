"""A whole search of seconds on the tiny space, for tests of what a run leaves behind."""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nas.config.search import Config, fingerprint, resolve
from nas.pipeline import search as pipeline
from nas.progress import NoProgress, Progress
from nas.run.directory import Run

SHORT = ["baselines=0", "train.warmup_epochs=1", "train.search_epochs=2", "train.settle_epochs=1",
         "train.finetune_epochs=2", "train.batch=16", "evaluations=12", "budgets=3"]


class Quiet:
    """A progress, and each of its tasks, that keeps the notes and shows nothing.

    At step ``stop_at`` it raises KeyboardInterrupt, as Ctrl-C would.
    """

    def __init__(self, stop_at: int | None = None) -> None:
        self.done, self.steps, self.stop_at, self.notes = 0.0, 0, stop_at, list[str]()

    @contextmanager
    def task(self, name: str, total: float, done: float = 0) -> Iterator["Quiet"]:
        self.done = done
        yield self

    def advance(self, n: float = 1, **figures: object) -> None:
        self.done += n
        self.steps += 1
        if self.steps == self.stop_at:
            raise KeyboardInterrupt

    def reach(self, done: float, total: float, **figures: object) -> None:
        self.advance(done - self.done, **figures)

    def note(self, text: str) -> None:
        self.notes.append(text)


def config_of(space_file: Path, *more: str, target: str = "gpu-v100") -> Config:
    flags = {"space": str(space_file), "target": [target], "data": "digits", "size": 16, "limit": 160, "threads": 1}
    given = {text.partition("=")[0] for text in more}
    return resolve(None, [*(text for text in SHORT if text.partition("=")[0] not in given), *more], flags)


def searched(config: Config, path: Path, progress: Progress | None = None) -> dict[str, Any]:
    run = Run.open(path, config.to_json())
    with run.lock():
        return pipeline.search(config, run, progress or NoProgress()).to_json()


def searched_in_pieces(config: Config, path: Path, steps: int, most: int = 60) -> tuple[dict[str, Any], int]:
    """Stops a search after so many steps of every call until it is at its end; returns its result and the stops."""
    for stops in range(most):
        try:
            return searched(config, path, Quiet(stop_at=steps)), stops
        except KeyboardInterrupt:
            continue
    raise AssertionError(f"not at its end after {most} calls of {steps} steps")


def selected(run: Run, *given: Any, **named: Any) -> dict[str, Any]:
    """What ``nas select --json`` prints."""
    return pipeline.select(run, *given, **named).to_json()


def searched_once(config: Config, path: Path, shared: Path) -> dict[str, Any]:
    """The same as ``searched``, trained once a run of the suite: what is at ``path`` is a copy, and may be changed.

    ``shared`` is the directory of all processes: the first that asks trains, and others wait for it.
    """
    place = shared / fingerprint(config)
    place.mkdir(exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        searched(config, place / "run")  # at once where it is finished
    shutil.copytree(place / "run", path)
    return searched(config, path)


def comparable(result: dict[str, Any]) -> dict[str, Any]:
    """What two runs of the same settings share."""
    return {key: value for key, value in result.items() if key not in ("run", "seconds")}


def weights(run: Path) -> dict[str, bytes]:
    """The file of each pick."""
    return {file.parent.name: file.read_bytes() for file in run.glob("archs/*/weights.safetensors")}
