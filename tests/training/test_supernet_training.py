"""Training loops: seeds, schedules, BN recomputation, distillation, and continuing bit-equal from a checkpoint."""

import io
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from every import every
from short_training import CPU, training
from torch import Tensor, nn

from nas import sampling
from nas.arch import Arch
from nas.config.gates import Gates as Settings
from nas.decision import largest, one_hot, smallest
from nas.errors import UserError
from nas.plan import Layout
from nas.supernet.gates import RELAXATIONS, Gates
from nas.training import evaluation, optimization
from nas.training.data import Data, Split
from nas.training.distill import kd
from nas.training.policies import POLICIES
from nas.training.stepper import Stepper
from nas.training.supernet_training import SupernetTraining


def term(name: str) -> dict[str, Any]:
    return {"latency": Settings(latency=name).term}


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {}, **{name: term(name) for name in ("dual", "fbnet", "proxyless", "mnas")},
    "enumerated": {"widths": "enumerated"},
    "best-up": {"attend": "best-up"}, "worst-up": {"attend": "worst-up", "attend_to": 2},
    "largest-first": {"largest_first": 1.0}, "blockwise": {"largest_first": 0.3, "blockwise": 0.4},
    **{name: {"policy": name} for name in POLICIES}, "erase": {"erase": 0.5},
    "single-level": {"update": "single"}, "alpha": {"inplace": "alpha"}, "ema": {"ema": 0.9},
    "all": {**term("dual"), "update": "single", "inplace": "alpha", "ema": 0.9, "relaxation": "gumbel"}}


def weights(run: SupernetTraining) -> dict[str, torch.Tensor]:
    kept = run.average.net.state_dict() if run.average else {}
    return {**run.supernet.state_dict(), **{f"gates.{k}": v for k, v in run.gates.state_dict().items()},
            **{f"term.{k}": v for k, v in run.term.state_dict().items()}, **{f"mean.{k}": v for k, v in kept.items()}}


def test_divergence_is_one_line(tiny: Layout) -> None:
    model = nn.Linear(1, 1)
    with pytest.raises(UserError, match=r"diverged.*train\.lr"):
        Stepper(CPU).step(lambda x, y: (model(x).sum(), {}), (torch.tensor([[float("nan")]]), torch.zeros(1)), model,
                          optimization.optimizer(model, 0.1, 0.0))


class AsBefore(SupernetTraining):
    """The steps as they were written before there was a choice: no term, no average, gates apart, KL."""

    def _sandwich_step(self, phase: str, within: float, images: Tensor, labels: Tensor, rng: random.Random,
                       coins: torch.Generator) -> dict[str, float]:
        live = self.supernet.layout
        big = self.supernet(images, one_hot(largest(live, self.prices[0])))
        loss = F.cross_entropy(big, labels, label_smoothing=self.recipe.label_smoothing)
        students = [self._drawn(phase, within, rng, coins, (images, labels)), one_hot(smallest(live, self.prices[0]))]
        taught = [kd(self.supernet(images, decision), big) for decision in students]
        self.optimizer.zero_grad(set_to_none=True)
        (loss + sum(taught)).backward()
        nn.utils.clip_grad_norm_([p for p in self.supernet.parameters() if p.grad is not None], 5.0)
        self.optimizer.step()
        return {"loss_largest": float(loss.detach())}

    def _gate_step(self, within: float, batch: tuple[Tensor, Tensor], rng: random.Random,
                   coins: torch.Generator) -> dict[str, float]:
        high, low = self.recipe.tau
        soft = self._soft(within, rng, batch[0].shape[-1])
        decision = RELAXATIONS[self.recipe.relaxation](self.gates, soft, high * (low / high) ** within, coins)
        loss = F.cross_entropy(self.supernet(batch[0], decision), batch[1])
        for parameter, gradient in zip(self.gates.parameters(), torch.autograd.grad(
                loss, list(self.gates.parameters()), allow_unused=True), strict=True):
            parameter.grad = gradient
        self.gate_optimizer.step()
        return {"gate_loss": float(loss.detach())}


