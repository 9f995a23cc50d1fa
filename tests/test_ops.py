"""Every operator family: shapes, gradients, and slices that equal the narrower copy exactly."""

from __future__ import annotations

import itertools
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from nas.arch import Op, Value
from nas.errors import UserError
from nas.ops import build, families, family, register, sliced, take_width
from nas.ops.ghost import Ghost
from nas.ops.registry import Block, knobs_of

WIDE = 32
KNOBS: dict[str, list[Value]] = {"hidden": [WIDE], "kernel": [3, 5], "cheap": [3, 5], "se": [0, 1],
                                 "act": ["relu", "hswish"], "se_step": [4], "se_from": ["hidden", "input"],
                                 "expand": [1], "group_width": [0, 2]}
BLOCKS = [name for name in families() if name not in ("stem", "head", "exit_head", "skip")]


def variants(name: str) -> list[Op]:
    """Every combination of the values above; a knob that is new here needs some."""
    knobs = knobs_of(name)
    assert set(knobs) <= set(KNOBS), f"give example values of {set(knobs) - set(KNOBS)}"
    return [Op.of(name, **dict(zip(knobs, values, strict=True)))
            for values in itertools.product(*(KNOBS[knob] for knob in knobs))]


OPS = [op for name in BLOCKS for op in variants(name)]
SHAPES = [(8, 8, 1), (8, 12, 1), (8, 8, 2), (8, 13, 2)]


