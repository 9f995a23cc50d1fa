"""What the parts of this experiment share: the stored problem, the restricted space, and what was judged in it.

``problem.json`` is the selection problem of the run (operators that pruning left, their cost, the gates' scores), so
that replaying needs neither the run nor its images.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.arch import Op
from nas.files import resolve
from nas.plan import Layout, Task, layout
from nas.select.problem import Cost, Limits, Problem, Scores
from nas.space import Space

HERE = Path(__file__).resolve().parent
PROBLEM, JUDGED, FULL = HERE / "problem.json", HERE / "judged.jsonl", HERE / "full.jsonl"
FREE, CHOICES = 6, 4  # slots that are not fixed, and operators in each
PER_PART = CHOICES ** (FREE // 2)  # networks that a line of ``judged.jsonl`` holds

Array = NDArray[np.float64]
Pick = tuple[int, ...]


@dataclass(frozen=True)
class Stored:
    """``problem.json``: per slot its operators and their ms, MACs and params; gates' scores at a few budgets."""

    content: dict[str, Any]
    first: int = CHOICES  # operators that the first free slot has: as far as the networks with them are judged

    @staticmethod
    def read(path: Path = PROBLEM) -> Stored:
        if not path.is_file():
            raise SystemExit(f"{path}: missing; run.py makes it")
        return Stored(json.loads(path.read_text()))

    @cached_property
    def layout(self) -> Layout:
        name, _, width = self.content["space"].partition("@")
        space = Space.load(str(resolve("search_spaces", name, ".yaml")))
        return layout(space.scaled(float(width or 1)), Task(*self.content["task"]))

    @cached_property
    def ops(self) -> tuple[tuple[Op, ...], ...]:
        return tuple(tuple(map(Op.parse, row)) for row in self.content["ops"])

    def cost(self, name: str) -> Cost:
        """``ms``, ``macs`` or ``params``."""
        return Cost(name, name, self.content["fixed"][name], tuple(map(np.array, self.content[name])))

    @cached_property
    def full(self) -> Problem:
        return Problem(self.layout, self.ops, (self.cost("ms"),))

    @cached_property
    def choices(self) -> list[list[int]]:
        """Per slot, which operators the restricted space has: the free slots are those with most of them.

        They have ``CHOICES``, at equal steps of the rank in ms from the cheapest to the dearest; the others have what
        the middle pick of the run has.
        """
        rows = []
        for slot, (ms, fixed) in enumerate(zip(self.content["ms"], self.content["middle"], strict=True)):
            ranked = np.argsort(ms, kind="stable")
            steps = np.round(np.linspace(0, len(ms) - 1, CHOICES)).astype(int)
            own = steps[:self.first] if slot == self.free[0] else steps
            rows.append([int(i) for i in ranked[own]] if slot in self.free else [fixed])
        return rows

    @cached_property
    def free(self) -> list[int]:
        sizes = [len(row) for row in self.content["ops"]]
        return sorted(sorted(range(len(sizes)), key=lambda slot: -sizes[slot])[:FREE])

    @cached_property
    def restricted(self) -> Problem:
        ms, choices = self.cost("ms"), self.choices
        rows = tuple(row[own] for row, own in zip(ms.per_op, choices, strict=True))
        ops = tuple(tuple(all_[i] for i in own) for all_, own in zip(self.ops, choices, strict=True))
        return Problem(self.layout, ops, (Cost("ms", "ms", ms.fixed, rows),))

    def gates(self, limits: Limits, restricted: bool) -> Scores:
        """The gates' scores at a budget, linear in its logarithm between those that are stored."""
        at = np.log(self.content["gates"]["ms"])
        x = float(np.clip(np.log(limits["ms"]), at[0], at[-1]))
        rows = []
        for slot, table in enumerate(self.content["gates"]["scores"]):  # [budget][op]
            row = np.array([np.interp(x, at, column) for column in np.array(table).T])
            rows.append(row[self.choices[slot]] if restricted else row)
        return tuple(rows)


def picks(stored: Stored) -> list[Pick]:
    """Indices into the restricted problem, the last slot fastest."""
    return list(itertools.product(*(range(len(own)) for own in stored.choices)))


@dataclass(frozen=True)
class Judged:
    """One number a network of the restricted space; ``seen`` are the images that methods are told of."""

    loss: Array
    accuracy: Array
    unseen_loss: Array
    unseen_accuracy: Array

    def of(self, rows: Sequence[int]) -> Judged:
        """Those of some networks."""
        own = list(rows)
        return Judged(self.loss[own], self.accuracy[own], self.unseen_loss[own], self.unseen_accuracy[own])


def judged(path: Path = JUDGED) -> tuple[Stored, Judged]:
    """The restricted space as far as it is judged: all of it, or with fewer operators in its first free slot."""
    parts = sorted(read_lines(path), key=lambda line: line["part"])
    block = CHOICES ** (FREE - FREE // 2 - 1)  # parts that share an operator of the first free slot
    first = next((i for i, line in enumerate(parts) if line["part"] != i), len(parts)) // block
    if first < 2:
        raise SystemExit(f"{path}: {len(parts)} parts, and the first {2 * block} are the least; run.py makes the rest")
    kept = parts[:first * block]

    def column(key: str, unit: float) -> Array:
        return np.concatenate([np.array(line[key], float) for line in kept]) / unit

    seen, unseen = (kept[0]["settings"][key] for key in ("seen", "unseen"))
    figures = Judged(column("loss", 1e5), column("right", seen), column("unseen_loss", 1e5),
                     column("unseen_right", unseen))
    return replace(Stored.read(), first=first), figures


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()] if path.is_file() else []


def column_of(stored: Stored, name: str, many: Sequence[Sequence[int]]) -> Array:
    """A cost of networks of the full space."""
    cost = stored.cost(name)
    return np.array([cost.of(pick) for pick in many])