@pytest.mark.parametrize("relaxation", ["two-path", "gumbel", "single"])
def test_defaults_train_as_before_there_was_a_choice(tiny: Layout, data: Data, relaxation: str) -> None:
    now, before = (training(tiny, data, kind, relaxation=relaxation) for kind in (SupernetTraining, AsBefore))
    while not now.finished:
        record, earlier = now.epoch(), before.epoch()
        assert every(value in (None, getattr(record, name)) for name, value in vars(earlier).items())
        expected, got = weights(before), weights(now)
        assert expected.keys() == got.keys()
        assert every(torch.equal(expected[name], got[name]) for name in expected)


@pytest.mark.parametrize(("options", "stop"), [("default", 1), ("default", 3), *((name, 2) for name in OPTIONS)])
def test_a_continued_supernet_is_bit_equal(tiny: Layout, data: Data, options: str, stop: int) -> None:
    def fresh() -> SupernetTraining:
        return training(tiny, data, **OPTIONS[options])

    whole = fresh()
    while not whole.finished:
        whole.epoch()
    first = fresh()
    for _ in range(stop):
        first.epoch()
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second = fresh()
    second.load_state_dict(torch.load(buffer, weights_only=True))
    while not second.finished:
        second.epoch()
    expected, got = weights(whole), weights(second)
    assert expected.keys() == got.keys()
    assert every(torch.equal(expected[name], got[name]) for name in expected)
    assert second.pruner == whole.pruner


def test_every_option_changes_what_is_learned(tiny: Layout, data: Data) -> None:
    figures, climbed = dict[str, float](), list[bool]()
    for name, options in OPTIONS.items():
        run = training(tiny, data, **options)
        for _ in range(2):
            run.epoch()
        arch = sampling.decode(run.supernet.layout, [0] * len(tiny.slots))
        figures[name] = float(run.gates.theta.detach().abs().sum()) + run.judge(arch, data.select, 32).loss
        climbed += [bool(part.any()) for part in run.term.buffers()]  # of the dual
    assert len(set(figures.values())) == len(OPTIONS) and every(climbed), figures


def test_the_warm_up_begins_with_the_largest_then_blockwise(tiny: Layout, data: Data) -> None:
    """Shares are of the whole warm-up; what is left ramps from the largest network to random ones, as without them."""
    run = training(tiny, data, largest_first=0.5, blockwise=0.25, sandwich_every=2)
    kinds = [run._step_of("warmup", i, i / 8).__name__ for i in range(8)]
    assert kinds == ["_warm_step"] * 6 + ["_sandwich_step", "_random_step"]
    assert [run._step_of("search", i, 0.0).__name__ for i in range(2)] == ["_sandwich_step", "_random_step"]
    first = run._drawn("warmup", 0.75, random.Random(0), torch.Generator(), (torch.zeros(1), torch.zeros(1)))
    assert first == one_hot(largest(tiny, run.prices[0]))
    both, alone = (run.epoch() for run in (run, training(tiny, data, largest_first=1.0)))
    assert None not in (both.blockwise, both.loss_largest, alone.loss_largest)
    assert (alone.blockwise, alone.kd_random, alone.loss_random) == (None, None, None)


def test_without_a_sandwich_every_step_is_of_one_random_network(tiny: Layout, data: Data) -> None:
    record = training(tiny, data, sandwich_every=0, relaxation="single").epoch()
    assert record.loss_random is not None and record.loss_largest is None


