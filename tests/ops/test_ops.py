"""Every operator family: shapes, gradients, and slices that equal the narrower copy exactly."""

from __future__ import annotations

import copy
import itertools
from typing import ClassVar

import pytest
import torch
from every import every
from fvcore.nn import FlopCountAnalysis
from settled_blocks import WIDE, images, settled
from torch import Tensor, nn

from nas.arch import Op, Value
from nas.errors import UserError
from nas.ops import build, deployed, families, family, give_width, register, registry, sliced, take_width
from nas.ops.ghost import Ghost
from nas.ops.registry import Block, knobs_of
from nas.plan import OpKey, macs, params

KNOBS: dict[str, list[Value]] = {
    "hidden": [WIDE], "kernel": [3, 5], "cheap": [3, 5], "se": [0, 1], "act": ["relu", "silu"], "ratio": [2, 4],
    "groups": [1, 2], "depth": [2, 3, 5], "mix": [0, 1], "group": [0, 4], "squeeze": [1, 4], "expand": [3],
    "point": [0, 1], "deep": [0, 1], "cross": [0, 1], "pool": [0, 1], "se_step": [4], "se_from": ["hidden", "input"],
    "group_width": [0, 2]}
OWN: dict[str, dict[str, list[Value]]] = {"g_ghost": {"ratio": [50], "depth": [2, 4]},
                                         "mbconv": {"act": ["relu", "hswish"], "expand": [1]},
                                         "rep": {"act": ["relu"], "kernel": [3]}}
BLOCKS = [name for name in families() if name not in ("stem", "head", "exit_head", "skip")]


def variants(name: str) -> list[Op]:
    """Every combination of the values above; a knob that is new here needs some."""
    knobs = knobs_of(name)
    assert set(knobs) <= set(KNOBS), f"give example values of {set(knobs) - set(KNOBS)}"
    given = {**KNOBS, **OWN.get(name, {})}
    return [Op.of(name, **dict(zip(knobs, values, strict=True)))
            for values in itertools.product(*(given[knob] for knob in knobs))]


OPS = [op for name in BLOCKS for op in variants(name)]
SLICED = [op for op in OPS if op.get("hidden")]
SHAPES = [(8, 8, 1), (8, 12, 1), (8, 8, 2), (8, 13, 2)]
GROUPED = {"mbconv"}  # whose groups must divide the output channels


def fits(op: Op, out_ch: int) -> bool:
    groups = op.get("groups")
    return op.name not in GROUPED or not isinstance(groups, int) or out_ch % groups == 0


CASES = [(op, *shape) for op in OPS for shape in SHAPES if fits(op, shape[1])]


