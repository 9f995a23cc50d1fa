"""What training takes, against figures worked out by hand; how well it fits a measured peak: docs/decisions.md."""

import pytest
import torch
from short_training import training
from torch import nn

from nas.decision import largest, one_hot
from nas.errors import UserError
from nas.plan import Layout
from nas.training import memory
from nas.training.data import Data


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_kept_activations_by_hand(device: str) -> None:
    """Input 4x3x16x16, convolution and (in place) ReLU 4x8x16x16 each, and 4 times 8 statistics: 19,488 numbers."""
    layers = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
    net, x = nn.Sequential(*layers).to(device), torch.zeros(4, 3, 16, 16, device=device)
    figure = 4 * (4 * 3 * 256 + 2 * 4 * 8 * 256 + 4 * 8)
    assert memory.saved_bytes(net, [(x,)]) == figure == 77_952
    assert memory.saved_bytes(net, [(x,), (x,)]) == 2 * figure - 4 * (4 * 3 * 256 + 2 * 8)  # input, running statistics


def test_what_is_counted_is_what_a_step_keeps(tiny: Layout, data: Data) -> None:
    run = training(tiny, data)
    decision = one_hot(largest(tiny, run.prices[0]))
    real = memory.saved_bytes(run.supernet, [(torch.zeros(16, 3, 16, 16), decision)])
    assert memory.kept_bytes(tiny, [decision], 16) == pytest.approx(real, rel=0.01)


def test_weights_and_parts_by_hand(tiny: Layout, data: Data) -> None:
    run = training(tiny, data)
    count, need = sum(p.numel() for p in run.supernet.parameters()), memory.estimate(run)
    assert need.weights == 16 * count and need.total == need.weights + need.kept
    assert memory.estimate(training(tiny, data, ema=0.9)).weights == 20 * count
    assert memory.estimate(training(tiny, data, accumulate=2)).kept == pytest.approx(need.kept / 2, rel=0.02)
    assert memory.estimate(training(tiny, data, amp="bf16")).kept == need.kept // 2
    assert memory.estimate(training(tiny, data, relaxation="gumbel")).kept >= need.kept


def test_too_little_memory_is_one_line(tiny: Layout, data: Data,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    run = training(tiny, data)
    total = memory.estimate(run).total
    monkeypatch.setattr(memory, "_free", lambda device: total)
    assert f"activations of 16 images; {total / 1e9:.2g} GB are free" in memory.check_memory(run)
    monkeypatch.setattr(memory, "_free", lambda device: total - 1)
    with pytest.raises(UserError, match=r"train\.batch=16: .* free; give a larger train\.accumulate \(now 1\)"):
        memory.check_memory(run)
    monkeypatch.setattr(memory, "_free", lambda device: None)
    assert "free" not in memory.check_memory(run)
    monkeypatch.setattr(memory, "_free", lambda device: 2 * total - 1)
    monkeypatch.setattr(memory.torchrun, "processes_here", lambda: 2)
    with pytest.raises(UserError, match="in each of 2 processes"):
        memory.check_memory(run)