def test_single_level_learns_from_both_splits_at_once(tiny: Layout, data: Data) -> None:
    """Two gate steps by hand: the gradients of the mean loss over both batches, to gates and weights alike."""
    run, twin = (training(tiny, data, update="single") for _ in range(2))
    images, labels = torch.randn(16, 3, 16, 16), torch.arange(16) % 4
    for one in (run, twin):
        one.supernet.train()
    for step in range(2):
        (rng, coins), again = ((random.Random(step), torch.Generator().manual_seed(step)) for _ in range(2))
        run._gate_step(0.5, (images, labels), rng, coins)
        decision = RELAXATIONS["two-path"](twin.gates, twin._soft(0.5, again[0], 16), 2.0 * 0.15**0.5, again[1])
        twin.optimizer.zero_grad()
        twin.gate_optimizer.zero_grad()
        F.cross_entropy(twin.supernet(images, decision), labels).backward()
        nn.utils.clip_grad_norm_([p for p in twin.supernet.parameters() if p.grad is not None], 5.0)
        twin.optimizer.step()
        twin.gate_optimizer.step()
    untouched = training(tiny, data)
    for name, tensor in weights(twin).items():
        assert torch.allclose(tensor, weights(run)[name], atol=1e-7), name
    for after, before in ((run.gates, untouched.gates), (run.supernet.stem, untouched.supernet.stem)):
        assert not torch.equal(next(after.parameters()), next(before.parameters()))


