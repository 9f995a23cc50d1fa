"""Computes the shapes of every operator: turns a space and a task into slots, and an arch into a list of operators.

Supernet, subnet, tables, MACs, ILP, profile and export read its result; nobody else tracks channels and strides.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nas import ops as op_families
from nas.arch import SKIP, Arch, Op
from nas.errors import UserError, setting
from nas.space import KnobValues, Space, Widths, hidden_width

EXIT_HEAD = "exit_head"  # the operator that classifies at early exits
MOST_SIDE = 4096  # of an input in pixels: beyond it a map alone fills the memory of a device
LAST_MAP = 4  # side that the last feature map has at least: the first strides are halved until it has


@dataclass(frozen=True)
class Task:
    """States what a network classifies: the side of its square input, the input channels, the number of classes."""

    size: int
    in_ch: int
    classes: int


@dataclass(frozen=True, order=True)
class OpKey:
    """Identifies what has a cost: an operator at a shape; ``size`` is the side of its square input map."""

    op: Op
    in_ch: int
    out_ch: int
    stride: int
    size: int

    @property
    def is_exit(self) -> bool:
        return self.op.name == EXIT_HEAD

    def __str__(self) -> str:
        return f"{self.op} {self.in_ch}->{self.out_ch} stride {self.stride} at {self.size}x{self.size}"


@dataclass(frozen=True)
class Branch:
    """Holds an operator with every knob but ``hidden``, and the hidden widths it may have (none without that knob)."""

    op: Op
    widths: tuple[int, ...] = ()

    def at(self, hidden: int | None) -> Op:
        return self.op if hidden is None else self.op.with_knobs(hidden=hidden)

    @cached_property
    def ops(self) -> tuple[Op, ...]:
        return tuple(self.op.with_knobs(hidden=w) for w in self.widths) or (self.op,)


@dataclass(frozen=True)
class Slot:
    """Describes a place in the network: its shapes and what may stand there; ``size`` is the side of its input map."""

    index: int
    stage: int
    in_ch: int
    out_ch: int
    stride: int
    size: int
    branches: tuple[Branch, ...]

    @cached_property
    def ops(self) -> tuple[Op, ...]:
        return tuple(op for branch in self.branches for op in branch.ops)

    def key(self, op: Op) -> OpKey | None:
        """Returns the key under which a cost is looked up for ``op`` here; None for ``skip``, which costs nothing."""
        return None if op == SKIP else OpKey(op, self.in_ch, self.out_ch, self.stride, self.size)


@dataclass(frozen=True)
class Exit:
    """Marks where a network may have an early exit: behind a slot, on the last map before a stride change."""

    slot: int
    key: OpKey


@dataclass(frozen=True)
class Layout:
    """Lists the parts of a space with their shapes: stem, slots in order, head, and exits if they were asked for."""

    space: str
    task: Task
    stem: OpKey
    slots: tuple[Slot, ...]
    head: OpKey
    exits: tuple[Exit, ...] = ()

    @property
    def fixed(self) -> tuple[OpKey, OpKey]:
        return self.stem, self.head


def layout(space: Space, task: Task, exits: bool = False) -> Layout:
    """Walks through a space and computes the shapes of its parts for one task.

    With ``exits``, there may be one before every stride change behind the first slot.

    Raises UserError for operators or knobs that do not exist, naming file and key.
    """
    check_side(task.size, LAST_MAP)
    strides = _strides(space, task.size)
    in_ch, size = space.stem.out, -(-task.size // strides[0])
    stem = OpKey(_fixed(space, "stem", task.in_ch, in_ch, strides[0]), task.in_ch, in_ch, strides[0], task.size)
    slots: list[Slot] = []
    for stage_index, stage in enumerate(space.stages):
        for position in range(stage.depth):
            stride = strides[1 + stage_index] if position == 0 else 1
            branches = _branches(space, stage_index, in_ch, stage.out, stride)
            slots.append(Slot(len(slots), stage_index, in_ch, stage.out, stride, size, branches))
            in_ch, size = stage.out, -(-size // stride)
    head = OpKey(_fixed(space, "head", in_ch, task.classes, 1), in_ch, task.classes, 1, size)
    return Layout(space.name, task, stem, tuple(slots), head, tuple(_exits(space, task, slots)) if exits else ())


def check_side(size: int, least: int = 1) -> None:
    """Raises UserError for a side of the input, in pixels, that no network here has."""
    if not least <= size <= MOST_SIDE:
        raise UserError(f"{setting('size', size)}: the input side must be from {least} to {MOST_SIDE}")


def check_image(where: str, sides: Sequence[int | None], size: int | None) -> None:
    """Raises UserError, which begins with ``where``, for an input of sides that are too large; None is an open one.

    ``size`` is what the open ones are to be: for one that no network has it is raised as ``check_side`` does.
    """
    if size is not None:
        check_side(size)
    if max(side or 0 for side in sides) > MOST_SIDE:
        raise UserError(f"{where} is of {sides[0]}x{sides[1]} pixels; expected at most {MOST_SIDE}")


def layouts(space: Space, task: Task, sizes: Sequence[int], exits: bool = False) -> dict[int, Layout]:
    """Returns the layout for every input side, the largest first; for that of the task where there are no ``sizes``.

    Weights are shared over sizes, so the strides must be. Raises UserError where they are not, with the range that
    goes with the largest size.
    """
    most = max(sizes, default=task.size)
    strides = _strides(space, most)
    for size in sizes:
        if size < LAST_MAP or _strides(space, size) != strides:
            fits = [side for side in range(LAST_MAP, most) if _strides(space, side) == strides]
            raise UserError(f"{setting('size', size)}: {space.name} has other strides there than at {most}, so they "
                            f"cannot share weights; sizes from {min(fits, default=most)} on go with {most}")
    return {size: layout(space, replace(task, size=size), exits)
            for size in sorted(sizes or [task.size], reverse=True)}


def resized(layout: Layout, size: int) -> Layout:
    """Returns the layout for another input side: every map gets its new size, the slots keep their branches.

    Call it only for sides at which the space has the same strides (see ``layouts``).
    """
    if size == layout.task.size:
        return layout
    sides = list(itertools.accumulate((slot.stride for slot in layout.slots), lambda side, stride: -(-side // stride),
                                      initial=-(-size // layout.stem.stride)))
    return replace(
        layout, task=replace(layout.task, size=size), stem=replace(layout.stem, size=size),
        slots=tuple(replace(slot, size=side) for slot, side in zip(layout.slots, sides, strict=False)),
        head=replace(layout.head, size=sides[-1]),
        exits=tuple(replace(exit_, key=replace(exit_.key, size=sides[exit_.slot + 1])) for exit_ in layout.exits))


def plan(layout: Layout, arch: Arch) -> list[OpKey]:
    """Lists a network's operators in the order they run: stem, slots that are not skipped, heads of exits, head.

    Raises UserError if the arch is of another space or size, or holds an operator that its slot does not admit.
    """
    if (arch.space, arch.size, len(arch.ops)) != (layout.space, layout.task.size, len(layout.slots)):
        raise UserError(f"architecture of {arch.space} at {arch.size} with {len(arch.ops)} slots does not fit "
                        f"{layout.space} at {layout.task.size} with {len(layout.slots)} slots")
    for slot, op in zip(layout.slots, arch.ops, strict=True):
        if op not in _ops(slot):
            raise UserError(f"architecture {arch.id}: slot {slot.index} does not admit {op}")
    heads = {exit_.slot: exit_.key for exit_ in layout.exits}
    if list(arch.exits) != sorted(set(arch.exits) & heads.keys()):
        raise UserError(f"architecture {arch.id}: exits {list(arch.exits)}: may stand behind the slots "
                        f"{', '.join(map(str, heads)) or '(none here)'}, each once and in order")
    behind = {index: heads[index] for index in arch.exits}
    keys = [key for slot, op in zip(layout.slots, arch.ops, strict=True)
            for key in (slot.key(op), behind.get(slot.index))]
    return [layout.stem, *(key for key in keys if key is not None), layout.head]


def prefixes(keys: Sequence[OpKey]) -> list[list[OpKey]]:
    """Splits a plan by exits: for each, all that runs for an image that leaves there, exits it passed included.

    The last list is the whole plan: an image that no exit took.
    """
    ends = [i for i, key in enumerate(keys) if key.is_exit]
    return [list(keys[:end + 1]) for end in [*ends, len(keys) - 1]]


def candidates(layout: Layout) -> list[OpKey]:
    """Lists every operator with its shape that any network of the layout may run, each once, the exits last."""
    keys = (slot.key(op) for slot in layout.slots for op in slot.ops)
    exits = (exit_.key for exit_ in layout.exits)
    return list(dict.fromkeys([layout.stem, *(key for key in keys if key is not None), layout.head, *exits]))


@lru_cache(maxsize=65536)
def macs(key: OpKey) -> int:
    """Counts the multiply-adds of an operator's convolutions and linear layers at batch 1, in the deployed form."""
    with torch.device("meta"):
        module = op_families.deployed(op_families.build(key.op, key.in_ch, key.out_ch, key.stride)).eval()
        x = torch.empty(1, key.in_ch, key.size, key.size)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):  # multiplies nothing, and half of the time would go into its shapes
            part.__dict__["forward"] = _unchanged
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(x)
    return int(counter.get_total_flops()) // 2


