"""Reads and checks a search space, one YAML file. Strides are for input 224; ``nas.plan`` adapts them to others.

A preset is a space of one network: every knob a single value, no skips (``search_spaces/presets``).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from nas.arch import Op, Value
from nas.errors import UserError, setting
from nas.files import resolve
from nas.paths import space_parts


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


MAX_CHANNELS = 8192
Channels = Annotated[int, Field(ge=1, le=MAX_CHANNELS)]


class Widths(_Strict):
    """Describes the hidden widths to try: the multiples of ``step`` from ``min`` to ``max`` times the input channels.
    """

    min: float = Field(gt=0, le=64)
    max: float = Field(gt=0, le=64)
    step: int = Field(8, ge=1, le=256)

    @model_validator(mode="after")
    def _ordered(self) -> Widths:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is larger than max {self.max}")
        return self

    def of(self, in_ch: int) -> tuple[int, ...]:
        """Lists the widths for a number of input channels.

        Where the range holds no multiple of ``step``, the list holds the first one above it.
        """
        first = max(1, -(-int(self.min * in_ch) // self.step))
        last = max(first, int(self.max * in_ch) // self.step)
        return tuple(self.step * i for i in range(first, last + 1))


KnobValues = Annotated[
    Annotated[list[Value], Field(min_length=1), Tag("<list>")] | Annotated[Widths, Tag("<range>")]
    | Annotated[Value, Tag("<scalar>")],
    Discriminator(lambda value: "<range>" if isinstance(value, dict | Widths)
                  else "<list>" if isinstance(value, list | tuple) else "<scalar>"),
]


Ops = dict[str, dict[str, KnobValues]]


class Fixed(_Strict):
    """Describes the stem: one operator, its output channels and stride (4: with a pooling)."""

    op: str
    out: Channels
    stride: Literal[1, 2, 4]


class Head(_Strict):
    """Describes the classifier at the end, or of early exits; with ``keep`` it stays as it is in a narrower space."""

    op: str
    keep: bool = False


class Published(_Strict):
    """States what others report of a known network: its top-1 accuracy (%) on ImageNet at 224 pixels, by width."""

    source: str
    top1: dict[float, Annotated[float, Field(gt=0, lt=100)]] = Field(min_length=1)


class Stage(_Strict):
    """Describes ``depth`` slots of ``out`` channels, the first with ``stride``; ``ops`` replaces those of the space."""

    out: Channels
    depth: int = Field(ge=1, le=64)
    stride: int = Field(ge=1, le=2)
    ops: Ops | None = None


class Space(_Strict):
    """Holds a search space as its YAML file states it.

    ``name`` becomes ``NAME@WIDTH`` when the space is scaled; ``file`` is where it was read, for error messages.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_\-]*(@[0-9.]+)?$")
    about: str = ""
    published: Published | None = None
    stem: Fixed
    stages: list[Stage] = Field(min_length=1, max_length=32)
    ops: Ops = Field(min_length=1)
    skip: bool = True
    divisor: int = Field(4, ge=1, le=256)  # channels of a scaled space are multiples of it
    head: Head
    exit: Head = Head(op="exit_head(hidden=128)")  # the head of every early exit
    file: str = Field("", exclude=True)

    @staticmethod
    def load(name: str) -> Space:
        """Reads a space by its shipped name or path, either with ``@WIDTH``.

        Raises UserError naming file, key and value.
        """
        base, width = space_parts(name)
        path = resolve("search_spaces", base, ".yaml")
        space = Space.parse(_yaml(path), str(path))
        return space.scaled(_width(width, name)) if width else space

    @staticmethod
    def parse(value: Any, file: str = "space") -> Space:
        """Makes a space of a dictionary as YAML gives it; raises UserError naming the key of the first mistake."""
        if not isinstance(value, dict):
            raise UserError(f"{file}: expected a mapping (name, stem, stages, ops, head), got {type(value).__name__}")
        if "file" in value:
            raise UserError(f"{file}: file: unknown key")
        try:
            return Space.model_validate({**value, "file": file})
        except ValidationError as error:
            raise UserError(f"{file}: {first_mistake(error)}") from error

    def scaled(self, width: float) -> Space:
        """Returns the space with all channels times ``width``, rounded to multiples of ``divisor``.

        Rounding never takes more than 10 % away, as in GhostNet.
        """
        if width == 1.0:
            return self

        def wide(channels: int) -> int:
            return divisible(channels * width, self.divisor)

        stages = [s.model_copy(update={"out": wide(s.out), "ops": _scaled_ops(s.ops, wide)}) for s in self.stages]
        stem = self.stem.model_copy(update={"out": wide(self.stem.out)})
        update = {"name": f"{self.name}@{width:g}", "stem": stem, "stages": stages, "ops": _scaled_ops(self.ops, wide),
                  **{part: head if head.keep and width < 1 else _scaled_head(head, wide, f"{self.file}: {part}.op")
                     for part, head in (("head", self.head), ("exit", self.exit))}}
        return self.model_copy(update=update)

    def only(self, op: str) -> Space:
        """Returns the space with one operator alone (and ``skip``); raises UserError if it has no such operator."""
        if op not in self.ops:
            raise UserError(f"{setting('only_op', op)}: the space {self.name} has {', '.join(self.ops)}")
        stages = [s.model_copy(update={"ops": {op: s.ops[op]} if s.ops and op in s.ops else None}) for s in self.stages]
        return self.model_copy(update={"ops": {op: self.ops[op]}, "stages": stages})


