"""The walk: strides and sizes by hand, keys that are the union of all plans, MACs and parameters of known networks."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from every import every
from fvcore.nn import FlopCountAnalysis
from tiny_space import TINY

from nas import sampling
from nas.arch import SKIP, Arch, Op
from nas.errors import UserError
from nas.files import folder, shipped
from nas.ops import build, deployed
from nas.plan import Layout, OpKey, Task, candidates, layout, layouts, macs, params, plan, prefixes, resized, restrict
from nas.space import Space
from nas.subnet import Subnet

# per slot of the ghost space: (input side, stride), then the side that the head sees; strides are stated for 224
GHOST = {
    224: (2, [(112, 1), (112, 2), (56, 1), (56, 2), (28, 1), (28, 2), (14, 1), (14, 1), (14, 1), (14, 1), (14, 1),
              (14, 2), (7, 1), (7, 1), (7, 1), (7, 1)], 7),
    # five halvings of 96 end at 3 < 4: the stem keeps its size
    96: (1, [(96, 1), (96, 2), (48, 1), (48, 2), (24, 1), (24, 2), (12, 1), (12, 1), (12, 1), (12, 1), (12, 1),
             (12, 2), (6, 1), (6, 1), (6, 1), (6, 1)], 6),
    # of 32 only three are left: the stem and the first stage that halves keep their size
    32: (1, [(32, 1), (32, 1), (32, 1), (32, 2), (16, 1), (16, 2), (8, 1), (8, 1), (8, 1), (8, 1), (8, 1),
             (8, 2), (4, 1), (4, 1), (4, 1), (4, 1)], 4),
}
CHANNELS = [16, 16, 24, 24, 40, 40, 80, 80, 80, 80, 112, 112, 160, 160, 160, 160, 160]
# GhostNet 1.0x (Han et al., table 1): expansion, kernel of the depthwise, squeeze-excite
GHOSTNET = [(16, 3, 0), (48, 3, 0), (72, 3, 0), (72, 5, 1), (120, 5, 1), (240, 3, 0), (200, 3, 0), (184, 3, 0),
            (184, 3, 0), (480, 3, 1), (672, 3, 1), (672, 5, 1), (960, 5, 0), (960, 5, 1), (960, 5, 0), (960, 5, 1)]


def ghostnet(at: Layout) -> Arch:
    ops = []
    for slot, (hidden, kernel, se) in zip(at.slots, GHOSTNET, strict=True):
        op = Op.of("ghost", cheap=3, hidden=hidden, se=se)
        ops.append(op.with_knobs(kernel=kernel) if slot.stride > 1 or slot.in_ch != slot.out_ch else op)
    return Arch(at.space, at.task.size, tuple(ops))


@pytest.mark.parametrize("size", GHOST)
def test_strides_and_sizes_by_hand(size: int) -> None:
    found = layout(Space.load("ghost"), Task(size, 3, 10))
    stem_stride, slots, last = GHOST[size]
    assert (found.stem.stride, found.stem.size, found.stem.in_ch, found.stem.out_ch) == (stem_stride, size, 3, 16)
    assert [(slot.size, slot.stride) for slot in found.slots] == slots
    assert [slot.in_ch for slot in found.slots] == CHANNELS[:-1]
    assert [slot.out_ch for slot in found.slots] == CHANNELS[1:]
    assert [slot.stage for slot in found.slots] == [0, 1, 1, 2, 2, 3, 3, 3, 3, 4, 4, 5, 5, 5, 5, 5]
    assert (found.head.size, found.head.in_ch, found.head.out_ch) == (last, 160, 10)


@pytest.mark.parametrize("name", shipped("search_spaces", ".yaml"))
@pytest.mark.parametrize("size", [8, 28, 33, 63, 65, 96, 224])
def test_the_walk_agrees_with_what_the_modules_do(name: str, size: int) -> None:
    found = layout(Space.load(name), Task(size, 3, 10))
    arch = Arch(found.space, size, tuple(slot.ops[0] for slot in found.slots))
    with torch.device("meta"):
        x = torch.empty(1, 3, size, size)
        for key in plan(found, arch)[:-1]:
            assert tuple(x.shape) == (1, key.in_ch, key.size, key.size)
            x = build(key.op, key.in_ch, key.out_ch, key.stride)(x)
    assert tuple(x.shape) == (1, found.head.in_ch, found.head.size, found.head.size) and found.head.size >= 4


@pytest.mark.parametrize("size", [0, -1, 3, 5000])
def test_a_size_that_makes_no_sense(tiny_space: Space, size: int) -> None:
    with pytest.raises(UserError, match=f"size={size}: .* from 4 to 4096"):
        layout(tiny_space, Task(size, 3, 4))


def test_what_may_stand_in_a_slot() -> None:
    slots = layout(Space.load("ghost"), Task(32, 3, 10)).slots
    # 16 -> 16: the ghost has cheap x se and no kernel, the mbconv kernel x se, 11 widths (16, 24 .. 96), and skip
    assert [len(slots[0].branches), len(slots[0].ops)] == [4 + 4 + 1, 8 * 11 + 1]
    # 16 -> 24: the ghost's shortcut has a kernel, and there is no skip
    assert [len(slots[1].branches), len(slots[1].ops)] == [8 + 4, 12 * 11]
    assert slots[0].branches[0].widths == tuple(range(16, 97, 8))
    assert [SKIP in slot.ops for slot in slots] == [i not in (1, 3, 5, 9, 11) for i in range(16)]
    assert slots[0].key(SKIP) is None
    assert slots[3].key(slots[3].ops[0]) == OpKey(slots[3].ops[0], 24, 40, 2, 32)


def test_candidates_are_the_union_of_all_plans(tiny: Layout) -> None:
    archs = itertools.product(*(slot.ops for slot in tiny.slots))
    plans = [plan(tiny, Arch("tiny", 16, ops)) for ops in archs]
    assert len(plans) == 10 * 10 * 9 * 16  # 3 widths x 3 branches + skip; no skip at the stride; 5 widths of 16
    assert set(candidates(tiny)) == {key for keys in plans for key in keys}
    assert len(candidates(tiny)) == len(set(candidates(tiny)))
    assert every((keys[0], keys[-1]) == tiny.fixed for keys in plans)


def test_a_plan_leaves_out_what_is_skipped(tiny: Layout) -> None:
    ghost = Op.of("ghost", cheap=3, hidden=16, se=0)
    keys = plan(tiny, Arch("tiny", 16, (SKIP, ghost, ghost.with_knobs(kernel=3), SKIP)))
    assert [(key.op.name, key.in_ch, key.out_ch, key.stride, key.size) for key in keys] == [
        ("stem", 3, 8, 1, 16), ("ghost", 8, 8, 1, 16), ("ghost", 8, 16, 2, 16), ("head", 16, 4, 1, 8)]


@pytest.mark.parametrize(("space", "size", "ops", "expected"), [
    ("tiny", 16, ["skip"] * 4, "slot 2 does not admit skip"),
    ("tiny", 16, ["skip", "ghost(cheap=3, hidden=12, se=0)", "skip", "skip"], "slot 1 does not admit ghost"),
    ("tiny", 16, ["skip"] * 3, "3 slots does not fit tiny at 16 with 4 slots"),
    ("tiny", 32, ["skip"] * 4, "tiny at 32"),
    ("other", 16, ["skip"] * 4, "architecture of other"),
])
def test_an_arch_that_does_not_fit(tiny: Layout, space: str, size: int, ops: list[str], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        plan(tiny, Arch.from_json({"space": space, "size": size, "ops": ops, "exits": []}))


# at 224 the strides of ghost are at the slots 1, 3, 5 and 11, at 32 the first of these is 1
@pytest.mark.parametrize(("size", "expected"), [(224, [(0, 16, 112), (2, 24, 56), (4, 40, 28), (10, 112, 14)]),
                                                (32, [(2, 24, 32), (4, 40, 16), (10, 112, 8)])])
def test_exits_stand_before_the_stride_changes(size: int, expected: list[tuple[int, int, int]]) -> None:
    found = layout(Space.load("ghost"), Task(size, 3, 10), exits=True)
    assert [(exit_.slot, exit_.key.in_ch, exit_.key.size) for exit_ in found.exits] == expected
    assert {(exit_.key.op, exit_.key.out_ch) for exit_ in found.exits} == {(Op.of("exit_head", hidden=128), 10)}
    without = layout(Space.load("ghost"), Task(size, 3, 10))
    assert without.exits == () and candidates(without) == candidates(found)[:-len(expected)]
    assert candidates(found)[-len(expected):] == [exit_.key for exit_ in found.exits]


def test_heads_of_a_scaled_space() -> None:
    half = Space.load("ghost@0.5")
    assert (half.head.op, half.exit.op) == ("head(dropout_percent=20, hidden=480)", "exit_head(hidden=64)")
    plain = Space.parse({**TINY, "head": {"op": "head(hidden=0)"}, "exit": {"op": "exit_head"}}).scaled(0.5)
    assert (plain.head.op, plain.exit.op) == ("head(hidden=0)", "exit_head")  # none stays none


def test_a_plan_with_exits_in_the_order_they_run(tiny_exits: Layout) -> None:
    ghost = Op.of("ghost", cheap=3, hidden=16, se=0)
    ops = (ghost, SKIP, ghost.with_knobs(kernel=3), SKIP)
    keys = plan(tiny_exits, Arch("tiny", 16, ops, (1,)))
    assert [(key.op.name, key.in_ch, key.out_ch, key.size) for key in keys] == [
        ("stem", 3, 8, 16), ("ghost", 8, 8, 16), ("exit_head", 8, 4, 16), ("ghost", 8, 16, 16), ("head", 16, 4, 8)]
    assert [key for key in keys if not key.is_exit] == plan(tiny_exits, Arch("tiny", 16, ops))
    assert prefixes(keys) == [keys[:3], keys]
    assert prefixes(keys[:2] + keys[3:]) == [keys[:2] + keys[3:]]


@pytest.mark.parametrize(("exits", "slots"), [((0,), "1"), ((1, 1), "1"), ((3,), "1"), ((1, 0), "1")])
def test_exits_that_do_not_fit(tiny_exits: Layout, exits: tuple[int, ...], slots: str) -> None:
    ops = tuple(slot.ops[0] for slot in tiny_exits.slots)
    with pytest.raises(UserError, match=rf"exits \[.*\]: may stand behind the slots {slots}, each once and in order"):
        plan(tiny_exits, Arch("tiny", 16, ops, exits))
    with pytest.raises(UserError, match="none here"):
        plan(replace(tiny_exits, exits=()), Arch("tiny", 16, ops, (1,)))


@pytest.mark.parametrize("part", [{"exit": {"op": "head"}}, {"head": {"op": "exit_head"}}, {"exit": {"op": "ghost"}}])
def test_only_exit_heads_stand_at_exits(part: dict[str, dict[str, str]]) -> None:
    with pytest.raises(UserError, match=rf"{next(iter(part))}\.op: .*exit_head stands at early exits and nothing else"):
        layout(Space.parse({**TINY, **part}), Task(16, 3, 4), exits=True)


def test_macs_of_an_exit_head_by_hand() -> None:
    # 5x5 depthwise of 15x15 at stride 2 is 8x8, then 8 -> 16 and 16 -> 10
    key = OpKey(Op.of("exit_head", hidden=16, kernel=5), 8, 10, 1, 15)
    assert macs(key) == 64 * 25 * 8 + 64 * 8 * 16 + 16 * 10
    assert params(key) == 25 * 8 + 2 * 8 + 8 * 16 + 2 * 16 + 16 * 10 + 10
    assert macs(OpKey(Op.of("exit_head"), 8, 10, 1, 15)) == 80


def test_macs_and_parameters_of_a_block_by_hand() -> None:
    # two Ghost modules 16 -> 16: 16 x 8 for the intrinsic maps, 8 x 9 for the cheap ones; a batch norm on each 8
    key = OpKey(Op.of("ghost", cheap=3, hidden=16, se=0), 16, 16, 1, 112)
    assert macs(key) == 112 * 112 * 2 * (16 * 8 + 8 * 9)
    assert params(key) == 2 * (16 * 8 + 8 * 9) + 4 * 2 * 8
    # 8 -> 24 -> 16 at stride 2 with a 5x5 depthwise and squeeze-excite 24 -> 8 -> 24 (a quarter is 6, made 8)
    key = OpKey(Op.of("mbconv", kernel=5, hidden=24, se=1), 8, 16, 2, 9)
    assert macs(key) == 81 * 8 * 24 + 25 * 25 * 24 + 2 * 24 * 8 + 25 * 24 * 16
    assert params(key) == 8 * 24 + 25 * 24 + (24 * 8 + 8) + (8 * 24 + 24) + 24 * 16 + 2 * (24 + 24 + 16)
    head = OpKey(Op.of("head", hidden=32, features=64), 16, 10, 1, 7)
    assert macs(head) == 49 * 16 * 32 + 32 * 64 + 64 * 10
    assert params(head) == 16 * 32 + 2 * 32 + (32 * 64 + 64) + (64 * 10 + 10)


def test_macs_and_parameters_of_the_published_ghostnet() -> None:
    task = Task(224, 3, 1000)
    at = replace(layout(Space.load("ghost"), task), head=layout(Space.load("ghostnet"), task).head)
    keys = plan(at, ghostnet(at))
    assert sum(map(macs, keys)) == pytest.approx(141e6, rel=0.01)  # table 7: 141 M, 5.2 M
    assert sum(map(params, keys)) == pytest.approx(5.18e6, rel=0.005)


@pytest.mark.parametrize("name", shipped("search_spaces", ".yaml"))
def test_macs_and_parameters_agree_with_fvcore(name: str) -> None:
    at = layout(Space.load(name), Task(32, 3, 10))
    arch = Arch(at.space, 32, tuple(slot.ops[-2 if slot.ops[-1] == SKIP else -1] for slot in at.slots))
    keys = plan(at, arch)
    model = deployed(Subnet(keys)).eval()
    counted = FlopCountAnalysis(model, torch.zeros(1, 3, 32, 32)).unsupported_ops_warnings(False).by_operator()
    assert sum(map(macs, keys)) == counted["conv"] + counted["linear"]
    assert sum(map(params, keys)) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("name", "params_m", "macs_g"), [  # of the released code, counted (docs: exits 2.3; the
    ("g_ghost_regnetx_032", 10.51, 1.802), ("g_ghost_regnetx_040", 15.73, 2.228),  # paper has 10.5 M, 1.8 G and so on)
    ("g_ghost_regnetx_080", 24.59, 4.150)])
def test_parameters_and_macs_of_the_published_g_ghosts(name: str, params_m: float, macs_g: float) -> None:
    at = layout(Space.load(str(folder("search_spaces") / "presets" / f"{name}.yaml")), Task(224, 3, 1000))
    assert sampling.count(at) == 1
    keys = plan(at, sampling.smallest(at))
    assert sum(map(params, keys)) == pytest.approx(params_m * 1e6, rel=0.0005)
    assert sum(map(macs, keys)) == pytest.approx(macs_g * 1e9, rel=0.0005)


def signature(op: Op, at: OpKey) -> tuple[str, tuple[tuple[str, torch.Size], ...]]:
    with torch.device("meta"):
        block = build(op, at.in_ch, at.out_ch, at.stride)
    return repr(block), tuple((name, tensor.shape) for name, tensor in block.state_dict().items())


@pytest.mark.parametrize("name", shipped("search_spaces", ".yaml"))
def test_no_two_candidates_of_a_slot_are_the_same_module(name: str) -> None:
    seen = set()
    for slot in layout(Space.load(name), Task(32, 3, 10)).slots:
        if (shape := (slot.in_ch, slot.out_ch, slot.stride)) in seen:
            continue
        seen.add(shape)
        ops = [op for branch in slot.branches for op in {branch.ops[0], branch.ops[-1]} if op != SKIP]
        keys = [key for op in ops if (key := slot.key(op)) is not None]
        assert len({signature(key.op, key) for key in keys}) == len(ops) == len(set(ops))


def test_restricting_keeps_what_is_named(tiny: Layout) -> None:
    ghost = Op.of("ghost", cheap=3, se=0)
    keep = [[SKIP], [ghost.with_knobs(hidden=8), SKIP], [tiny.slots[2].ops[0]], list(tiny.slots[3].ops)]
    left = restrict(tiny, keep)
    assert [list(slot.ops) for slot in left.slots] == keep
    assert left.slots[3] == tiny.slots[3] and left.fixed == tiny.fixed
    with pytest.raises(ValueError, match="slot 2 would be empty"):
        restrict(tiny, [*keep[:2], [SKIP], keep[3]])


@pytest.mark.parametrize("name", shipped("search_spaces", ".yaml"))
def test_a_layout_resized_is_the_walk_at_that_size(name: str) -> None:
    space, task = Space.load(name), Task(224, 3, 10)
    exits = space.exit is not None
    assert layouts(space, task, [], exits) == {224: layout(space, task, exits)}
    walks = layouts(space, task, [160, 224, 201], exits)
    assert list(walks) == [224, 201, 160]  # the largest first
    for size, walk in walks.items():
        assert walk == layout(space, replace(task, size=size), exits) == resized(walks[224], size)
        keep = [slot.ops[::2] for slot in walk.slots]
        assert resized(restrict(walks[224], keep), size) == restrict(walk, keep)


def test_sizes_share_strides(tiny_space: Space) -> None:
    """Strides 1, 1, 2: from 7 pixels on the last map is 4x4 or larger, below the 2 becomes 1."""
    assert list(layouts(tiny_space, Task(16, 3, 4), [7, 16])) == [16, 7]
    with pytest.raises(UserError, match=r"size=6: tiny has other strides .*sizes from 7 on go with 16"):
        layouts(tiny_space, Task(16, 3, 4), [6, 16])
