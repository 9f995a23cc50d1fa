"""Training loops: seeds, schedules, BN recomputation, distillation, and continuing bit-equal from a checkpoint."""

import copy
import io
import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from colours import colours
from every import every
from torch import Tensor, nn

from nas import sampling
from nas.arch import Arch
from nas.config.gates import Gates as Settings
from nas.decision import largest, one_hot, prices, smallest
from nas.errors import UserError
from nas.plan import Layout, OpKey, macs
from nas.subnet import build
from nas.supernet.gates import RELAXATIONS, Gates
from nas.supernet.net import Supernet
from nas.train import evaluation, finetune, optimization, randomness
from nas.train.data import Data, Split
from nas.train.distill import kd
from nas.train.ema import Average
from nas.train.recipes import FineTuningRecipe, SupernetRecipe
from nas.train.stepper import Stepper
from nas.train.supernet_training import SupernetTraining

CPU = torch.device("cpu")


def term(name: str) -> dict[str, Any]:
    return {"latency": name, "latency_options": Settings(latency=name).latency_options}


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {}, **{name: term(name) for name in ("dual", "fbnet", "proxyless", "mnas")},
    "enumerated": {"widths": "enumerated"},
    "best-up": {"attend": "best-up"}, "worst-up": {"attend": "worst-up", "attend_to": 2},
    "largest-first": {"largest_first": 1.0}, "blockwise": {"largest_first": 0.3, "blockwise": 0.4},
    "single-level": {"update": "single"}, "alpha": {"inplace": "alpha"}, "ema": {"ema": 0.9},
    "all": {**term("dual"), "update": "single", "inplace": "alpha", "ema": 0.9, "relaxation": "gumbel"}}


@pytest.fixture
def data() -> Data:
    return colours()


def by_macs(keys: list[OpKey]) -> list[float]:
    return [0.01 + macs(key) * 1e-6 for key in keys]


def training(tiny: Layout, data: Data, kind: type[SupernetTraining] = SupernetTraining,
             **options: Any) -> SupernetTraining:
    priced = prices(tiny, by_macs)
    low = priced.fixed + sum(min(row.values()) for row in priced.ms)
    high = priced.fixed + sum(max(row.values()) for row in priced.ms)
    recipe = SupernetRecipe(epochs={"warmup": 1, "search": 2, "settle": 1}, batch=16, lr=0.005, weight_decay=0.01,
                            label_smoothing=0.0, augment="crop", **options)
    return kind(tiny, data, [priced], [(low * 1.05, high * 0.9)], (-1.0, 0.0, 1.0), recipe, 0, CPU)


def weights(run: SupernetTraining) -> dict[str, torch.Tensor]:
    kept = run.average.net.state_dict() if run.average else {}
    return {**run.supernet.state_dict(), **{f"gates.{k}": v for k, v in run.gates.state_dict().items()},
            **{f"term.{k}": v for k, v in run.term.state_dict().items()}, **{f"mean.{k}": v for k, v in kept.items()}}


def test_seeds_come_from_names() -> None:
    assert randomness.seed_of(0, "a") == randomness.seed_of(0, "a") != randomness.seed_of(0, "b")
    state = torch.random.get_rng_state()
    with randomness.seeded(1, "x"):
        first = torch.rand(3)
    with randomness.seeded(1, "x"):
        assert torch.equal(first, torch.rand(3))
    assert torch.equal(state, torch.random.get_rng_state())


def test_one_cycle_by_hand() -> None:
    assert optimization.one_cycle(0.0, 1.0) == pytest.approx(0.05)
    assert optimization.one_cycle(0.1, 1.0) == pytest.approx(1.0)
    assert optimization.one_cycle(0.55, 1.0) == pytest.approx(0.5)
    assert optimization.one_cycle(1.0, 1.0) == pytest.approx(0.0)


