"""Defines the lines of a run's log, ``log.jsonl``: what each kind of event says, as it is written and read again."""

from __future__ import annotations

import datetime
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from nas.run.records import Genotype, HeldOut
from nas.training.epochs import SupernetEpoch, TuningEpoch


@dataclass(frozen=True, kw_only=True)
class Event:
    """Is one line of a log; ``event`` is its kind, and ``time`` is set when it is written."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

    event: str
    time: str = ""


@dataclass(frozen=True, kw_only=True)
class AnyEvent(Event):
    """Is a line of any kind, of which the kind and the time are read alone."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="ignore")


@dataclass(frozen=True, kw_only=True)
class Stage(Event):
    """Says that a file was made, and in how many seconds."""

    event: Literal["stage"] = "stage"
    name: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Phase(Event):
    """Says what a phase of one call took; ``place`` is the folder of a selection, empty for the search."""

    event: Literal["phase"] = "phase"
    name: str
    place: str = ""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Introduction(Event):
    """Keeps what was said of the images before anything long began."""

    event: Literal["data"] = "data"
    lines: list[str]


@dataclass(frozen=True, kw_only=True)
class TableCopied(Event):
    """Says that the costs of a target were copied into the run as ``file``, and where they came from."""

    event: Literal["latency table"] = "latency table"
    target: str
    file: str
    came: str


@dataclass(frozen=True, kw_only=True)
class Compiled(Event):
    """Keeps the memory that an operator or a network (``what``) needs on a target, by a version of Vela."""

    event: Literal["compiled"] = "compiled"
    target: str
    what: str
    sram_bytes: int
    flash_bytes: int
    vela: str


@dataclass(frozen=True, kw_only=True)
class Epoch(SupernetEpoch, Event):
    """Reports an epoch of the supernet."""

    event: Literal["epoch"] = "epoch"
    seconds: float


@dataclass(frozen=True, kw_only=True)
class FineTuned(TuningEpoch, Event):
    """Reports an epoch of a pick."""

    event: Literal["finetune"] = "finetune"
    id: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Raced(Event):
    """Keeps what a finalist is worth after so many epochs of fine-tuning; ``place`` is the folder of a selection."""

    event: Literal["raced"] = "raced"
    id: str
    place: str
    epochs: int
    loss: float
    accuracy: float
    accuracy_se: float


@dataclass(frozen=True, kw_only=True)
class BranchRaced(Event):
    """Keeps the held-out loss of a branch's network in a round of the race, after training on so many images."""

    event: Literal["branch"] = "branch"
    branch: str
    round: int
    images: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class ExitsTrained(TuningEpoch, Event):
    """Reports an epoch of the exits of a network."""

    event: Literal["exits"] = "exits"
    id: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Judged(Event):
    """Keeps what a network does with inherited weights; ``state`` names the supernet and how it was judged."""

    event: Literal["judged"] = "judged"
    id: str
    arch: Genotype
    state: str
    loss: float
    accuracy: float
    accuracy_se: float


@dataclass(frozen=True, kw_only=True)
class Timed(Event):
    """Keeps what a network took on a target; ``costs`` is the digest of the table beside whose yardstick it ran."""

    event: Literal["timed"] = "timed"
    id: str
    target: str
    costs: str
    ms: float
    drift: float | None = None


@dataclass(frozen=True, kw_only=True)
class ExitsTimed(Event):
    """Keeps what leaving at each of the exits ``kept`` takes, in the file whose ``confidence`` is computed so."""

    event: Literal["exits timed"] = "exits timed"
    kept: list[int]
    confidence: str
    prefix_ms: list[float]


@dataclass(frozen=True, kw_only=True)
class Selected(Event):
    """Keeps how well scores rank the networks that a selection judged, as ``Picks`` has it."""

    event: Literal["selection"] = "selection"
    place: str
    rank_agreement: dict[str, float | None]
    held_out: dict[str, dict[str, HeldOut]]


E = TypeVar("E", bound=Event)
_ADAPTERS: dict[type[Event], TypeAdapter[Any]] = {}


def written(event: Event) -> bytes:
    """Returns the line of an event that happens now, without the fields that are None."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
    return _lines(type(event)).dump_json(replace(event, time=now), exclude_none=True)


def read(kind: type[E], line: bytes) -> E | None:
    """Returns the event of a line; None where it is of another kind, or not as it was written."""
    with suppress(ValidationError):
        event: E = _lines(kind).validate_json(line)
        return event
    return None


def _lines(kind: type[Event]) -> TypeAdapter[Any]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]