@pytest.mark.parametrize(("op", "in_ch", "out_ch", "stride"), CASES, ids=str)
def test_shapes_and_gradients(op: Op, in_ch: int, out_ch: int, stride: int) -> None:
    block = build(op, in_ch, out_ch, stride).train()
    x = images(2, in_ch, 9, 9).requires_grad_()
    y = block(x)
    assert tuple(y.shape) == (2, out_ch, -(-9 // stride), -(-9 // stride))
    y.square().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    assert every(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())


@pytest.mark.parametrize("hidden", [4, 8, 24, WIDE])
@pytest.mark.parametrize(("op", "in_ch", "out_ch", "stride"), [case for case in CASES if case[0] in SLICED], ids=str)
def test_a_slice_is_exactly_the_narrower_copy(op: Op, in_ch: int, out_ch: int, stride: int, hidden: int) -> None:
    wide = settled(op, in_ch, out_ch, stride)
    narrow = settled(op.with_knobs(hidden=hidden), in_ch, out_ch, stride, seed=2)
    take_width(wide, narrow)
    x = images(2, in_ch, 9, 9)
    with torch.no_grad():
        assert torch.equal(sliced(wide, hidden, x), narrow(x))
    assert narrow.max_hidden == hidden and wide.max_hidden == WIDE


@pytest.mark.parametrize("op", SLICED, ids=str)
def test_a_copied_width_is_a_copy(op: Op) -> None:
    wide, narrow = settled(op, 8, 8, 2), settled(op.with_knobs(hidden=8), 8, 8, 2)
    before = {name: tensor.clone() for name, tensor in wide.state_dict().items()}
    take_width(wide, narrow)
    with torch.no_grad():
        for tensor in [*narrow.parameters(), *narrow.buffers()]:
            tensor.zero_()
    assert every(torch.equal(tensor, before[name]) for name, tensor in wide.state_dict().items())


@pytest.mark.parametrize("hidden", [4, 8, 24, WIDE])
@pytest.mark.parametrize(("op", "in_ch", "out_ch", "stride"), [case for case in CASES if case[0] in SLICED], ids=str)
def test_what_is_given_back_is_taken_again(op: Op, in_ch: int, out_ch: int, stride: int, hidden: int) -> None:
    """The wide block then has as many new values as the narrow one has, and its other values as they were."""
    wide = settled(op, in_ch, out_ch, stride)
    narrow = settled(op.with_knobs(hidden=hidden), in_ch, out_ch, stride, seed=2)
    again, before = copy.deepcopy(narrow), {name: tensor.clone() for name, tensor in wide.state_dict().items()}
    give_width(wide, narrow)
    with torch.no_grad():
        for tensor in again.parameters():
            tensor.zero_()
    take_width(wide, again)
    assert every(torch.equal(a, b) for a, b in zip(again.parameters(), narrow.parameters(), strict=True))
    changed = sum(int((tensor != before[name]).sum()) for name, tensor in wide.named_parameters())
    assert changed <= sum(p.numel() for p in narrow.parameters())


@pytest.mark.parametrize("op", SLICED, ids=str)
def test_a_slice_trains_only_its_own_weights(op: Op) -> None:
    """At most as many weights get a gradient as the narrower block has (fewer where a ReLU never fires)."""
    wide, narrow = settled(op, 8, 12, 2), build(op.with_knobs(hidden=8), 8, 12, 2)
    (sliced(wide, 8, images(4, 8, 9, 9)) * images(4, 12, 5, 5)).sum().backward()
    for (name, p), q in zip(wide.named_parameters(), narrow.parameters(), strict=True):
        touched = 0 if p.grad is None else int(p.grad.count_nonzero())
        assert touched <= q.numel() and (touched or name.startswith("se.")), name


def test_the_full_width_is_the_block_itself() -> None:
    wide, x = settled(SLICED[0], 8, 8, 1), images(1, 8, 9, 9)
    assert torch.equal(sliced(wide, None, x), wide(x)) and torch.equal(sliced(wide, WIDE, x), wide(x))


def test_a_ghost_slice_is_the_first_intrinsic_maps_and_their_cheap_maps() -> None:
    wide = settled(Op.of("ghost", hidden=WIDE), 8, 8, 1)
    assert isinstance(wide, Ghost)
    slices = wide.slices(8)
    assert slices["expand.primary.conv"] == (((0, 4),), None)
    assert slices["project.primary.conv"] == (None, ((0, 4), (16, 20)))  # cheap maps follow the 16 intrinsic ones


def test_a_residual_adds_the_input() -> None:
    x = images(1, 8, 5, 5)
    for name in ("ghost", "mbconv", "irb", "fused_irb"):
        block = settled(Op.of(name, hidden=8), 8, 8, 1)
        with torch.no_grad():
            for p in block.project.parameters():
                p.zero_()
            for buffer in block.project.buffers():
                buffer.zero_()
            assert torch.equal(block(x), x)


def test_a_smaller_kernel_is_the_centre_of_the_larger() -> None:
    wide = settled(Op.of("mbconv", hidden=8, kernel=5), 8, 8, 1)
    narrow = build(Op.of("mbconv", hidden=8, kernel=3), 8, 8, 1)
    take_width(wide, narrow)
    larger = dict(wide.named_parameters())
    smaller = {name: p for name, p in narrow.named_parameters() if p.shape != larger[name].shape}
    assert every(torch.equal(p, larger[name][:, :, 1:4, 1:4]) for name, p in smaller.items())


@pytest.mark.parametrize("name", ["ghost", "mbconv", "irb", "fused_irb", "bottleneck", "basic", "ran"])
def test_a_residual_block_begins_as_the_identity(name: str) -> None:
    """On maps that the rectifier behind some of them leaves alone."""
    knobs = {knob: 8 if knob == "hidden" else 2 for knob, needed in knobs_of(name).items() if needed}
    x = images(2, 8, 5, 5).abs()
    assert torch.equal(build(Op.of(name, **knobs), 8, 8, 1).train()(x), x)


@pytest.mark.parametrize("op", [op for op in OPS if family(op.name).elastic], ids=str)
def test_elastic_knobs_run_on_a_part_of_the_largest_and_are_exactly_the_copy(op: Op) -> None:
    knobs = {knob: max(value for other in variants(op.name) if isinstance(value := other.get(knob), int))
             for knob in family(op.name).elastic}
    wide, narrow = settled(op.with_knobs(**knobs), 8, 12, 1), settled(op, 8, 12, 1, seed=2)
    take_width(wide, narrow)
    with torch.device("meta"):
        form = build(op, 8, 12, 1).eval()
    x = images(2, 8, 9, 9)
    with torch.no_grad():
        assert torch.equal(sliced(wide, None, x, form), narrow(x))
    weights = {name: tensor for name, tensor in wide.state_dict().items() if tensor.dim() == 4}
    for name, tensor in narrow.state_dict().items():
        if tensor.dim() == 4 and tensor.shape[1:] == weights[name].shape[1:]:
            assert torch.equal(tensor, weights[name])


@pytest.mark.parametrize("op", OPS, ids=str)
def test_macs_and_parameters_are_those_that_fvcore_counts(op: Op) -> None:
    key, block = OpKey(op, 8, 12, 2, 9), deployed(build(op, 8, 12, 2)).eval()
    counted = FlopCountAnalysis(block, torch.zeros(1, 8, 9, 9)).unsupported_ops_warnings(False).by_operator()
    assert macs(key) == counted["conv"]
    assert params(key) == sum(p.numel() for p in block.parameters())


@pytest.mark.parametrize(("op", "in_ch", "out_ch", "stride"),
                         [case for case in CASES if family(case[0].name).deploy is not Block.deploy], ids=str)
def test_what_is_deployed_computes_the_same(op: Op, in_ch: int, out_ch: int, stride: int) -> None:
    block, x = settled(op, in_ch, out_ch, stride), images(2, in_ch, 9, 9)
    with torch.no_grad():
        expected, got = block(x), deployed(nn.Sequential(block)).eval()(x)
        assert torch.allclose(got, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
        assert torch.equal(block(x), expected)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("op", ["rep(point=1, deep=1, cross=1, pool=1)", "rep(point=0)", "ran(expand=6)"])
def test_a_block_of_linear_branches_is_deployed_as_one_convolution(op: str, kernel: int) -> None:
    for in_ch, out_ch, stride in SHAPES:
        key = OpKey(Op.parse(op).with_knobs(kernel=kernel), in_ch, out_ch, stride, 9)
        block = build(key.op, in_ch, out_ch, stride)
        parts = [part for part in deployed(block).modules() if list(part.parameters(recurse=False))]
        assert len(parts) == 1 and isinstance(parts[0], nn.Conv2d) and parts[0].bias is not None
        side = -(-9 // stride)
        assert macs(key) == side**2 * kernel**2 * in_ch * out_ch
        assert params(key) == kernel**2 * in_ch * out_ch + out_ch


def test_a_form_that_is_made_where_one_stands_can_be_priced_without_weights() -> None:
    class Plain(nn.Conv2d):
        """Makes its layer as a user would: with no word of a device."""

    class Two(Block):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 4, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(x)

        def deploy(self) -> nn.Module:
            one = Plain(4, 4, 1, bias=False)
            with torch.no_grad():
                one.weight.copy_(self.a.weight + self.b.weight)
            return one

    with torch.device("meta"):
        form = deployed(nn.Sequential(Two()))
    assert isinstance(form[0], Plain) and form[0].weight.is_meta
    real = nn.Sequential(Two())
    x = images(1, 4, 3, 3)
    assert torch.allclose(deployed(real)(x), real(x), atol=1e-6)


def test_deployed_leaves_alone_what_trains_as_it_is_deployed() -> None:
    network = nn.Sequential(build(Op.of("mbconv", hidden=8), 8, 8, 1), nn.ReLU())
    assert deployed(network) is network
    network.append(build(Op.of("rep"), 8, 8, 1))
    names = set(network.state_dict())
    assert isinstance(deployed(network)[2], nn.Sequential) and set(network.state_dict()) == names


class Nested(Block):
    """Holds a shipped block that is deployed in another form."""

    def __init__(self, in_ch: int, out_ch: int, stride: int) -> None:
        super().__init__()
        self.inner = build(Op.of("rep"), in_ch, out_ch, stride)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.inner(x))


class Fused(Nested):
    """The same with a form of its own, whose children have the names of those that it replaces."""

    def deploy(self) -> nn.Module:
        return nn.Sequential(*self.inner.deploy(), nn.Identity())


def test_blocks_inside_blocks_are_deployed_and_those_of_a_form_of_their_own_are_not(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._FAMILIES, "nested", Nested)
    key = OpKey(Op.of("nested"), 8, 8, 1, 9)
    alone, inside = (deployed(whole) for whole in (Nested(8, 8, 1), nn.Sequential(Nested(8, 8, 1))))
    convolution = 9 * 8 * 8 + 8
    assert params(key) == convolution == sum(p.numel() for p in inside.parameters())
    assert macs(key) == 81 * 9 * 8 * 8 and isinstance(alone, Nested) and not isinstance(alone.inner, Block)
    whole = nn.Sequential(Fused(8, 8, 1))
    assert [type(part) for part in deployed(whole)[0]] == [nn.Conv2d, nn.ReLU, nn.Identity]
    assert isinstance(whole[0].inner, Block)  # the given one stays


@pytest.mark.parametrize(("op", "expected"), [
    ("nope", "unknown operator 'nope'; known: basic, bottleneck, conv, exit_head"),
    ("ghots(hidden=8)", "did you mean 'ghost'"),
    ("ghost", "knob 'hidden' is missing"), ("ghost(hidden=8, sse=1)", "unknown knob 'sse'; did you mean 'se'"),
    ("ghost(hidden=7)", "hidden 7 is no multiple of 2"), ("ghost(hidden=8, ratio=1)", "ratio 1"),
    ("mbconv(hidden=6, groups=2)", "hidden 6 is no multiple of 2x2"), ("bottleneck(hidden=9, groups=2)", "groups 2"),
    ("mbconv(hidden=9, groups=3)", "divisible by groups"), ("g_ghost(depth=0)", "depth"),
    ("g_ghost(depth=3, ratio=100)", "per cent"), ("conv(kernel=2)", "kernel 2"), ("rep(kernel=4)", "kernel 4"),
    ("ran(expand=0)", "0 channels"), ("ghost(hidden=0)", "0 channels"), ("mbconv(hidden=0)", "0 channels"),
    ("mbconv(hidden=-8)", "-8 channels"), ("mbconv(hidden=a)", "hidden=a"), ("mbconv(hidden=8, kernel=4)", "kernel 4"),
    ("exit_head(hidden=-1)", "hidden is a number of channels"),
    ("stem(act=gelu)", "unknown activation 'gelu'; known: relu, relu6, hswish, silu, none"),
    ("mbconv(hidden=16, expand=0)", "hidden 16 without an expansion: it must be the 8 input channels"),
    ("mbconv(hidden=8, se=1, se_step=0)", "multiples of 0"), ("mbconv(hidden=8, se_from=output)", "hidden or input"),
    ("fused_irb(hidden=8, se_from=output)", "hidden or input"), ("basic(hidden=0)", "0 channels"),
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