def _unchanged(x: torch.Tensor) -> torch.Tensor:
    return x


@lru_cache(maxsize=65536)
def params(key: OpKey) -> int:
    """Counts the parameters of an operator in the form that is deployed."""
    with torch.device("meta"):
        module = op_families.deployed(op_families.build(key.op, key.in_ch, key.out_ch, key.stride))
    return sum(p.numel() for p in module.parameters())


@lru_cache(maxsize=4096)
def _ops(slot: Slot) -> frozenset[Op]:
    return frozenset(slot.ops)


def restrict(layout: Layout, keep: Sequence[Sequence[Op]]) -> Layout:
    """Returns the layout with only the operators of ``keep`` in each slot, as pruning does.

    Raises ValueError if a slot would be empty.
    """
    slots = []
    for slot, ops in zip(layout.slots, keep, strict=True):
        kept = frozenset(ops)
        branches = [replace(b, widths=tuple(w for w in b.widths if b.at(w) in kept)) for b in slot.branches]
        alive = tuple(b for b in branches if b.widths or b.op in kept)
        if not alive:
            raise ValueError(f"slot {slot.index} would be empty")
        slots.append(replace(slot, branches=alive))
    return replace(layout, slots=tuple(slots))


def enumerated(layout: Layout) -> Layout:
    """Returns the layout with a branch for every hidden width: the same operators, none of which share a branch."""
    return replace(layout, slots=tuple(
        replace(slot, branches=tuple(Branch(b.op, (w,) if w else ()) for b in slot.branches for w in b.widths or (0,)))
        for slot in layout.slots))


