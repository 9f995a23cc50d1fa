"""Exit training: predictions, losses and gradients by hand, and what every method has in common."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from every import every
from three_exits import images, network, three
from torch import Tensor, nn

from nas.errors import UserError
from nas.exits.methods import Boost, Distill, Joint, Method, method, methods, register, settings
from nas.exits.net import Additive, MultiExit
from nas.plan import plan
from nas.subnet import Subnet

LABELS = torch.tensor([0, 1, 2, 3, 1, 2])


class Scalars(nn.Module):
    """Three stages of one weight each: trunk i is x -> a_i x, head i is x -> (h_i x, 0)."""

    class Trunk(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(factor))

        def forward(self, x: Tensor) -> Tensor:
            return self.factor * x

    class Head(Trunk):
        def forward(self, x: Tensor) -> Tensor:
            return F.pad(super().forward(x), (0, 1))

    def __init__(self) -> None:
        super().__init__()
        self.trunks = nn.ModuleList(Scalars.Trunk(f) for f in (2.0, 0.5, 3.0))
        self.heads = nn.ModuleList(Scalars.Head(f) for f in (1.0, -1.0, 0.5))
        self.exits = self.heads[:-1]

    def stages(self) -> list[tuple[nn.Module, nn.Module]]:
        return list(zip(self.trunks, self.heads, strict=True))

    def logits(self, x: Tensor) -> list[Tensor]:
        return Subnet.logits(self, x)


def test_boosted_predictions_by_hand() -> None:
    # f = 1, 2, 4 and t = 0.5: F_1 = 1, F_2 = 2 + 0.5, F_3 = 4 + 0.5 * 2.5 = sum of t^(n - m) f_m
    combine, state, found = Additive(0.5), None, []
    for index, f in enumerate((1.0, 2.0, 4.0)):
        prediction, state = combine(index, torch.tensor([[f]]), state)
        found.append(float(prediction))
    assert found == [1.0, 2.5, 5.25] and found[2] == 0.25 * 1 + 0.5 * 2 + 4


def test_boost_by_hand() -> None:
    """x = 1: f = 2, -1, 1.5 in the first class, 0 in the second; F = 2, 0, 1.5."""
    boost = Boost(Scalars(), t=0.5)
    x = torch.ones(1, 1)
    assert [z[0, 0].item() for z in boost(x)] == [2.0, 0.0, 1.5]
    loss = boost.loss(x, torch.tensor([0]), 0.0)
    assert loss.item() == pytest.approx(sum(math.log1p(math.exp(-F)) for F in (2.0, 0.0, 1.5)))
    loss.backward()
    # d CE / d F_n = sigmoid(F_n) - 1, which reaches f_n alone; a head's weight gets its map (2, 1, 3) as ever
    g = [1 / (1 + math.exp(-F)) - 1 for F in (2.0, 0.0, 1.5)]
    net: Any = boost.net.net
    assert [float(head.factor.grad) for head in net.heads] == pytest.approx([2 * g[0], 1 * g[1], 3 * g[2]])
    # d f_n / d a_i: f = 1 * a0, -1 * a0 a1, 0.5 * a0 a1 a2, each mean over the heads that are left: 1/3, 1/2, 1
    into = [(g[0] * 1 + g[1] * -0.5 + g[2] * 0.5 * 1.5) / 3, (g[1] * -2 + g[2] * 0.5 * 6) / 2, g[2] * 0.5]
    assert [float(trunk.factor.grad) for trunk in net.trunks] == pytest.approx(into, abs=1e-6)


def test_gradients_of_a_network_are_means_over_the_heads_that_are_left() -> None:
    boost, net = Boost(network()), network()
    x = images(6)
    boost.loss(x, LABELS, 0.0).backward()
    losses, below = [], None
    for f in net.logits(x):
        total = f if below is None else f + 0.5 * below.detach()
        losses.append(F.cross_entropy(total, LABELS))
        below = total
    each = [torch.autograd.grad(loss, list(net.parameters()), retain_graph=True, allow_unused=True) for loss in losses]
    order = [id(p) for p in net.parameters()]
    inner: Any = boost.net.net
    twin = {id(p): q for p, q in zip(net.parameters(), inner.parameters(), strict=True)}
    for i, ((trunk, head), left) in enumerate(zip(net.stages(), (3, 2, 1), strict=True)):
        for part, share in ((trunk, 1 / left), (head, 1.0)):
            for p in part.parameters():
                grads = [g[order.index(id(p))] for g in each]
                expected = share * torch.stack([g for g in grads if g is not None]).sum(0)
                assert sum(g is not None for g in grads) == (left if part is trunk else 1), i
                assert torch.allclose(twin[id(p)].grad, expected, rtol=1e-4, atol=1e-7), i


def test_joint_is_the_weighted_sum() -> None:
    net, x = network(), images(6)
    each = [F.cross_entropy(z, LABELS) for z in net.logits(x)]
    assert torch.allclose(Joint(net).loss(x, LABELS, 0.0), each[0] + each[1] + each[2])
    weighted = Joint(net, weights=[0.5, 0, 2]).loss(x, LABELS, 0.0)
    assert torch.allclose(weighted, 0.5 * each[0] + 2 * each[2])


def test_distillation_by_hand() -> None:
    net, x = network(), images(6)
    teach = Distill(net, alpha=0.25, temperature=2.0, hint=0.1)
    embedded, logits, maps = [], [], x
    for trunk, head in net.stages():
        maps = trunk(maps)
        embedded.append(head.embed(maps))
        logits.append(head(maps))
    expected = F.cross_entropy(logits[2], LABELS)
    for i in (0, 1):
        p, q = (logits[2] / 2).softmax(1), (logits[i] / 2).softmax(1)
        divergence = (p * (p / q).log()).sum(1).mean()
        distance = (teach.adapters[i](embedded[i]) - embedded[2]).square().sum(1).sqrt().mean()
        expected = expected + 0.75 * F.cross_entropy(logits[i], LABELS) + 0.25 * divergence + 0.1 * distance
    assert torch.allclose(teach.loss(x, LABELS, 0.0), expected)


def test_the_teacher_is_not_taught() -> None:
    """Without labels for the exits the last stage learns as if it were alone."""
    net, alone, x = network(), network(), images(6)
    Distill(net, alpha=1.0, hint=1.0).loss(x, LABELS, 0.0).backward()
    F.cross_entropy(alone(x), LABELS).backward()
    for p, q in zip(net.stages()[-1][0].parameters(), alone.stages()[-1][0].parameters(), strict=True):
        assert p.grad is not None and torch.allclose(p.grad, q.grad, atol=1e-7)
    assert every(p.grad is not None for p in net.exits.parameters())


def test_exits_learn_what_the_network_says_and_nothing_of_labels() -> None:
    cache, x = method("cache", network(), temperature=2.0).train(), images(6)
    with torch.no_grad():
        z = network().logits(x)  # the backbone of a frozen method is in eval mode; its heads have no batch norm here
        p = (z[2] / 2).softmax(1)
    cache.eval()
    expected = sum(4 * (p * (p / (z[i] / 2).softmax(1)).log()).sum(1).mean() for i in (0, 1))
    assert torch.allclose(cache.loss(x, LABELS, 0.0), torch.as_tensor(expected), atol=1e-5)
    assert torch.equal(cache.loss(x, LABELS, 0.0), cache.loss(x, LABELS * 0, 0.0))
    cache.loss(x, LABELS, 0.0).backward()
    learned = {name.split(".")[2] for name, p in cache.named_parameters() if p.grad is not None}
    assert learned == {"exits"}


@pytest.mark.parametrize("name", methods())
def test_every_method_predicts_as_its_segments_do_and_has_a_loss(name: str) -> None:
    trained, x = method(name, network(), label_smoothing=0.1).eval(), images(3)
    with torch.no_grad():
        expected, found, state, maps = trained(x), [], None, x
        for segment in trained.net.segments():
            prediction, *handed = segment(maps, state)
            found.append(prediction)
            maps, state = [*handed, None][:2] if handed else (maps, None)
            if state is not None:
                assert state.shape == (3, trained.net.combine.width(segment.index + 1, 4))
        assert every(map(torch.equal, found, expected)) and [tuple(z.shape) for z in found] == [(3, 4)] * 3
    for progress in (0.0, 0.5, 0.99):
        trained.zero_grad()
        loss = trained.train().loss(images(6), LABELS, progress)
        assert loss.isfinite() and loss.dim() == 0
        loss.backward()
        grads = [p.grad for p in trained.parameters() if p.grad is not None]
        assert every(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("name", methods())
def test_settings_are_the_papers(name: str) -> None:
    papers: dict[str, dict[str, Any]] = {"boost": {"t": 0.5, "rescale": True}, "joint": {"weights": None},
              "distill": {"alpha": 0.3, "temperature": 3.0, "hint": 0.03}, "ztw": {"ensemble": 0.2},
              "cascade": {"hidden": 16}, "cache": {"temperature": 2.0},
              "weighted": {"strength": 0.8, "interval": 1, "r": 0.75, "hidden": 500, "inner_lr": 0.1}}
    assert settings(name) == {**papers[name], "label_smoothing": 0.0}


@pytest.mark.parametrize(("name", "values", "expected"), [
    ("bost", {}, "unknown training 'bost'; did you mean 'boost'"), ("boost", {"tt": 1}, "unknown setting 'tt'"),
    ("boost", {"t": 2.0}, "boost: t 2: a factor from 0 to 1"), ("joint", {"weights": [1.0]}, "3 are needed"),
    ("distill", {"alpha": 2.0}, "alpha is a share"), ("ztw", {"ensemble": 1.0}, "ensemble 1: a share"),
    ("weighted", {"interval": 0}, "interval and hidden from 1"), ("cascade", {"hidden": 0}, "hidden is from 1"),
    ("cache", {"temperature": 0.0}, "temperature is above 0"),
])
def test_what_cannot_be_trained(name: str, values: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        method(name, network(), **values)


def test_a_network_without_exits_and_a_name_that_is_taken() -> None:
    at, arch = three()
    keys = [key for key in plan(at, arch) if not key.is_exit]
    with pytest.raises(UserError, match="the network has no exits to train"):
        method("joint", Subnet(keys))
    with pytest.raises(ValueError, match="'joint' is registered already"):
        register("joint")(Method)


def test_plain_predictions_are_the_logits() -> None:
    net, x = network(), images(2)
    assert every(map(torch.equal, MultiExit(net)(x), net.logits(x)))
