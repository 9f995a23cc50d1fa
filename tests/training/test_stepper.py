"""Steps in micro-batches and in half precision: what they must equal, and what must stay as it is."""

import copy
import random
from typing import Any

import pytest
import torch
from every import every
from short_training import CPU, training
from test_supernet_training import OPTIONS, weights
from torch import Tensor, nn

from nas.config.search import resolve, spread
from nas.errors import UserError
from nas.plan import Layout
from nas.training import optimization, randomness
from nas.training.data import Data
from nas.training.ranks import Ranks
from nas.training.stepper import Stepper, half, if_finite, micro

BATCH = (torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4)


class Probe:
    """A network without batch norm, and its loss; ``batches`` it was asked for."""

    def __init__(self) -> None:
        with randomness.seeded("probe"):
            self.net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4))
        self.batches = list[list[int]]()

    def loss_of(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        self.batches.append(labels.tolist())
        loss = nn.functional.cross_entropy(self.net(images), labels)
        return loss, {"loss": loss}


@pytest.mark.parametrize("accumulate", [2, 4])
def test_micro_batches_equal_the_whole_batch(accumulate: int) -> None:
    whole, parts = Probe(), Probe()
    figures = []
    for probe, k in ((whole, 1), (parts, accumulate)):
        stepper, optimizer = Stepper(CPU, k), optimization.optimizer(probe.net, 0.01, 0.01)
        figures.append([stepper.step(probe.loss_of, BATCH, probe.net, optimizer)["loss"] for _ in range(3)])
    assert figures[0] == pytest.approx(figures[1], rel=1e-5)
    for a, b in zip(whole.net.parameters(), parts.net.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert [len(labels) for labels in parts.batches] == [8 // accumulate] * 3 * accumulate


def test_a_micro_batch_has_as_much_of_two_batches_in_one_piece() -> None:
    labels = torch.tensor([0, 1, 2, 3, 10, 11, 12, 13])  # a batch of the gate split, one of the train split
    assert [micro((BATCH[0], labels), i, 2)[1].tolist() for i in range(2)] == [[0, 2, 10, 12], [1, 3, 11, 13]]
    # in two processes: of its own images, every second is the first's first micro-batch of four
    share = Ranks(1, 2).share
    assert micro((BATCH[0][share], labels[share]), 0, 2)[1].tolist() == micro((BATCH[0], labels), 1, 4)[1].tolist()


def test_gradients_of_gates_add_up_and_weights_stay(tiny: Layout, data: Data) -> None:
    """Without batch norm a part of the mean is the mean of the parts; graphs of the gates serve all parts."""
    probe, gate = Probe(), nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
    for k in (1, 2, 4):
        scale = torch.exp(gate).float()  # one graph, as that of the projection

        def loss_of(images: Tensor, labels: Tensor, scale: Tensor = scale) -> tuple[Tensor, dict[str, Tensor]]:
            return nn.functional.cross_entropy(probe.net(images) * scale, labels), {}

        finite, _ = Stepper(CPU, k).gradients(loss_of, BATCH, [gate])
        assert finite and gate.grad is not None and gate.grad.dtype == torch.float64
        if k == 1:
            expected = float(gate.grad)
        assert float(gate.grad) == pytest.approx(expected, rel=1e-5) and expected != 0
    assert every(p.grad is None for p in probe.net.parameters())


@pytest.mark.parametrize("options", ["default", "all"])
def test_a_supernet_trains_in_micro_batches(tiny: Layout, data: Data, options: str) -> None:
    whole, parts = (training(tiny, data, accumulate=k, **OPTIONS[options]) for k in (1, 2))
    while not parts.finished:
        records = whole.epoch(), parts.epoch()
        known = [{name for name, value in vars(record).items() if value is not None} for record in records]
        assert known[0] == known[1]
    assert not torch.equal(whole.gates.theta, parts.gates.theta)  # batch statistics are those of the parts
    assert (records[1].loss_largest or 9) < 1.5


def test_batches_that_make_no_equal_parts_are_refused(tiny: Layout, data: Data) -> None:
    for text in ("train={batch: 32, accumulate: 3}", "train={batch: 4, accumulate: 4}"):
        with pytest.raises(UserError, match="equal parts of at least 2"):
            resolve(None, [text], {"target": ["cpu"]})
    with pytest.raises(UserError, match=r"train\.accumulate=16: the gate split has 16 images"):
        training(tiny, data, accumulate=16)


def test_processes_and_micro_batches() -> None:
    default = resolve(None, [], {"target": ["cpu"]})
    assert spread(default, 1) == default
    four = resolve(None, ["train.accumulate=4"], {"target": ["cpu"]})
    assert spread(default, 4) == four and spread(four, 2) == four and spread(four, 4) == four
    for settings, count in ((four, 3), (default, 3), (default, 32)):
        with pytest.raises(UserError, match=f"{count} processes cannot share train.batch=32"):
            spread(settings, count)


def test_half_precision_is_for_a_gpu_unless_asked_for() -> None:
    assert half("auto", CPU) is None and half("none", torch.device("cuda")) is None
    assert half("bf16", CPU) == torch.bfloat16 and half("fp16", CPU) == torch.float16


def test_the_norm_of_the_gradients_is_logged_as_it_was_before_clipping() -> None:
    net = nn.Linear(2, 1, bias=False)

    def loss_of(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return net(images).sum(), {}

    batch = torch.tensor([[30.0, 40.0]]), torch.tensor([0])  # the gradient: 50 long, clipped to 5
    figures = Stepper(CPU).step(loss_of, batch, net, torch.optim.SGD(net.parameters(), 0.0))
    assert figures == {"grad_norm": pytest.approx(50)} and net.weight.grad is not None
    assert float(net.weight.grad.norm()) == pytest.approx(5)
    assert if_finite("norm", float("inf")) == {} == if_finite("norm", float("nan"))


@pytest.mark.parametrize("update", ["bilevel", "single"])
def test_bf16_leaves_gates_and_weights_what_they_are(tiny: Layout, data: Data, update: str) -> None:
    run = training(tiny, data, amp="bf16", update=update)
    types = set[torch.dtype]()
    run.supernet.stem.register_forward_hook(lambda module, inputs, output: types.add(output.dtype))
    for _ in range(2):
        record = run.epoch()
    assert types == {torch.bfloat16} and record.budget_residual is not None
    assert record.budget_residual < 1e-3
    assert {p.dtype for p in run.gates.parameters()} == {torch.float64} == {run.gates.at(0.0).ms.dtype}
    assert {p.dtype for p in run.supernet.parameters()} == {torch.float32}
    assert every(bool(tensor.isfinite().all()) for tensor in weights(run).values())
    assert bool(run.gates.theta.any()) and (record.gate_loss or 9) < 3


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_gates_learn_the_same_from_half_precision(tiny: Layout, data: Data, amp: str) -> None:
    gradients = []
    for kind in ("none", amp):
        run = training(tiny, data, amp=kind, relaxation="gumbel")
        run.epoch()
        run.supernet.load_state_dict(training(tiny, data).supernet.state_dict())
        for norm in (m for m in run.supernet.modules() if isinstance(m, nn.BatchNorm2d)):
            nn.init.ones_(norm.weight)  # branches begin as nothing otherwise
        run._gate_step(0.5, BATCHED, random.Random(0), torch.Generator().manual_seed(0))
        gradients.append(copy.deepcopy(run.gates.theta.grad).flatten())
    assert gradients[1].dtype == torch.float64
    assert float(torch.cosine_similarity(*gradients, dim=0)) > 0.99
    assert float(gradients[1].norm() / gradients[0].norm()) == pytest.approx(1, abs=0.1)


BATCHED = (torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 4)


def test_fp16_skips_steps_that_overflow() -> None:
    """A gradient of 10 times 2^16, 2^15, 2^14, 2^13 is above 65504, the largest float16; at 2^12 it is not."""
    model = nn.Linear(1, 1)
    stepper, optimizer = Stepper(CPU, 1, "fp16"), optimization.optimizer(model, 0.1, 0.0)
    before, gate = model.weight.item(), nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def loss_of(x: Tensor, _: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return 10 * stepper.logits(model, x * gate.float()).sum(), {}

    batch, moved = (torch.ones(1, 1), torch.zeros(1)), list[bool]()
    for _ in range(5):
        stepper.step(loss_of, batch, model, optimizer, [gate])
        moved.append(model.weight.item() != before)
        assert (gate.grad is not None) == moved[-1]  # its gradient overflows, too
        gate.grad = None
    assert moved == [False] * 4 + [True] and stepper.scaler.get_scale() == 2**12
    again = Stepper(CPU, 1, "fp16")
    again.load_state_dict(stepper.state_dict())
    assert again.scaler.get_scale() == 2**12 and Stepper(CPU).state_dict() == {}
    finite, _ = stepper.gradients(loss_of, batch, [gate])
    assert finite and float(gate.grad) == pytest.approx(10 * model.weight.item(), rel=1e-2)


def continued(first: Any, second: Any) -> None:
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for run in (first, second):
        run.epoch()
    assert every(torch.equal(tensor, weights(second)[name]) for name, tensor in weights(first).items())


@pytest.mark.parametrize("amp", ["none", "bf16", "fp16"])
def test_a_continued_training_is_bit_equal(tiny: Layout, data: Data, amp: str) -> None:
    first, second = (training(tiny, data, amp=amp, accumulate=2) for _ in range(2))
    first.epoch()
    continued(first, second)
