"""Zero Time Waste: the ensemble and the cascade by hand, and what stays frozen."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from every import every
from three_exits import images, network

from nas.exits.ztw import Cascade, ZeroTimeWaste

LABELS = torch.arange(8) % 4


def test_the_ensemble_by_hand() -> None:
    combine = Cascade(exits=3, classes=2)
    with torch.no_grad():
        combine.weights[1].copy_(torch.tensor([1.0, 2.0]).log())
        combine.biases[1].copy_(torch.tensor([0.1, 0.0]))
    log_p = torch.tensor([[0.25, 0.75, 0.5, 0.5]]).log()
    # (1 log p_1 + 2 log p_2) / 2 + b
    expected = (log_p[:, :2] + 2 * log_p[:, 2:]) / 2 + torch.tensor([0.1, 0.0])
    assert torch.allclose(combine.ensemble(1, log_p), expected)


def test_an_exit_sees_the_normalised_logits_below_and_does_not_change_them() -> None:
    combine = Cascade(exits=4, classes=3)
    z = [torch.randn(5, 3, requires_grad=True) for _ in range(2)]
    _, state = combine(0, z[0], None)
    assert state is not None and torch.allclose(state, z[0].log_softmax(1))
    second = combine.cascaded(1, z[1], state)
    below = F.layer_norm(z[0], (3,)) @ combine.carry[0].weight.T
    assert torch.allclose(second, (z[1] + below).log_softmax(1), atol=1e-6)
    assert torch.autograd.grad(second[:, 0].sum(), z[0], allow_unused=True)[0] is None
    assert combine(3, z[1], None)[0] is z[1]  # the head speaks for itself
    assert [combine.width(index, 3) for index in range(4)] == [0, 3, 6, 0]


def test_the_network_is_frozen_and_the_phases_train_heads_then_the_ensemble() -> None:
    method = ZeroTimeWaste(network(), ensemble=0.25).train()
    inner: Any = method.net.net
    before = {k: v.clone() for k, v in inner.state_dict().items() if not k.startswith("exits.")}

    def touched(progress: float) -> set[str]:
        """Parts of the network and of the ensemble that get a gradient."""
        method.zero_grad()
        method.loss(images(8), LABELS, progress).backward()
        return {name.split(".")[2] for name, p in method.named_parameters()
                if p.grad is not None}

    assert touched(0.7) == {"exits", "carry", "norms"}
    assert touched(0.75) == {"weights", "biases"}
    after = inner.state_dict()
    assert every(torch.equal(after[name], tensor) for name, tensor in before.items())
