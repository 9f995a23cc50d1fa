"""Keeps one experiment in one directory: its settings, where it ran, a log, and an artefact of every finished stage.

Everything is written atomically, so that a kill at any moment leaves the artefacts of finished stages and nothing else.
No path of the machine is stored: a directory that was moved elsewhere is still the same run.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import ValidationError

from nas import __version__
from nas.errors import UserError, setting
from nas.files import Locked, locked, parse_json, write_atomic, write_json
from nas.run import events, formats, records
from nas.run.events import E, Event
from nas.run.provenance import FORMAT, Environment
from nas.run.records import AnyRecord

CONFIG, ENVIRONMENT, LOCK, LOG = "config.json", "environment.json", "lock", "log.jsonl"
_AGAIN = "delete it and give the same command: it is made again"
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Run:
    """Reads and writes a run directory. Every method raises UserError, naming the file, where the disk refuses."""

    path: Path

    @staticmethod
    def open(path: Path | str, config: dict[str, Any], free: Collection[str] = (),
             places: Collection[str] = ()) -> Run:
        """Creates a run, or reopens one with the same settings.

        Those in ``free`` may change, and are then recorded anew; those in ``places`` say where inputs lie that are
        compared themselves, and stay as they are recorded. Raises UserError for changed settings, naming the first, and
        for a directory that holds something else.
        """
        run = Run(Path(path).expanduser())
        with _disk(run.path):
            if run.path.exists() and not run.path.is_dir():
                raise UserError(f"{run.path}: a file, not a run directory; give another with {setting('run')}")
            if not run.has(CONFIG):
                run._create(config)
        run._of_this_format()
        run._agree(config, free, places)
        return run

    @staticmethod
    def existing(path: Path | str) -> Run:
        """Opens a run that was created before; raises UserError if there is none."""
        run = Run(Path(path).expanduser())
        with _disk(run.path):
            if not run.has(CONFIG):
                what = "not a run directory (no config.json)" if run.path.exists() else "no such run directory"
                raise UserError(f"{run.path}: {what}; nas search makes one and prints it")
        run._of_this_format()
        return run

    @staticmethod
    @contextlib.contextmanager
    def open_locked(path: Path | str, config: dict[str, Any], places: Collection[str] = (), worth: Sequence[str] = (),
                    refuse: Callable[[], None] = lambda: None) -> Iterator[Run]:
        """Opens a run as ``open`` does, locked; one that is refused before any training leaves no directory.

        So the mended command may use the same directory. A run that has an artefact of ``worth`` is kept, too. Before
        a new one is made, ``refuse`` raises UserError for what can be told without it.
        """
        fresh, there = Run.fresh(path), Path(path).expanduser().exists()
        if fresh:
            refuse()
        run = Run.open(path, config, places=places)
        with run.lock():  # whoever fails to get it removes nothing: another process has begun
            try:
                yield run
            except UserError:
                trained = any(map(run.events, (events.Epoch, events.FineTuned)))
                if fresh and not trained and not any(map(run.has, worth)):
                    shutil.rmtree(run.path)
                    if there:  # empty, as the user made it
                        run.path.mkdir()
                raise

    @staticmethod
    def fresh(path: Path | str) -> bool:
        """Says whether nothing is there, or an empty directory."""
        place = Path(path).expanduser()
        return not place.exists() or (place.is_dir() and not any(place.iterdir()))

    @property
    def config(self) -> dict[str, Any]:
        value = self.read_json(CONFIG)
        if not isinstance(value, dict):
            raise UserError(f"{self.file(CONFIG)}: expected an object with the settings; start a new run")
        return value

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes out; the lock goes with the process, however it ends.

        Raises UserError with the process id of the holder.
        """
        with contextlib.ExitStack() as held:
            with _disk(self.file(LOCK)):
                self.path.mkdir(parents=True, exist_ok=True)
                try:
                    held.enter_context(locked(self.file(LOCK)))
                except Locked as holder:
                    raise UserError(f"{self.path}: in use by {holder}; wait, or give another "
                                    f"{setting('run')}") from None
                for left_over in self.path.rglob(".*.tmp"):  # of a write that a kill cut short
                    if next(p for p in left_over.parents if p == self.path or (p / CONFIG).is_file()) == self.path:
                        left_over.unlink(missing_ok=True)  # not of a run inside this one, with a lock of its own
            yield

    def file(self, name: str) -> Path:
        """Returns the path of an artefact; ``name`` may have folders in it but never leaves the run."""
        assert name and not Path(name).is_absolute() and ".." not in Path(name).parts, name
        return self.path / name

    def places(self) -> list[str]:
        """Returns the folders of fronts as prefixes of file names: "" for the search's, ``selections/NAME/`` for each
        selection's.
        """
        names = sorted(path.parent.name for path in self.path.glob("selections/*/front.json"))
        return ["", *(f"selections/{name}/" for name in names)]

    def has(self, name: str) -> bool:
        with _disk(self.file(name)):
            return self.file(name).is_file()

    def read_json(self, name: str) -> Any:
        """Reads a JSON artefact. Raises UserError for one that is missing, truncated, not JSON, or not what it should
        hold.
        """
        value = self._json(name)
        if mistake := formats.mistake(name, value):
            raise UserError(f"{self.file(name)}: {mistake}; put it back, or {_AGAIN}")
        return value

    def read(self, name: str, kind: type[AnyRecord]) -> AnyRecord:
        """Returns the record that a file holds. Raises UserError as ``read_json`` does."""
        try:
            return kind.model_validate(self._json(name))
        except ValidationError as error:
            mistake = records.first_mistake(error)
            raise UserError(f"{self.file(name)}: {mistake}; put it back, or {_AGAIN}") from None

    def _json(self, name: str) -> Any:
        path = self.file(name)
        try:
            return parse_json(path.read_bytes())
        except FileNotFoundError:
            raise UserError(f"{path}: missing; this run is not that far; give its nas search command again, "
                            f"without {setting('until')}") from None
        except OSError as error:
            raise _refused(path, error) from None
        except (ValueError, RecursionError):
            what = "start a new run" if name == CONFIG else _AGAIN
            raise UserError(f"{path}: truncated or not JSON; {what}") from None

    def write_json(self, name: str, value: Any) -> None:
        with _disk(self.file(name)):
            write_json(self.file(name), value)

    def write(self, name: str, write: Callable[[BinaryIO], object]) -> None:
        """Writes an artefact of bytes atomically: ``write(file)`` fills it."""
        with _disk(self.file(name)):
            write_atomic(self.file(name), write)

    def keep(self, name: str, content: bytes) -> None:
        """Copies an input (a space, a table) into the run; raises UserError if the run began with another content."""
        if not self.has(name):
            self.write(name, lambda file: file.write(content))
        elif self.file(name).read_bytes() != content:
            raise UserError(f"{self.file(name)}: differs from what it was copied from, which changed since this run "
                            f"began; give another {setting('run')}, or put the file back")

    def stage(self, name: str, make: Callable[[], Any]) -> Any:
        """Returns the JSON artefact ``name``: read if it stands, else made, written and logged with its seconds."""
        if not self.has(name):
            start = time.monotonic()
            self.write_json(name, make())
            self.log(events.Stage(name=name, seconds=round(time.monotonic() - start, 3)))
        return self.read_json(name)

    def record(self, name: str, kind: type[AnyRecord], make: Callable[[], AnyRecord]) -> AnyRecord:
        """Returns the record of a file as ``stage`` does: read if it stands, else made."""
        self.stage(name, lambda: make().to_json())
        return self.read(name, kind)

    def log(self, event: Event) -> None:
        """Appends one line to ``log.jsonl``; a line that a kill tore before is cut off first."""
        line = events.written(event)
        with _disk(self.file(LOG)):
            self.path.mkdir(parents=True, exist_ok=True)
            with self.file(LOG).open("ab+") as file:
                _mend(file)
                file.write(line + b"\n")

    def events(self, kind: type[E]) -> list[E]:
        """Returns the events of a kind in order; lines that are not as they were written are left out."""
        path = self.file(LOG)
        with _disk(path):
            lines = path.read_bytes().splitlines() if path.exists() else []
        return [event for line in lines if (event := events.read(kind, line)) is not None]

    def _create(self, config: dict[str, Any]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        ours = (CONFIG, ENVIRONMENT, LOCK)
        strange = sorted(p.name for p in self.path.iterdir() if p.name not in ours and not p.name.endswith(".tmp"))
        if strange:
            raise UserError(f"{self.path}: not a run directory, and not empty ({strange[0]}); give another "
                            f"{setting('run')}")
        with self.lock():
            if not self.has(CONFIG):  # last: it makes the directory a run
                self.write_json(ENVIRONMENT, Environment.here().to_json())
                self.write_json(CONFIG, config)

    def _of_this_format(self) -> None:
        """Raises UserError for a run of a newer nas, whose files this one may misread."""
        here: Any = None
        with contextlib.suppress(UserError):  # missing or broken: it is only for people
            here = self.read_json(ENVIRONMENT)
        made = here if isinstance(here, dict) else {}
        if (version := made.get("format", 1)) != FORMAT:
            raise UserError(f"{self.path}: format {version} of a run, made by nas {made.get('nas')}; this is nas "
                            f"{__version__}, which knows format {FORMAT}: use that version")

    def _agree(self, config: dict[str, Any], free: Collection[str], places: Collection[str]) -> None:
        old, new = (_flat(values) for values in (self.config, json.loads(json.dumps(config))))
        changed = [key for key in dict.fromkeys([*new, *old])
                   if key not in places and not _same(old.get(key, _ABSENT), new.get(key, _ABSENT))]
        refused = [key for key in changed if key.split(".")[0] not in free]
        if refused:
            key = refused[0]
            raise UserError(f"{self.path}: began with {setting(key)} = {_shown(old, key)}, now {_shown(new, key)}; "
                            f"give another {setting('run')}, or the old value")
        if changed:
            self.write_json(CONFIG, config)


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _refused(path, error) from error


def _refused(path: Path, error: OSError) -> UserError:
    advice = "free some space" if error.errno in _FULL else "check the path and its permissions"
    return UserError(f"{path}: {error.strerror or error}; {advice}, then give the same command: it continues")


def _mend(file: BinaryIO) -> None:
    end = file.seek(0, os.SEEK_END)
    if not end:
        return
    file.seek(end - 1)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


_ABSENT = object()


def _same(old: Any, new: Any) -> bool:
    """Says whether values are equal, or are absolute paths with one file name, of which the old leads nowhere."""
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_same, old, new))
    if old == new or not (isinstance(old, str) and isinstance(new, str)):
        return bool(old == new)
    before, now = Path(old), Path(new)
    return before.is_absolute() and now.is_absolute() and before.name == now.name and not before.exists()


def _flat(value: dict[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, part in value.items():
        flat |= _flat(part, f"{above}{key}.") if isinstance(part, dict) else {f"{above}{key}": part}
    return flat


def _shown(values: dict[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "not set"