def test_kd_is_zero_for_equal_logits_and_matches_a_hand_figure() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    assert float(kd(logits, logits)) == pytest.approx(0.0, abs=1e-7)
    # T = 1: p = (1/2, 1/2), q = (3/4, 1/4): KL(q || p) = 3/4 ln(3/2) + 1/4 ln(1/2)
    figure = kd(torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]]), temperature=1.0)
    assert float(figure) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-5)


def test_recalibrate_gives_the_statistics_of_the_images() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1))
    images = [torch.full((2, 1, 4, 4), 1.0), torch.full((2, 1, 4, 4), 3.0)]
    evaluation.recalibrate(model, images)
    assert float(model[0].running_mean) == pytest.approx(2.0)  # mean of the batch means
    assert model[0].momentum == 0.1 and not model.training


@pytest.mark.parametrize(("count", "batch", "expected"), [(32, 16, [16, 16]), (33, 16, [16, 16]), (34, 16, [16, 16, 2]),
                                                          (1, 16, [1])])
def test_no_image_is_alone_in_its_batch(data: Data, count: int, batch: int, expected: list[int]) -> None:
    assert [len(part) for part in evaluation.calibration_images(data, count, batch, CPU, 0)] == expected


def test_judged_standard_error() -> None:
    judged = evaluation.Judged(0.5, 90, 100)
    assert judged.accuracy == 0.9 and judged.accuracy_se == pytest.approx(0.03)


def test_a_small_split_is_seen_at_several_shifts(tiny: Layout, data: Data) -> None:
    model = build(tiny, sampling.decode(tiny, [0] * len(tiny.slots))).eval()
    once = evaluation.evaluate_shifted(model, data.select, data, CPU, "crop", 0, images=32)
    assert once == evaluation.evaluate(model, data.select, data, CPU)
    often = evaluation.evaluate_shifted(model, data.select, data, CPU, "crop", 0, images=200)
    assert often.n == once.n == 32
    assert often == evaluation.evaluate_shifted(model, data.select, data, CPU, "crop", 0, 200)
    assert often.loss != once.loss


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
        assert every(record[name] == value for name, value in earlier.items())
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
    torch.save(first.state(), buffer)
    buffer.seek(0)
    second = fresh()
    second.load(torch.load(buffer, weights_only=True))
    while not second.finished:
        second.epoch()
    expected, got = weights(whole), weights(second)
    assert expected.keys() == got.keys()
    assert every(torch.equal(expected[name], got[name]) for name in expected)
    assert second.pruner.state() == whole.pruner.state()


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
    keys = [set(run.epoch()) for run in (run, training(tiny, data, largest_first=1.0))]
    assert {"blockwise", "loss_largest"} <= keys[0]
    assert "loss_largest" in keys[1] and not {"blockwise", "kd_random", "loss_random"} & keys[1]


def test_without_a_sandwich_every_step_is_of_one_random_network(tiny: Layout, data: Data) -> None:
    record = training(tiny, data, sandwich_every=0, relaxation="single").epoch()
    assert "loss_random" in record and "loss_largest" not in record


def test_a_checkpoint_of_before_there_were_terms_continues(tiny: Layout, data: Data) -> None:
    first, second = training(tiny, data), training(tiny, data)
    first.epoch()
    earlier = {name: part for name, part in first.state().items() if name not in ("term", "average")}
    second.load(copy.deepcopy(earlier))
    for run in (first, second):
        run.epoch()
    assert every(torch.equal(tensor, weights(second)[name]) for name, tensor in weights(first).items())


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


def test_an_average_by_hand(tiny: Layout) -> None:
    net = Supernet(tiny)
    weight = next(net.parameters())
    with torch.no_grad():
        weight.fill_(1.0)
    average = Average(net, 0.25)
    followed = [1.0]
    for value, d in ((2.0, 2 / 11), (5.0, 3 / 12), (3.0, 0.25)):  # (1 + n) / (10 + n), at most 0.25
        with torch.no_grad():
            weight.fill_(value)
        average.follow(net)
        followed.append(d * followed[-1] + (1 - d) * value)
        assert torch.allclose(next(average.net.parameters()), torch.tensor(followed[-1]))
    assert not any(p.requires_grad for p in average.net.parameters())