def test_single_level_gets_a_batch_of_either_split(tiny: Layout, data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = dict[str, set[int]]()
    for update in ("bilevel", "single"):
        run = training(tiny, data, update=update)
        own = run._gate_step
        seen = sizes.setdefault(update, set())
        monkeypatch.setattr(run, "_gate_step", lambda within, batch, *rest, own=own, seen=seen: (
            seen.add(len(batch[1])), own(within, batch, *rest))[1])
        for _ in range(2):
            run.epoch()
    assert sizes == {"bilevel": {16}, "single": {32}}


def test_the_phases_learn_and_the_layout_shrinks(tiny: Layout, data: Data) -> None:
    run = training(tiny, data)
    loser = tiny.slots[2].branches[1]
    with torch.no_grad():
        run.gates.theta[0, 2, 1] = -20.0
    records = []
    while not run.finished:
        records.append(run.epoch())
    assert [record.phase for record in records] == ["warmup", "search", "search", "settle"]
    dropped = [drop for record in records if record.pruning for drop in record.pruning.dropped]
    assert any(drop.op == str(loser.op) and drop.slot == 2 for drop in dropped)
    assert [record.pruning is not None for record in records] == [record.phase == "search" for record in records]
    assert loser.op not in [branch.op for branch in run.supernet.layout.slots[2].branches]
    assert [record.entry is not None for record in records] == [True, False, False, False]
    assert records[1].budget_residual is not None and records[1].budget_residual < 1e-3
    assert every((record.grad_norm or 0) > 0 for record in records)
    assert [record.gate_grad_norm is not None for record in records] == [record.phase == "search" for record in records]
    assert (records[-1].loss_largest or 9) < (records[0].loss_largest or 0)
    arch = sampling.sample(run.supernet.layout, random.Random(0))
    assert run.judge(arch, data.select, 32).n == 32


def test_the_smallest_network_stays_reachable_whatever_the_gates_prefer(tiny: Layout, data: Data) -> None:
    """Over a whole search in which nobody wants the cheapest operators, at budgets that do without them."""
    run = training(tiny, data)
    priced = run.prices[0]
    least = priced.fixed + sum(min(row.values()) for row in priced.ms)
    high = priced.fixed + sum(max(row.values()) for row in priced.ms)
    run.gates.ranges = [(0.75 * high, 0.95 * high)]
    with torch.no_grad():
        run.gates.c0[0] = 1.0
        for slot in tiny.slots:
            row = priced.ms[slot.index]
            cheapest = min(range(len(slot.branches)), key=lambda b: min(row[op] for op in slot.branches[b].ops))
            run.gates.theta[0, slot.index, cheapest] = -8.0
    while not run.finished:
        run.epoch()
    left = run.supernet.layout
    assert sum(len(slot.ops) for slot in left.slots) < sum(len(slot.ops) for slot in tiny.slots)
    arch = smallest(left, priced)
    assert priced.fixed + sum(priced.ms[i][op] for i, op in enumerate(arch.ops)) == pytest.approx(least)


def test_the_gap_of_the_two_widths_closes_over_the_search(tiny: Layout, data: Data,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    run, gaps, at = training(tiny, data), list[float](), Gates.at

    def asked(self: Gates, s: float, target: int = 0, *gap: float) -> Any:
        gaps.extend(gap)
        return at(self, s, target, *gap)

    monkeypatch.setattr(Gates, "at", asked)
    while not run.finished:
        run.epoch()
    assert gaps[0] == 0.5 and gaps[-1] == 0.0 and gaps == sorted(gaps, reverse=True)
    assert any(0 < gap < 0.5 for gap in gaps)


def test_the_warm_up_ends_with_a_test_on_images_that_weights_did_not_learn_from(
        tiny: Layout, data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    run, seen = training(tiny, data), list[Any]()

    def judge(arch: Arch, split: Any, calibration: int) -> evaluation.Judged:
        seen.append((arch, split))
        return evaluation.Judged(2.0 if len(seen) == 1 else 1.0, 3, 4)

    monkeypatch.setattr(run, "judge", judge)
    found = run.entry_test()
    assert found.passed and (found.smallest_loss, found.largest_loss) == (2.0, 1.0)
    assert not replace(found, smallest_loss=1.06).passed and replace(found, smallest_loss=1.08).passed  # 0.02 + 5 %
    assert [arch for arch, _ in seen] == [end(tiny, run.prices[0]) for end in (smallest, largest)]

    def sums(split: Split) -> list[float]:
        return sorted(split.images.double().sum((1, 2, 3)).tolist())

    assert sums(data.gate) != sums(data.train) and every(sums(split) == sums(data.gate) for _, split in seen)


def test_the_temperature_of_the_gates_falls_over_the_search(tiny: Layout, data: Data,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    run, seen, relaxed = training(tiny, data), list[float](), RELAXATIONS["two-path"]

    def spy(gates: Gates, soft: Any, tau: float, generator: torch.Generator) -> Any:
        seen.append(tau)
        return relaxed(gates, soft, tau, generator)

    monkeypatch.setitem(RELAXATIONS, "two-path", spy)
    while not run.finished:
        run.epoch()
    steps = len(seen)
    assert seen == pytest.approx([2.0 * 0.15 ** (i / steps) for i in range(steps)])  # from 2 to 0.3


def test_gates_learn_from_their_own_split_and_weights_from_theirs(tiny: Layout, data: Data) -> None:
    """With the gate split's images black only the gates' learning differs, until weights follow what they draw."""
    dark = Split(torch.zeros_like(data.gate.images), data.gate.labels)
    runs = [training(tiny, one) for one in (data, replace(data, gate=dark))]
    for run in runs:
        run.epoch()  # the warm-up
    one, other = (weights(run) for run in runs)
    assert every(torch.equal(tensor, other[name]) for name, tensor in one.items())
    for run in runs:
        run.epoch()
    assert any(not torch.equal(a, b) for a, b in zip(*(run.gates.parameters() for run in runs), strict=True))


def test_gates_see_images_without_a_policy(tiny: Layout, data: Data) -> None:
    plain, changed = (training(tiny, data, **how) for how in ({}, {"policy": "trivialaugment", "erase": 1.0}))
    held_out = [next(run._gate_batches(("x",)))[0] for run in (plain, changed)]
    assert torch.equal(*held_out)


@pytest.mark.parametrize("relaxation", ["single", "gumbel"])
def test_the_other_relaxations_run(tiny: Layout, data: Data, relaxation: str) -> None:
    run = training(tiny, data, relaxation=relaxation)
    records = []
    while not run.finished:
        records.append(run.epoch())
    assert (records[1].gate_loss is not None) == (relaxation == "gumbel")
