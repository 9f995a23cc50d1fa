"""Learned weights of images: their mean, who is charged for what, and where the meta gradient goes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from every import every
from three_exits import images, network

from nas.exits.methods import Joint
from nas.exits.weighted import Weighted

LABELS = torch.arange(8) % 4


def test_weights_are_one_on_average_over_the_exits_of_an_image() -> None:
    method = Weighted(network(), strength=0.5)
    w = method.weights(torch.rand(8, 3))
    assert torch.allclose(w.mean(1), torch.ones(8)) and (w - 1).abs().max() > 1e-3
    raw = method.weigher(torch.ones(1, 3))
    assert torch.allclose(method.weights(torch.ones(1, 3)), 1 + 0.5 * (raw - raw.mean()))


def test_the_meta_loss_by_hand() -> None:
    """r = 1 and six images: two a exit. Sureness at the first exit falls from image 0 on, at the second it rises."""
    method = Weighted(network(), r=1.0)
    first, second = torch.zeros(6, 4), torch.zeros(6, 4)
    first[:, 0], second[:, 0] = torch.arange(6.0, 0, -1), torch.arange(1.0, 7)
    labels = torch.zeros(6, dtype=torch.long)

    def cost(z: float) -> float:
        return math.log(math.exp(z) + 3) - z

    # 0 and 1 leave first (6, 5), then 5 and 4 (6, 5); 2 and 3 are left to the head, which knows nothing
    expected = 2 * (cost(6) + cost(5)) / 2 + math.log(4)
    assert method.meta_loss([first, second, torch.zeros(6, 4)], labels).item() == pytest.approx(expected)


def test_the_network_learns_from_the_weighted_loss_and_the_weigher_from_the_meta_loss() -> None:
    torch.manual_seed(0)
    method, x = Weighted(network(), inner_lr=0.5), images(8)
    method.loss(x, LABELS, 0.0).backward()
    twin = Weighted(network(), interval=1)
    twin.weigher.load_state_dict(method.weigher.state_dict())
    losses = torch.stack([F.cross_entropy(z, LABELS, reduction="none") for z in twin(x)], 1)
    (twin.weights(losses.detach()).detach() * losses).mean(0).sum().backward()
    for p, q in zip(method.net.parameters(), twin.net.parameters(), strict=True):
        assert p.grad is not None and torch.allclose(p.grad, q.grad, atol=1e-7)


def test_the_meta_gradient_is_that_of_a_step_as_differences_say() -> None:
    torch.manual_seed(0)
    method, x = Weighted(network(), inner_lr=0.5).double(), images(8).double()
    bias = method.weigher[2].bias

    def after() -> float:
        """The meta loss after a step on one half, the mean of both ways."""
        both = []
        for a, b in ((slice(4), slice(4, 8)), (slice(4, 8), slice(4))):
            stepped = method._step(dict(method.net.named_parameters()), x[a], LABELS[a])[1]
            both.append(method.meta_loss(method._run(stepped, x[b]), LABELS[b]).item())
        return sum(both) / 2

    method.loss(x, LABELS, 0.0).backward()
    values = []
    for move in (1e-4, -2e-4):
        with torch.no_grad():
            bias[0] += move
        values.append(after())
    assert bias.grad is not None and bias.grad[0].item() != 0
    assert (values[0] - values[1]) / 2e-4 == pytest.approx(bias.grad[0].item(), rel=1e-4)


def test_without_strength_it_is_joint_and_the_meta_step_is_every_interval() -> None:
    x = images(8)
    plain = Weighted(network(), strength=0.0, interval=2)
    assert torch.allclose(plain.loss(x, LABELS, 0.0), Joint(network()).loss(x, LABELS, 0.0))
    method = Weighted(network(), interval=2)
    reached = []
    for _ in range(3):
        method.zero_grad()
        method.loss(x, LABELS, 0.0).backward()
        reached.append(method.weigher[0].weight.grad is not None)
    assert reached == [True, False, True] and int(method.calls) == 3


def test_batch_norm_statistics_see_each_batch_once() -> None:
    method, joint, x = Weighted(network()).train(), Joint(network()).train(), images(8)
    method.loss(x, LABELS, 0.0)
    joint.loss(x, LABELS, 0.0)
    assert every(torch.equal(a, b) for a, b in zip(method.net.buffers(), joint.net.buffers(), strict=True))
