"""Families of operators by hand: what their convolutions, channels and heads are."""

from __future__ import annotations

import pytest
import torch
from every import every
from settled_blocks import WIDE, images, settled
from torch import nn

from nas.arch import Op, Value
from nas.errors import UserError
from nas.ops import build
from nas.ops.g_ghost import complicated
from nas.ops.layers import shuffled
from nas.plan import OpKey, macs


def test_a_ghost_of_ratio_4_makes_a_quarter_of_its_maps_by_convolution() -> None:
    # 8 -> 32 -> 12 at 6x6: 8 and 3 intrinsic maps, the others by 3x3 depthwise convolutions
    key = OpKey(Op.of("ghost", hidden=32, ratio=4), 8, 12, 1, 6)
    shortcut = 36 * (9 * 8 + 8 * 12)
    assert macs(key) == 36 * (8 * 8 + 9 * 24 + 32 * 3 + 9 * 9) + shortcut
    wide = settled(key.op, 8, 12, 1)
    assert wide.slices(8)["expand.cheap.conv"] == (((0, 6),), None)  # three of each of the first 2 intrinsic maps
    assert wide.slices(8)["project.primary.conv"] == (None, ((0, 2), (8, 14)))


def test_a_shuffle_gives_every_group_a_part_of_every_group() -> None:
    x = torch.arange(8.0).reshape(1, 8, 1, 1)  # two groups of two parts: 0 1 | 2 3 and 4 5 | 6 7
    assert shuffled(x, 2).flatten().tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    one = nn.functional.channel_shuffle(x, 2).flatten()
    assert [set(half.tolist()) for half in one.chunk(2)] != [{0, 1, 2, 3}, {4, 5, 6, 7}]
    assert [set(half.tolist()) for half in one.chunk(2)] == [set(half.flatten().tolist())
                                                            for half in shuffled(x, 2).chunk(2, 1)]


