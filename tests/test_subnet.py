"""A network with exits: the same network without them, cut at them."""

from __future__ import annotations

import random
from dataclasses import replace

import torch
from batch_norms import scrambled
from every import every

from nas import sampling
from nas.arch import SKIP, Arch
from nas.plan import Layout, Task, layout, plan, prefixes
from nas.space import Space
from nas.subnet import Subnet, build


def ghost() -> tuple[Layout, Arch]:
    at = layout(Space.load("ghost@0.25"), Task(32, 3, 5), exits=True)
    arch = sampling.sample(at, random.Random(0))
    return at, replace(arch, ops=(SKIP, *arch.ops[1:]), exits=(2, 10))


def test_features_and_logits_are_those_without_exits() -> None:
    at, arch = ghost()
    x = torch.randn(2, 3, 32, 32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = scrambled(build(at, arch))
    plain = build(at, replace(arch, exits=()))
    assert not any(name.startswith("exits") for name in plain.state_dict())
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("exits.")})
    plain.eval()
    with torch.no_grad():
        assert torch.equal(model(x), plain(x)) and torch.equal(model.logits(x)[-1], model(x))
        assert every(map(torch.equal, model.features(x), plain.features(x)))


def test_each_exit_reads_the_map_before_its_stride_change() -> None:
    at, arch = ghost()
    model, x = scrambled(build(at, arch)), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        first, _, third, last = model.features(x)  # sides 32, 16, 8, 4
        expected = [model.exits[0](first), model.exits[1](third), model.head(last)]
        assert every(map(torch.equal, model.logits(x), expected))
    for (trunk, head), prefix in zip(model.stages(), prefixes(model.keys), strict=True):
        x = trunk(x)
        assert x.shape[1] == prefix[-1].in_ch and x.shape[-1] == prefix[-1].size and head(x).shape == (2, 5)


def test_an_exit_right_behind_the_stem_and_none_at_all(tiny_exits: Layout) -> None:
    arch = sampling.smallest(tiny_exits)  # skips in all slots but the one with the stride
    keys = plan(tiny_exits, replace(arch, exits=(1,)))
    model = Subnet(keys)
    assert model.cuts == [0] and len(model.blocks) == 1 and len(model.stages()) == 2
    assert len(Subnet(plan(tiny_exits, arch)).stages()) == 1
