"""Describes networks without weights: an operator with its knobs (``Op``), a network as a list of them (``Arch``).

Operators are spelled out, not numbered, so that an arch survives a reordered space. There is no torch here.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from nas.errors import UserError

Value = int | str
_OP = re.compile(r"\s*([a-z][a-z0-9_]*)\s*(?:\(\s*(.*?)\s*\))?\s*", re.DOTALL)
_KNOB = re.compile(r"([a-z][a-z0-9_]*)\s*=\s*(-?\d+|[a-z][a-z0-9_]*)")


@dataclass(frozen=True, order=True)
class Op:
    """Holds an operator's name and its knobs, sorted by name; ``Op.parse(str(op))`` is ``op``."""

    name: str
    knobs: tuple[tuple[str, Value], ...] = ()

    @staticmethod
    def of(name: str, **knobs: Value) -> Op:
        return Op(name, tuple(sorted(knobs.items())))

    @staticmethod
    @lru_cache(maxsize=4096)  # thousands of rows of a table name a few hundred operators
    def parse(text: str) -> Op:
        """Reads an operator such as ``"ghost(cheap=3, hidden=72, se=1)"`` or ``"skip"``; raises UserError."""
        match = _OP.fullmatch(text)
        if not match:
            raise UserError(f"operator {text!r}: write name(knob=value, ...), for example ghost(cheap=3, hidden=72)")
        knobs: dict[str, Value] = {}
        for part in (match[2] or "").split(",") if match[2] else []:
            knob = _KNOB.fullmatch(part.strip())
            if not knob or knob[1] in knobs:
                raise UserError(f"operator {text!r}: {part.strip()!r} is not one knob=value with a value given once")
            knobs[knob[1]] = int(knob[2]) if knob[2].lstrip("-").isdigit() else knob[2]
        return Op.of(match[1], **knobs)

    def get(self, knob: str) -> Value | None:
        return dict(self.knobs).get(knob)

    def with_knobs(self, **knobs: Value) -> Op:
        return Op.of(self.name, **{**dict(self.knobs), **knobs})

    def without(self, knob: str) -> Op:
        return Op(self.name, tuple(item for item in self.knobs if item[0] != knob))

    def contains(self, other: Op) -> bool:
        """Tells whether it keeps what another operator of its slot has: the same branch, no narrower; all keep a skip.
        """
        widths = int(self.get("hidden") or 0), int(other.get("hidden") or 0)
        return other == SKIP or (self.without("hidden") == other.without("hidden") and widths[0] >= widths[1])

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v}' for k, v in self.knobs)})" if self.knobs else self.name


SKIP = Op("skip")


@dataclass(frozen=True)
class Arch:
    """Describes one network of a space: input side, one operator a slot, and the slots that carry an early exit."""

    space: str
    size: int
    ops: tuple[Op, ...]
    exits: tuple[int, ...] = ()

    @cached_property
    def id(self) -> str:
        """Names the arch by the first 12 hex digits of the SHA-256 of its canonical JSON."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        return {"space": self.space, "size": self.size, "ops": [str(op) for op in self.ops], "exits": list(self.exits)}

    @staticmethod
    def from_json(value: Any) -> Arch:
        """Reads what ``to_json`` wrote; raises UserError naming the key that is missing, unknown or of a wrong type."""
        kinds = {"space": str, "size": int, "ops": list, "exits": list}
        if not isinstance(value, dict) or set(value) != set(kinds):
            raise UserError(f"architecture: expected the keys {', '.join(kinds)}, got {_keys(value)}")
        for key, kind in kinds.items():
            if not isinstance(value[key], kind) or isinstance(value[key], bool):
                raise UserError(f"architecture: {key}: expected {kind.__name__}, got {value[key]!r}")
        if not all(isinstance(op, str) for op in value["ops"]):
            raise UserError("architecture: ops: every operator is a string such as 'ghost(cheap=3, hidden=72)'")
        if not all(isinstance(exit_, int) and not isinstance(exit_, bool) for exit_ in value["exits"]):
            raise UserError("architecture: exits: every exit is the index of a slot")
        try:
            ops = tuple(map(Op.parse, value["ops"]))
        except UserError as error:
            raise UserError(f"architecture: ops: {error}") from None
        return Arch(value["space"], value["size"], ops, tuple(value["exits"]))


def _keys(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