def _exits(space: Space, task: Task, slots: Sequence[Slot]) -> Iterator[Exit]:
    for before, after in itertools.pairwise(slots):
        if after.stride > 1:
            op = _fixed(space, "exit", after.in_ch, task.classes, 1)
            yield Exit(before.index, OpKey(op, after.in_ch, task.classes, 1, after.size))


def _strides(space: Space, size: int) -> list[int]:
    strides = [space.stem.stride, *(stage.stride for stage in space.stages)]
    while _last_map(size, strides) < LAST_MAP and max(strides) > 1:
        first = next(i for i, stride in enumerate(strides) if stride > 1)
        strides[first] //= 2
    return strides


def _last_map(size: int, strides: Iterable[int]) -> int:
    for stride in strides:
        size = -(-size // stride)
    return size


def _fixed(space: Space, part: str, in_ch: int, out_ch: int, stride: int) -> Op:
    where = f"{space.file or space.name}: {part}.op"
    try:
        op = Op.parse(getattr(space, part).op)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if (part == "exit") != (op.name == EXIT_HEAD):
        raise UserError(f"{where}: {op}: {EXIT_HEAD} stands at early exits and nothing else does, for example "
                        f"exit: {{op: {EXIT_HEAD}(hidden=128)}}")
    _must_build(where, op, in_ch, out_ch, stride)
    return op


def _branches(space: Space, stage: int, in_ch: int, out_ch: int, stride: int) -> tuple[Branch, ...]:
    stage_ops = space.stages[stage].ops
    branches: list[Branch] = []
    for name, knobs in (stage_ops or space.ops).items():
        where = f"{space.file or space.name}: {f'stages.{stage}.' if stage_ops else ''}ops.{name}"
        branches += _family_branches(where, name, knobs, in_ch, out_ch, stride)
    if space.skip and stride == 1 and in_ch == out_ch:
        branches.append(Branch(SKIP))
    return tuple(branches)


def _family_branches(where: str, name: str, knobs: dict[str, KnobValues], in_ch: int, out_ch: int,
                     stride: int) -> Iterator[Branch]:
    widths = _hidden(where, knobs["hidden"], in_ch) if "hidden" in knobs else ()
    listed = {knob: values if isinstance(values, list) else [values] for knob, values in knobs.items()
              if knob != "hidden" and not isinstance(values, Widths)}
    if bad := knobs.keys() - listed.keys() - {"hidden"}:
        raise UserError(f"{where}.{min(bad)}: only hidden is a range; write a list of values")
    try:
        family = op_families.family(name)
        op_families.check(Op.of(name, **{knob: 1 for knob in knobs}))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    used = [knob for knob in sorted(listed) if family.applicable(knob, in_ch, out_ch, stride)]
    values = [list(dict.fromkeys(listed[knob])) for knob in used]
    for combination in itertools.product(*values):
        op = Op.of(name, **dict(zip(used, combination, strict=True)))
        branch = Branch(op, widths)
        for extreme in {branch.ops[0], branch.ops[-1]}:
            _must_build(where, extreme, in_ch, out_ch, stride)
        yield branch


def _hidden(where: str, given: KnobValues, in_ch: int) -> tuple[int, ...]:
    if isinstance(given, list):
        raise UserError(f"{where}.hidden: write {{min: 1, max: 6, step: 8}}, factors of the input channels")
    if isinstance(given, Widths):
        return given.of(in_ch)
    try:
        return (hidden_width(given, in_ch),)
    except UserError as error:
        raise UserError(f"{where}.hidden: {error}") from None


@lru_cache(maxsize=65536)
def _must_build(where: str, op: Op, in_ch: int, out_ch: int, stride: int) -> None:
    try:
        with torch.device("meta"):
            op_families.build(op, in_ch, out_ch, stride)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
