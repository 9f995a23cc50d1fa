"""QuickNets: what each block learns from, what stays as it is, and how commitment layers veto."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from every import every
from three_exits import images, network

from nas.exits.cascade import Commitment, QuickNets

LABELS = torch.arange(8) % 4


def test_a_commitment_scales_the_logits_and_keeps_the_class() -> None:
    combine, z = Commitment(3, 4, 5), torch.randn(6, 4)
    with torch.no_grad():
        combine.layers[0][2].weight.zero_()
        combine.layers[0][2].bias.fill_(torch.tensor(0.25).logit())
    prediction, state = combine(0, z, None)
    assert state is None and torch.allclose(prediction, 0.25 * z) and combine.width(1, 4) == 0
    assert combine(2, z, None)[0] is z  # the head speaks for itself
    with torch.no_grad():
        combine.layers[0][2].bias.fill_(-30)  # not committed: whatever the logits, it is as unsure as can be
    assert combine(0, z, None)[0].softmax(1).amax(1).tolist() == pytest.approx([0.25] * 6)
    kept = combine.kept([1])
    assert len(kept.layers) == 1 and torch.equal(kept(0, z, None)[0], combine(1, z, None)[0])
    assert kept(1, z, None)[0] is z


def test_a_block_learns_on_what_the_exits_below_get_wrong() -> None:
    method, x = QuickNets(network()).train(), images(8)
    stages = method.net.net.stages()
    right = stages[0][1].eval()(stages[0][0].eval()(x)).argmax(1)
    labels = torch.where(torch.arange(8) < 5, right, (right + 1) % 4)  # the first exit has five of eight
    method.train()
    loss = method.loss(x, labels, 0.4)  # the second of three blocks
    own = method.eval()
    for trunk, head in stages[1:2]:
        trunk.train()
        head.train()
    with torch.no_grad():
        below = stages[0][0](x)
    logits = stages[1][1](stages[1][0](below))
    committed = own.commitment.raw(1, logits)[:, 0]
    expected = (F.cross_entropy(logits[5:], labels[5:])
                + F.binary_cross_entropy_with_logits(committed, (logits.argmax(1) == labels).float()))
    assert torch.allclose(loss, expected, atol=1e-5)
    everything = QuickNets(network()).train()
    assert everything.loss(x, right, 0.9).isfinite()  # nothing is left for the last block


def test_only_the_block_whose_turn_it_is_learns() -> None:
    method = QuickNets(network())

    def touched(progress: float) -> tuple[set[int], set[int]]:
        """Blocks with their exits, and commitment layers, that get a gradient."""
        method.train().zero_grad()
        method.loss(images(8), LABELS, progress).backward()
        blocks = {index for index, stage in enumerate(method.net.net.stages())
                  for part in stage for p in part.parameters() if p.grad is not None}
        layers = {index for index, layer in enumerate(method.commitment.layers)
                  for p in layer.parameters() if p.grad is not None}
        return blocks, layers

    before = {name: value.clone() for name, value in method.net.net.stages()[0][0].state_dict().items()}
    assert [touched(progress) for progress in (0.34, 0.67, 0.99)] == [({1}, {1}), ({2}, set()), ({2}, set())]
    after = method.net.net.stages()[0][0].state_dict()
    assert every(torch.equal(before[name], after[name]) for name in before)  # its batch norms stay, too
    assert touched(0.0) == ({0}, {0})
    assert method.phases() == 3 and [round(method.cycle(p), 6) for p in (0.0, 0.3, 1 / 3, 0.5)] == [0, 0.9, 0, 0.5]
