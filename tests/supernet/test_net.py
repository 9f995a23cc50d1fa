"""Weight sharing is exact, nothing without a weight is computed, pruning frees memory."""

import random

import pytest
import torch
from every import every
from torch import nn

from nas import sampling
from nas.arch import SKIP, Op
from nas.decision import Choice, Decision, one_hot
from nas.plan import Layout, Task, layout
from nas.space import Space
from nas.supernet.net import Supernet


def shaken(net: Supernet) -> Supernet:
    """Random batch norms, so that a wrong slice of them shows."""
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.running_mean, -1.0), (module.running_var, 0.5), (module.weight.data, -1.0)):
                tensor.uniform_(low, 2.0, generator=generator)
    return net.eval()


@pytest.mark.parametrize("name", ["ghost@0.5", "mbconv@0.5"])
def test_an_inherited_network_equals_the_supernet_exactly(name: str) -> None:
    plan = layout(Space.load(name), Task(32, 3, 5))
    net, rng, x = shaken(Supernet(plan)), random.Random(1), torch.randn(2, 3, 32, 32)
    for _ in range(4):
        arch = sampling.sample(plan, rng)
        with torch.no_grad():
            assert torch.equal(net(x, one_hot(arch)), net.inherit(arch).eval()(x))


@pytest.mark.parametrize("name", ["ghost@0.5", "mbconv@0.5"])
def test_what_a_network_has_learned_alone_is_inherited(name: str) -> None:
    """It is inherited by that network itself, and in part by others: all have its stem and head."""
    plan = layout(Space.load(name), Task(32, 3, 5))
    net, rng, x = shaken(Supernet(plan)), random.Random(1), torch.randn(2, 3, 32, 32)
    arch, other = sampling.sample(plan, rng), sampling.sample(plan, rng)
    alone, before = net.inherit(arch).eval(), net.inherit(other)
    with torch.no_grad():
        for parameter in alone.parameters():
            parameter.mul_(0.9)
        net.take_back(arch, alone)
        assert torch.equal(net(x, one_hot(arch)), alone(x)) and torch.equal(net.inherit(arch).eval()(x), alone(x))
    after = net.inherit(other)
    assert every(torch.equal(a, b) for a, b in zip(after.stem.parameters(), alone.stem.parameters(), strict=True))
    kept = [torch.equal(a, b) for a, b in zip(after.parameters(), before.parameters(), strict=True)]
    assert any(kept) and not all(kept)


def test_soft_weights_mix_the_outputs_of_the_choices(tiny: Layout) -> None:
    net, x = shaken(Supernet(tiny)), torch.randn(2, 3, 16, 16)
    arch = sampling.sample(tiny, random.Random(0))
    branch = tiny.slots[0].branches[0].op
    with torch.no_grad():
        before = net.stem(x)
        small, large = (net.slots[0](before, (Choice(branch, width),)) for width in (8, 24))
        mixed = net.slots[0](before, (Choice(branch, 8, torch.tensor(0.25)), Choice(branch, 24, torch.tensor(0.75))))
    assert torch.allclose(mixed, 0.25 * small + 0.75 * large, atol=1e-6)
    assert not torch.allclose(small, large)
    assert len(one_hot(arch).slots) == len(tiny.slots)


def test_what_has_no_weight_gets_no_gradient(tiny: Layout) -> None:
    net = Supernet(tiny)
    arch = sampling.decode(tiny, [0] * len(tiny.slots))
    net(torch.randn(2, 3, 16, 16), one_hot(arch)).sum().backward()
    for name, parameter in net.named_parameters():
        inside = name.startswith(("stem", "head")) or (".shared.m0." in name and ".se." not in name)
        assert (parameter.grad is not None) == inside, name  # m0: the ghosts; without squeeze-excite here


def test_training_leaves_no_running_statistics_behind(tiny: Layout) -> None:
    net = Supernet(tiny).train()
    net(torch.randn(4, 3, 16, 16), one_hot(sampling.sample(tiny, random.Random(0))))
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and not any(m.running_mean.any() for m in norms if m.running_mean is not None)


def test_pruning_frees_weights_and_refuses_what_is_gone(tiny: Layout) -> None:
    net = Supernet(tiny)
    before = sum(p.numel() for p in net.parameters())
    keep = [[op for op in slot.ops if op.name != "mbconv"] for slot in tiny.slots]
    net.keep(keep)
    assert sum(p.numel() for p in net.parameters()) < before
    assert every(op.name != "mbconv" for slot in net.layout.slots for op in slot.ops)
    gone = Decision((((Choice(Op.of("mbconv", kernel=3, se=0), 8)),),) * len(tiny.slots))
    with pytest.raises(LookupError, match="mbconv"):
        net(torch.randn(1, 3, 16, 16), gone)


def test_a_pruned_layer_is_the_identity(tiny: Layout) -> None:
    net = Supernet(tiny)
    net.keep([[SKIP] if SKIP in slot.ops else list(slot.ops) for slot in tiny.slots])
    x = torch.randn(1, 8, 16, 16)
    assert net.slots[0](x, (Choice(SKIP, None),)) is x and not list(net.slots[0].parameters())


def test_parameters_do_not_grow_with_the_number_of_widths(tiny_space: Space) -> None:
    def count(step: int) -> tuple[int, int]:
        value = tiny_space.model_dump(exclude={"file"})
        for knobs in value["ops"].values():
            knobs["hidden"] = {"min": 1.0, "max": 4.0, "step": step}
        plan = layout(Space.parse(value), Task(16, 3, 4))
        return sum(len(s.ops) for s in plan.slots), sum(p.numel() for p in Supernet(plan).parameters())

    few, many = count(8), count(2)
    assert many[0] > 3 * few[0] and many[1] == few[1]