def test_averaged_weights_are_judged_inherited_and_started_from(tiny: Layout, data: Data) -> None:
    run = training(tiny, data, ema=0.9)
    with torch.no_grad():
        run.gates.theta[0, 2, 1] = -20.0  # loses its place, in the average as well
    while not run.finished:
        run.epoch()
    assert run.average is not None
    assert run.average.net.layout == run.supernet.layout
    assert [p.shape for p in run.average.net.parameters()] == [p.shape for p in run.supernet.parameters()]
    arch = sampling.sample(run.supernet.layout, random.Random(0))
    inherited, mean, last = run.inherit(arch), run.average.net.inherit(arch), run.supernet.inherit(arch)
    assert every(torch.equal(a, b) for a, b in zip(inherited.parameters(), mean.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(inherited.parameters(), last.parameters(), strict=True))
    judged = run.judge(arch, data.select, 32)
    evaluation.recalibrate(mean, evaluation.calibration_images(data, 32, 128, CPU, 0))
    assert judged == evaluation.evaluate(mean, data.select, data, CPU)
    heir = training(tiny, data, ema=0.5)
    assert heir.start_from(run.state()) == len(run.supernet.state_dict())
    assert heir.average is not None
    for net in (heir.supernet, heir.average.net):
        assert torch.equal(next(net.parameters()), next(run.average.net.parameters()))


def test_the_phases_learn_and_the_layout_shrinks(tiny: Layout, data: Data) -> None:
    run = training(tiny, data)
    loser = tiny.slots[2].branches[1]
    with torch.no_grad():
        run.gates.theta[0, 2, 1] = -20.0
    records = []
    while not run.finished:
        records.append(run.epoch())
    assert [r["phase"] for r in records] == ["warmup", "search", "search", "settle"]
    assert any(d["op"] == str(loser.op) and d["slot"] == 2 for d in records[1]["pruned"] + records[2]["pruned"])
    assert loser.op not in [branch.op for branch in run.supernet.layout.slots[2].branches]
    assert "entry_passed" in records[0] and records[1]["budget_residual"] < 1e-3
    assert every(record["grad_norm"] > 0 for record in records)
    assert [("gate_grad_norm" in record) for record in records] == [record["phase"] == "search" for record in records]
    assert records[-1]["loss_largest"] < records[0]["loss_largest"]
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
    assert found["entry_passed"] and (found["entry_smallest_loss"], found["entry_largest_loss"]) == (2.0, 1.0)
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


@pytest.mark.parametrize("relaxation", ["single", "gumbel"])
def test_the_other_relaxations_run(tiny: Layout, data: Data, relaxation: str) -> None:
    run = training(tiny, data, relaxation=relaxation)
    records = []
    while not run.finished:
        records.append(run.epoch())
    assert ("gate_loss" in records[1]) == (relaxation == "gumbel")


def tuned(tiny: Layout, data: Data, stop: int | None) -> finetune.FineTuning:
    recipe = FineTuningRecipe(epochs=3, batch=16, lr=0.01, weight_decay=0.0, label_smoothing=0.0, augment="crop")
    arch = sampling.decode(tiny, [0] * len(tiny.slots))

    def fresh() -> finetune.FineTuning:
        with randomness.seeded("w"):
            return finetune.FineTuning("x", build(tiny, arch), build(tiny, arch), data, recipe, 0, CPU)

    tuning = fresh()
    while not tuning.finished:
        tuning.epoch()
        if tuning.done == stop:
            state, tuning = tuning.state(), fresh()
            tuning.load(state)
            stop = None
    return tuning


def test_fine_tuning_learns_and_continues_bit_equal(tiny: Layout, data: Data) -> None:
    whole, broken = tuned(tiny, data, None), tuned(tiny, data, 1)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, broken.model.state_dict()[name]), name
    evaluation.recalibrate(whole.model, evaluation.calibration_images(data, 64, 16, CPU, 0))
    assert evaluation.evaluate(whole.model, data.test, data, CPU).accuracy > 0.9