def test_grouped_convolutions_by_hand() -> None:
    # mbconv 8 -> 16 -> 12 at 5x5 in 2 groups: both 1x1 convolutions cost half
    assert macs(OpKey(Op.of("mbconv", hidden=16, groups=2), 8, 12, 1, 5)) == 25 * (8 * 16 // 2 + 9 * 16 + 16 * 12 // 2)
    # bottleneck 8 -> 16 -> 8: the inner 3x3 costs a quarter in 4 groups
    key = OpKey(Op.of("bottleneck", hidden=16, groups=4), 8, 8, 1, 5)
    assert macs(key) == 25 * (8 * 16 + 9 * 16 * 16 // 4 + 16 * 8)
    wide = settled(Op.of("mbconv", hidden=16, groups=2), 8, 8, 1)
    assert wide.slices(8)["expand.conv"] == (((0, 2), (4, 6), (8, 10), (12, 14)), None)
    assert wide.slices(8)["project.conv"] == (None, ((0, 2), (4, 6)))


@pytest.mark.parametrize(("channels", "ratio", "group", "expected"), [
    (192, 50, 48, 72), (432, 50, 48, 216), (240, 50, 40, 120), (560, 50, 40, 270), (720, 50, 120, 360),
    (256, 50, 0, 128), (12, 50, 48, 6), (1, 50, 0, 1)])
def test_channels_of_the_complicated_path(channels: int, ratio: int, group: int, expected: int) -> None:
    """floor(c (1 - r) / g') g' with g' = 3/4 g; a body narrower than a group has one of what is left."""
    assert complicated(channels, ratio, group) == expected


def test_a_stage_wise_ghost_by_hand() -> None:
    # 8 -> 16 in 4 blocks: full (1x1 shortcut), two of 8 channels, full; cheap 8 -> 8; means of 16 + 2 x 8 -> 8 -> 8
    key = OpKey(Op.of("g_ghost", depth=4, ratio=50), 8, 16, 1, 5)
    full = 25 * (16 * 16 * (9 + 1)) + 25 * 8 * 16
    assert macs(key) == full + 25 * 8 * 16 + 2 * 25 * 8 * 8 * 11 + 25 * 64 + 32 * 8 + 64 + 25 * 16 * 16 * 11
    plain = macs(key) - (2 * 25 * 8 * 8 * 11 + 25 * 64 + 32 * 8 + 64)
    assert macs(OpKey(Op.of("g_ghost", depth=2), 8, 16, 1, 5)) == plain  # of two blocks none is a ghost
    assert macs(OpKey(Op.of("g_ghost", depth=4, ratio=0), 8, 16, 1, 5)) == plain + 2 * 25 * 16 * 16 * 11


def test_nothing_to_expand_is_one_convolution_less() -> None:
    block, x = settled(Op.parse("mbconv(hidden=8, expand=0)"), 8, 12, 2), images(2, 8, 9, 9)
    with torch.no_grad():
        assert torch.equal(block(x), block.project(block.depthwise(x)))
    assert not any(name.startswith("expand") for name in block.state_dict())


def test_the_squeeze_of_regnet_follows_the_input_and_that_of_mobilenet_the_hidden_width() -> None:
    regnet = build(Op.of("regnet", hidden=WIDE, se=1), 24, 8, 1)
    mbconv = build(Op.of("mbconv", hidden=72, se=1), 24, 8, 1)
    assert regnet.se.reduce.out_channels == 6 and mbconv.se.reduce.out_channels == 20
    eight = build(Op.of("mbconv", hidden=72, se=1, se_step=8), 24, 8, 1)
    assert eight.se.reduce.out_channels == 24  # 18, but 16 is more than a tenth below
    of_input = build(Op.of("mbconv", hidden=72, se=1, se_from="input"), 24, 8, 1)
    assert of_input.se.reduce.out_channels == 6 and not of_input.se.hard


def test_a_stem_of_stride_4_pools() -> None:
    stem, x = build(Op.parse("stem(kernel=7, pool=3)"), 3, 8, 4), images(2, 3, 33, 33)
    assert tuple(stem(x).shape) == (2, 8, 9, 9)
    with pytest.raises(UserError, match="stride 4 needs an odd window of the pooling, for example pool=3"):
        build(Op.parse("stem(kernel=7)"), 3, 8, 4)


def test_skip_is_nothing() -> None:
    x = images(1, 8, 5, 5)
    skip = build(Op.of("skip"), 8, 8, 1)
    assert skip(x) is x and not skip.state_dict()
    for shape in ((8, 8, 2), (8, 9, 1)):
        with pytest.raises(UserError, match="skip needs stride 1 and equal channels"):
            build(Op.of("skip"), *shape)


@pytest.mark.parametrize("knobs", [{}, {"hidden": 16}, {"features": 16},
                                   {"hidden": 16, "features": 8, "act": "hswish"}])
def test_heads_and_stems(knobs: dict[str, Value]) -> None:
    assert tuple(build(Op.of("head", **knobs), 8, 5, 1)(images(2, 8, 4, 4)).shape) == (2, 5)
    assert tuple(build(Op.of("stem"), 3, 8, 2)(images(2, 3, 9, 9)).shape) == (2, 8, 5, 5)


@pytest.mark.parametrize("knobs", [{}, {"hidden": 16}, {"hidden": 16, "kernel": 5, "act": "hswish"}])
def test_exit_heads(knobs: dict[str, Value]) -> None:
    head = build(Op.of("exit_head", **knobs), 8, 5, 1).train()
    head(images(2, 8, 9, 9)).sum().backward()
    assert every(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    assert tuple(head(images(2, 8, 4, 4)).shape) == (2, 5)


@pytest.mark.parametrize("op", ["head(hidden=16, features=24)", "head", "exit_head", "exit_head(hidden=16)"])
def test_a_head_classifies_what_it_embeds(op: str) -> None:
    head, x = settled(Op.parse(op), 8, 5, 1), images(2, 8, 6, 6)
    with torch.no_grad():
        assert torch.equal(head.classifier(head.embed(x)), head(x))
        if op == "exit_head":
            assert torch.allclose(head(x), head.classifier(x.mean((2, 3))))