def hidden_width(value: Value, in_ch: int) -> int:
    """Returns the channels of a fixed hidden width: a number as it is, ``"6x"`` as six times the input channels.

    Raises UserError for anything else, and for none or absurdly many.
    """
    times = re.fullmatch(r"(\d{1,2}(?:\.\d{1,3})?)x", value) if isinstance(value, str) else None
    if isinstance(value, str) and not times:
        raise UserError(f"write channels, for example 96, or 6x for six times the input channels (got {value!r})")
    width = round(float(times[1]) * in_ch) if times else int(value)
    if not 1 <= width <= 64 * MAX_CHANNELS:
        raise UserError(f"from 1 to {64 * MAX_CHANNELS} channels (got {value!r})")
    return width


def _scaled_ops(ops: Ops | None, wide: Callable[[int], int]) -> Ops | None:
    """Scales the hidden widths that are stated in channels; those relative to the input follow it anyway."""
    return ops and {name: {knob: wide(value) if knob == "hidden" and isinstance(value, int) else value
                           for knob, value in knobs.items()} for name, knobs in ops.items()}


def _scaled_head(head: Head, wide: Callable[[int], int], where: str) -> Head:
    try:
        op = Op.parse(head.op)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    hidden = op.get("hidden")
    scaled = op.with_knobs(hidden=wide(hidden)) if isinstance(hidden, int) and hidden else op
    return head.model_copy(update={"op": str(scaled)})


def divisible(channels: float, step: int = 4) -> int:
    """Returns the nearest multiple of ``step`` that is at most 10 % below ``channels`` (MobileNetV2's rule)."""
    rounded = max(step, int(channels + step / 2) // step * step)
    return rounded + step if rounded < 0.9 * channels else rounded


_NOT_KEYS = ("<list>", "<range>", "<scalar>", "int", "str")  # parts of a path that pydantic adds for unions


def first_mistake(error: ValidationError) -> str:
    """Returns the first mistake that pydantic found, as ``key.path: what is wrong (got value)``."""
    return mistakes(error)[0]


def mistakes(error: ValidationError) -> list[str]:
    """Lists what pydantic found, a line each, unknown keys first: a misspelt key is missing under its right name, too.
    """
    errors = sorted(error.errors(include_url=False), key=lambda mistake: mistake["type"] != "extra_forbidden")
    return list(dict.fromkeys(_text(mistake) for mistake in errors))


def _text(mistake: Any) -> str:
    key = ".".join(str(part) for part in mistake["loc"] if part not in _NOT_KEYS) or "file"
    if mistake["type"] == "extra_forbidden":
        split = key.endswith(")") and "(" not in key.rpartition(".")[2]  # {op: stem(kernel=3, act=relu)}
        return f"{key}: unknown key{'; within { } an operator with commas needs quotes' if split else ''}"
    if mistake["type"] == "missing":
        return f"{key}: missing"
    got = repr(mistake["input"])
    text = " ".join(mistake["msg"].removeprefix("Value error, ").split())
    return f"{key}: {text[0].lower()}{text[1:]} (got {got if len(got) < 60 else got[:57] + '...'})"


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}:{where} is not YAML: {getattr(error, 'problem', None) or 'unreadable'}") from None
    except (OSError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def _width(text: str, name: str) -> float:
    try:
        width = float(text)
    except ValueError:
        width = -1.0
    if not 0.05 <= width <= 8:
        raise UserError(f"{name}: the width after @ is a factor from 0.05 to 8, got {text!r}")
    return width