def settled(op: Op, in_ch: int, out_ch: int, stride: int, seed: int = 0) -> Block:
    """The block in eval mode, with batch norms as after training rather than at their start."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        block = build(op, in_ch, out_ch, stride)
        for module in block.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias)
                assert module.running_mean is not None and module.running_var is not None
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2)
    return block.eval()


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("in_ch", "out_ch", "stride"), SHAPES)
@pytest.mark.parametrize("op", OPS, ids=str)
def test_shapes_and_gradients(op: Op, in_ch: int, out_ch: int, stride: int) -> None:
    block = build(op, in_ch, out_ch, stride).train()
    x = images(2, in_ch, 9, 9).requires_grad_()
    y = block(x)
    assert tuple(y.shape) == (2, out_ch, -(-9 // stride), -(-9 // stride))
    y.square().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())


@pytest.mark.parametrize("hidden", [2, 8, 24, WIDE])
@pytest.mark.parametrize(("in_ch", "out_ch", "stride"), SHAPES)
@pytest.mark.parametrize("op", OPS, ids=str)
def test_a_slice_is_exactly_the_narrower_copy(op: Op, in_ch: int, out_ch: int, stride: int, hidden: int) -> None:
    wide = settled(op, in_ch, out_ch, stride)
    narrow = settled(op.with_knobs(hidden=hidden), in_ch, out_ch, stride, seed=2)
    take_width(wide, narrow)
    x = images(2, in_ch, 9, 9)
    with torch.no_grad():
        assert torch.equal(sliced(wide, hidden, x), narrow(x))
    assert narrow.max_hidden == hidden and wide.max_hidden == WIDE


@pytest.mark.parametrize("op", OPS, ids=str)
def test_a_copied_width_is_a_copy(op: Op) -> None:
    wide, narrow = settled(op, 8, 8, 2), settled(op.with_knobs(hidden=8), 8, 8, 2)
    before = {name: tensor.clone() for name, tensor in wide.state_dict().items()}
    take_width(wide, narrow)
    with torch.no_grad():
        for tensor in [*narrow.parameters(), *narrow.buffers()]:
            tensor.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in wide.state_dict().items())


@pytest.mark.parametrize("op", OPS, ids=str)
def test_a_slice_trains_only_its_own_weights(op: Op) -> None:
    """At most as many weights get a gradient as the narrower block has (fewer where a ReLU never fires)."""
    wide, narrow = settled(op, 8, 12, 2), build(op.with_knobs(hidden=8), 8, 12, 2)
    (sliced(wide, 8, images(4, 8, 9, 9)) * images(4, 12, 5, 5)).sum().backward()
    for (name, p), q in zip(wide.named_parameters(), narrow.parameters(), strict=True):
        touched = 0 if p.grad is None else int(p.grad.count_nonzero())
        assert touched <= q.numel() and (touched or name.startswith("se.")), name


def test_the_full_width_is_the_block_itself() -> None:
    wide, x = settled(OPS[0], 8, 8, 1), images(1, 8, 9, 9)
    assert torch.equal(sliced(wide, None, x), wide(x)) and torch.equal(sliced(wide, WIDE, x), wide(x))


def test_a_ghost_slice_is_the_first_intrinsic_maps_and_their_cheap_maps() -> None:
    wide = settled(Op.of("ghost", hidden=WIDE), 8, 8, 1)
    assert isinstance(wide, Ghost)
    slices = wide.slices(8)
    assert slices["expand.primary.conv"] == (((0, 4),), None)
    assert slices["project.primary.conv"] == (None, ((0, 4), (16, 20)))  # cheap maps follow the 16 intrinsic ones


def test_a_residual_adds_the_input() -> None:
    x = images(1, 8, 5, 5)
    for name in ("ghost", "mbconv"):
        block = settled(Op.of(name, hidden=8), 8, 8, 1)
        with torch.no_grad():
            for p in block.project.parameters():
                p.zero_()
            for buffer in block.project.buffers():
                buffer.zero_()
            assert torch.equal(block(x), x)


def test_nothing_to_expand_is_one_convolution_less() -> None:
    block, x = settled(Op.parse("mbconv(hidden=8, expand=0)"), 8, 12, 2), images(2, 8, 9, 9)
    with torch.no_grad():
        assert torch.equal(block(x), block.project(block.depthwise(x)))  # type: ignore[operator]
    assert not any(name.startswith("expand") for name in block.state_dict())


def test_the_squeeze_of_regnet_follows_the_input_and_that_of_mobilenet_the_hidden_width() -> None:
    regnet = build(Op.of("regnet", hidden=WIDE, se=1), 24, 8, 1)
    mbconv = build(Op.of("mbconv", hidden=72, se=1), 24, 8, 1)
    assert regnet.se.reduce.out_channels == 6 and mbconv.se.reduce.out_channels == 20  # type: ignore[union-attr]
    eight = build(Op.of("mbconv", hidden=72, se=1, se_step=8), 24, 8, 1)
    assert eight.se.reduce.out_channels == 24  # type: ignore[union-attr]  # 18, but 16 is more than a tenth below
    of_input = build(Op.of("mbconv", hidden=72, se=1, se_from="input"), 24, 8, 1)
    assert of_input.se.reduce.out_channels == 6 and not of_input.se.hard  # type: ignore[union-attr]


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
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    assert tuple(head(images(2, 8, 4, 4)).shape) == (2, 5)


@pytest.mark.parametrize("op", ["head(hidden=16, features=24)", "head", "exit_head", "exit_head(hidden=16)"])
def test_a_head_classifies_what_it_embeds(op: str) -> None:
    head, x = settled(Op.parse(op), 8, 5, 1), images(2, 8, 6, 6)
    with torch.no_grad():
        assert torch.equal(head.classifier(head.embed(x)), head(x))  # type: ignore[operator]
        if op == "exit_head":
            assert torch.allclose(head(x), head.classifier(x.mean((2, 3))))  # type: ignore[operator]


@pytest.mark.parametrize(("op", "expected"), [
    ("nope", "unknown operator 'nope'; known: basic, exit_head, ghost, head"),
    ("ghots(hidden=8)", "did you mean 'ghost'"),
    ("ghost", "knob 'hidden' is missing"), ("ghost(hidden=8, sse=1)", "unknown knob 'sse'; did you mean 'se'"),
    ("ghost(hidden=7)", "hidden 7 is odd"), ("ghost(hidden=0)", "0 channels"), ("mbconv(hidden=0)", "0 channels"),
    ("mbconv(hidden=-8)", "-8 channels"), ("mbconv(hidden=a)", "hidden=a"), ("mbconv(hidden=8, kernel=4)", "kernel 4"),
    ("exit_head(hidden=-1)", "hidden is a number of channels"),
    ("stem(act=gelu)", "unknown activation 'gelu'; known: relu, relu6, hswish, none"),
    ("mbconv(hidden=16, expand=0)", "hidden 16 without an expansion: it must be the 8 input channels"),
    ("mbconv(hidden=8, se=1, se_step=0)", "multiples of 0"), ("mbconv(hidden=8, se_from=output)", "hidden or input"),
    ("basic(hidden=0)", "0 channels"),
    ("regnet(hidden=12, group_width=8)", "12 channels are not a multiple of group_width 8"),
])
def test_an_operator_that_cannot_be_built(op: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        build(Op.parse(op), 8, 8, 1)


def test_a_name_is_registered_once() -> None:
    class Again(Block):
        deploys_as_is: ClassVar[bool] = True

    with pytest.raises(ValueError, match=r"'ghost' is registered already, by nas\.ops\.ghost"):
        register("ghost")(Again)
    assert family("ghost") is Ghost
