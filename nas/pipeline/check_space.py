"""Describes a space before anything is trained: its size and what its networks cost; or lists all of its mistakes."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nas import sampling
from nas.arch import Op
from nas.errors import UserError
from nas.latency.costs import known, load
from nas.latency.devices import local_device
from nas.latency.devices.board import recorded_target
from nas.lower.onnx import export
from nas.lower.verify import check_onnx
from nas.ops import build, contract, family, user_files
from nas.plan import Branch, Layout, OpKey, Slot, Task, candidates, layout, macs, params
from nas.progress import Progress
from nas.space import Head, Space, Widths
from nas.space import mistakes as wrong_keys
from nas.units import power_of_ten


@dataclass(frozen=True)
class TargetCosts:
    """Says what the networks of a space cost on a target: ``ends``, the least and the most, or in a ``note`` why not.
    """

    target: str

    @property
    def ends(self) -> tuple[float, float] | None:
        """Returns what the cheapest and the dearest network cost, predicted; None where that is not known."""
        return None

    @property
    def note(self) -> str | None:
        """Returns what is in the way, as one line; None where nothing is."""
        return None


@dataclass(frozen=True)
class Reach(TargetCosts):
    """Holds what the cheapest and the dearest network of a space cost on a target, predicted."""

    smallest_ms: float
    largest_ms: float

    @property
    def ends(self) -> tuple[float, float]:
        return self.smallest_ms, self.largest_ms


@dataclass(frozen=True)
class MissingRows(TargetCosts):
    """Says how many rows a table lacks for a space, the first of them, and the command that makes them.

    ``here``: this machine can make them.
    """

    missing: int
    first: str
    do: str
    here: bool

    @property
    def note(self) -> str:
        how = "a search makes them itself, or now: " if self.here else ""
        return f"{self.missing} rows are missing, first {self.first}; {how}{self.do}"


@dataclass(frozen=True)
class NoCosts(TargetCosts):
    """Says in one line why the costs of a target cannot be used for a space."""

    error: str

    @property
    def note(self) -> str:
        return self.error


@dataclass(frozen=True)
class SpaceFacts:
    """Says what a space is at an input size: its slots, networks and operators, and the ends of what they cost.

    ``archs`` is the number of networks as a power of ten; ``last_map`` the side of the map before the head.
    """

    name: str
    size: int
    classes: int
    slots: int
    archs: str
    operators: int
    params: tuple[int, int]
    macs: tuple[int, int]
    last_map: int
    targets: tuple[TargetCosts, ...]


def check(name: str, task: Task, targets: Sequence[str], progress: Progress) -> SpaceFacts:
    """Lays a space out and prices its ends on each target.

    No ``targets``: all that are known here. The ends are those at the smallest and the largest hidden width of each
    branch. Operators of the user's own are tried first. Raises UserError naming every mistake of the file.
    """
    plan = checked_layout(name, task)
    _check_own(plan, progress)
    (least, most), (light, heavy) = (_ends(plan, cost) for cost in (params, macs))
    costs = []
    with progress.task("targets", len(targets or known())) as bar:
        for target in targets or sorted(known()):
            costs.append(_priced(plan, target, name))
            bar.advance()
    return SpaceFacts(plan.space, task.size, task.classes, len(plan.slots), power_of_ten(sampling.count(plan)),
                      len(candidates(plan)), (int(least), int(most)), (int(light), int(heavy)), plan.head.size,
                      tuple(costs))


def checked_layout(name: str, task: Task) -> Layout:
    """Returns the layout of a space. Raises UserError that names every mistake, with its key, value and what to do."""
    try:
        space = Space.load(name)
    except UserError as error:
        cause = error.__cause__
        raise _all(name, wrong_keys(cause)) if isinstance(cause, ValidationError) else error from None
    try:
        return layout(space, task)
    except UserError as error:
        mistakes = list(dict.fromkeys(_refusals(space, task))) or [str(error)]
        raise _all(name, [text.removeprefix(f"{space.file}: ") for text in mistakes]) from None


def _all(name: str, mistakes: Sequence[str]) -> UserError:
    count = f"{len(mistakes)} mistakes: " if len(mistakes) > 1 else ""
    return UserError(f"{name}: {count}{'; '.join(mistakes)}")


def _refusals(space: Space, task: Task) -> Iterator[str]:
    """Yields the messages with which ``layout`` refuses parts of a space, each tried alone in a space without mistakes.
    """
    plain: dict[str, Any] = {"mbconv": {"hidden": Widths(min=1, max=1, step=8)}}
    bare = [stage.model_copy(update={"ops": plain}) for stage in space.stages]
    sound = space.model_copy(update={"stem": space.stem.model_copy(update={"op": "stem"}), "head": Head(op="head"),
                                     "exit": Head(op="exit_head"), "ops": plain, "stages": bare})
    parts: list[dict[str, Any]] = [{"stem": space.stem}, {"head": space.head}, {"exit": space.exit}]
    common = [stage.model_copy(update={"ops": stage.ops and plain}) for stage in space.stages]
    parts += [{"ops": {op: knobs}, "stages": common} for op, knobs in space.ops.items()]
    for i, stage in enumerate(space.stages):
        for op, knobs in (stage.ops or {}).items():
            parts.append({"stages": [*bare[:i], stage.model_copy(update={"ops": {op: knobs}}), *bare[i + 1:]]})
    for part in parts:
        try:
            layout(sound.model_copy(update=part), task, exits="exit" in part)
        except UserError as error:
            yield str(error)


def _ends(plan: Layout, cost: Callable[[OpKey], float]) -> tuple[float, float]:
    """Returns the cost of the cheapest and of the dearest network of a layout."""
    rows = [[cost(key) if key else 0.0 for op in _extremes(slot) for key in [slot.key(op)]] for slot in plan.slots]
    fixed = [cost(key) for key in plan.fixed]
    return math.fsum([*fixed, *map(min, rows)]), math.fsum([*fixed, *map(max, rows)])


def _extremes(slot: Slot) -> list[Op]:
    """Returns the operators of a slot at the smallest and the largest hidden width of every branch."""
    return list(dict.fromkeys(op for branch in slot.branches for op in (branch.ops[0], branch.ops[-1])))


def _priced(plan: Layout, target: str, name: str) -> TargetCosts:
    """Prices the ends of a space on a target; says what is in the way where that cannot be done."""
    try:
        costs = load(target)
        if lacking := costs.missing(candidates(plan)):
            here = local_device(costs.meta) is not None or recorded_target(costs.meta) is not None
            do = costs.advice(name, plan.task.size, here=here).removeprefix("run: ")
            return MissingRows(target, len(lacking), str(lacking[0]), do, here)
        return Reach(target, *_ends(plan, costs.ms))
    except UserError as error:
        return NoCosts(target, str(error))


def _check_own(plan: Layout, progress: Progress) -> None:
    """Tries every operator of the user's own at every shape of the space: its contract, its ONNX against PyTorch."""
    names = {name for file in user_files.loaded() for name in file.operators}
    work = [(slot, branch) for slot in plan.slots for branch in slot.branches if branch.op.name in names]
    tried = list(dict.fromkeys(((slot.in_ch, slot.out_ch, slot.stride), branch, _shared(slot, branch))
                               for slot, branch in work))
    if not tried:
        return
    with progress.task("your operators", len(tried)) as bar:
        for shape, branch, shared in tried:
            contract.check(branch.ops[-1], *shape, branch.widths[0] if branch.widths else None, shared)
            _check_onnx(branch.ops[0], shape)
            bar.advance()


def _shared(slot: Slot, branch: Branch) -> Op:
    """Returns the operator whose weights hold those of a branch in the supernet: elastic knobs at their largest."""
    largest = branch.ops[-1]
    for knob in family(branch.op.name).elastic:
        values = [value for other in slot.branches if other.op.name == branch.op.name
                  and isinstance(value := other.op.get(knob), int)]
        largest = largest.with_knobs(**{knob: max(values)}) if values else largest
    return largest


def _check_onnx(op: Op, shape: tuple[int, int, int]) -> None:
    block = contract.settled(build(op, *shape))  # with batch norms that a wrong deploy() would show
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "operator.onnx"
        try:
            export(block, path, in_ch=shape[0], size=contract.SIDE, metadata={})
            check_onnx(path, block, in_ch=shape[0], size=contract.SIDE)
        except Exception as error:  # of the user's code, of the exporter or of the runtime
            text = " ".join(str(error).replace(str(path), "").split())
            where = f"operator {op} at {shape[0]}->{shape[1]} stride {shape[2]}"
            raise UserError(f"{where}: its ONNX: {text[:300]}") from error
