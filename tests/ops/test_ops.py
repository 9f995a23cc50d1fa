"""Every operator family: shapes, gradients, and slices that equal the narrower copy exactly."""

from __future__ import annotations

import itertools
from typing import ClassVar

import pytest
import torch
from every import every
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

from nas.arch import Op, Value
from nas.errors import UserError
from nas.ops import build, deployed, families, family, register, registry, sliced, take_width
from nas.ops.g_ghost import complicated
from nas.ops.ghost import Ghost
from nas.ops.layers import shuffled
from nas.ops.registry import Block, knobs_of
from nas.plan import OpKey, macs, params

WIDE = 32
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
