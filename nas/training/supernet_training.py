"""Trains the supernet in three phases: warm-up (weights), search (weights, gates, pruning), settle (what is left).

Weights begin with the dearest network alone, which grows from a small one that learns faster, and blockwise
(``nas.training.blockwise``, shares of the warm-up), then follow the sandwich rule with in-place distillation (BigNAS,
arXiv 2003.11142): the dearest network learns from labels, a random and the cheapest one from it; between two such steps
a random one learns from labels. Gates learn on their own split (``bilevel``: DARTS' first order, arXiv 1806.09055) or
with the weights on both (``single``). Of several input sizes each step draws one, for weights and gates alike, and
resizes its batches to it (elastic resolution, Once-for-All, arXiv 1908.09791); prices and budgets are then those of
that size, the gates the same. Randomness is drawn from (seed, phase, epoch), so that a run continued from an epoch's
checkpoint ends bit-equal.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas import sampling
from nas.arch import SKIP, Arch
from nas.decision import Decision, Prices, grown, largest, one_hot, smallest
from nas.errors import UserError
from nas.plan import Layout, enumerated
from nas.subnet import Subnet
from nas.supernet.gates import RELAXATIONS, Gates, Soft, draw
from nas.supernet.latency_terms import term_of
from nas.supernet.net import Supernet
from nas.supernet.prune import Pruner, survivors
from nas.supernet.width import closing_gap
from nas.training import evaluation, optimization, placement, randomness
from nas.training.attentive import choose_by_loss
from nas.training.augmentation import Augmentation
from nas.training.blockwise import blockwise
from nas.training.data import Data, batches, resized
from nas.training.distill import INPLACE
from nas.training.ema import Average
from nas.training.epochs import EntryTest, Pruning, SupernetEpoch, epoch_size
from nas.training.ranks import ALONE, Ranks
from nas.training.recipes import SUPERNET, SupernetRecipe
from nas.training.stepper import LossOf, Stepper, if_finite, micro

PHASES = tuple(SUPERNET)
GROWN_IN = 4  # steps, from a quarter of the largest network's widths to all of them


class SupernetTraining:
    """Trains a supernet epoch by epoch; ``state_dict`` and ``load_state_dict`` make it resumable between epochs.

    ``prices`` and ``ranges`` are one a target. Where input size is searched they are one a target and size, ``sizes``
    is that of each, and ``layout`` and ``data`` are those of the largest. With several ``ranks`` each has one of these:
    they draw the same, compute their own part of every batch, and stay equal. Raises UserError where a split has no two
    images for every micro-batch (``recipe.accumulate``).
    """

    def __init__(self, layout: Layout, data: Data, prices: Sequence[Prices], ranges: Sequence[tuple[float, float]],
                 grid: tuple[float, ...], recipe: SupernetRecipe, seed: int, device: torch.device,
                 ranks: Ranks = ALONE, sizes: Sequence[int] = ()) -> None:
        _check_parts(data, recipe.accumulate)
        self.layout, self.data, self.recipe, self.seed, self.device = layout, data, recipe, seed, device
        self.prices, self.sizes = prices, tuple(sizes) or (layout.task.size,) * len(prices)
        self.stepper = Stepper(device, recipe.accumulate, recipe.amp, ranks, apart=True)
        with randomness.seeded(seed, "weights"):
            net = Supernet(layout)
        self.supernet = placement.placed(net, device)
        self.average = Average(self.supernet, recipe.ema) if recipe.ema else None
        self.term = term_of(recipe.latency, len(prices))
        choices = enumerated(layout) if recipe.widths == "enumerated" else layout
        self.gates = Gates(choices, prices, ranges, self.term.projected)
        self.pruner = Pruner(grid=grid, blocks=recipe.prune != "layers", layers=recipe.prune != "blocks")
        self.optimizer = optimization.optimizer(self.supernet, recipe.lr, recipe.weight_decay)
        self.gate_optimizer = _gate_optimizer(self.gates, recipe.gate_lr)
        self.done = 0
        self.schedule = [(phase, i) for phase in PHASES for i in range(recipe.epochs[phase])]

    @property
    def finished(self) -> bool:
        return self.done == len(self.schedule)

    def epoch(self, on_step: Callable[[int, int], None] = lambda step, of: None) -> SupernetEpoch:
        """Runs the next epoch."""
        phase, index = self.schedule[self.done]
        with randomness.seeded(self.seed, phase, index):
            figures = self._epoch(phase, index, on_step)
        pruning = self._after_search_epoch(index) if phase == "search" else None
        self.done += 1
        warmed_up = phase == "warmup" and (self.finished or self.schedule[self.done][0] != "warmup")
        return SupernetEpoch(phase=phase, epoch=index, **figures, pruning=pruning,
                             entry=self.entry_test() if warmed_up else None)

    def entry_test(self) -> EntryTest:
        """Compares held-out losses of the smallest and largest network: gates learn only if these lie clearly apart."""
        ends = smallest(self.layout, self.prices[0]), largest(self.layout, self.prices[0])
        split = evaluation.part_of(self.data.gate, 1000, self.seed, "entry")
        small, large = (self.judge(arch, split, 500) for arch in ends)
        return EntryTest(smallest_loss=small.loss, largest_loss=large.loss, smallest_accuracy=small.accuracy,
                         largest_accuracy=large.accuracy)

    def judge(self, arch: Arch, split: Any, calibration: int) -> evaluation.Judged:
        """Takes a network out of the supernet, recomputes its batch norms on training images, and judges it."""
        subnet, data = placement.placed(self.inherit(arch), self.device), self.data.at(arch.size)
        images = evaluation.calibration_images(data, calibration, 128, self.device, self.seed)
        evaluation.recalibrate(subnet, images)
        return evaluation.evaluate(subnet, split, data, self.device)

    def columns(self, size: int) -> list[int]:
        """Returns the positions of an input size's prices, ranges and gates, target by target."""
        return [column for column, side in enumerate(self.sizes) if side == size]

    def inherit(self, arch: Arch) -> Subnet:
        """Returns a network with inherited weights, averaged ones where they are kept. BN is not recomputed."""
        return (self.average.net if self.average else self.supernet).inherit(arch)

    def take_back(self, arch: Arch, network: Subnet) -> None:
        """Takes over the weights of a network that was trained alone: others then inherit them."""
        (self.average.net if self.average else self.supernet).take_back(arch, network)

    def start_from(self, state: dict[str, Any]) -> int:
        """Takes over weights from the ``state_dict`` of another training: all tensors of equal name and shape.

        Returns how many; none if it shares no operator with this space.
        """
        given = state["average"]["net"] if state["average"] else state["supernet"]
        present = self.supernet.state_dict()
        taken = {name: tensor for name, tensor in given.items()
                 if name in present and present[name].shape == tensor.shape}
        if not any(name.startswith("slots.") for name in taken):
            return 0
        for net in self._nets():
            net.load_state_dict(taken, strict=False)
        return len(taken)

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done, "keep": [[str(op) for op in slot.ops] for slot in self.supernet.layout.slots],
                "supernet": self.supernet.state_dict(), "gates": self.gates.state_dict(),
                "optimizer": optimization.optimizer_state(self.supernet, self.optimizer),
                "gate_optimizer": optimization.optimizer_state(self.gates, self.gate_optimizer),
                "streaks": self.pruner.streaks, "term": self.term.state_dict(),
                "average": self.average.state_dict() if self.average else None, "stepper": self.stepper.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a ``state_dict``, on a freshly built object."""
        self.gates.load_state_dict(state["gates"])
        self._keep([[op for op in slot.ops if str(op) in set(kept)]
                    for slot, kept in zip(self.layout.slots, state["keep"], strict=True)])
        self.supernet.load_state_dict(state["supernet"])
        optimization.load_optimizer_state(self.supernet, self.optimizer, state["optimizer"])
        optimization.load_optimizer_state(self.gates, self.gate_optimizer, state["gate_optimizer"])
        self.pruner.streaks = dict(state["streaks"])
        self.term.load_state_dict(state["term"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.stepper.load_state_dict(state["stepper"])
        self.done = state["done"]

    def _epoch(self, phase: str, index: int, on_step: Callable[[int, int], None]) -> dict[str, float]:
        names = (self.seed, phase, index)
        rng, coins = random.Random(randomness.seed_of(*names, "archs")), randomness.generator(*names, "gates")
        recipe = self.recipe
        train = batches(self.data.train, self.data, recipe.batch, generator=randomness.generator(*names, "train"),
                        augment=recipe.augmentation, share=self.stepper.ranks.share,
                        most=recipe.epoch_images)
        gate = self._gate_batches(names)
        steps = max(1, epoch_size(len(self.data.train), recipe.epoch_images) // recipe.batch)
        choices = list(dict.fromkeys(self.sizes))
        sums: dict[str, list[float]] = {}
        self.supernet.train()
        for i, (images, labels) in enumerate(train):
            within = (index + i / steps) / max(1, recipe.epochs[phase])
            progress = (self.done + i / steps) / len(self.schedule)
            optimization.set_lr(self.optimizer, optimization.one_cycle(progress, recipe.lr))
            size = rng.choice(choices) if len(choices) > 1 else self.data.size
            images = resized(images, size)
            step = self._step_of(phase, i, within)
            figures = step(phase, within, images.to(self.device), labels.to(self.device), rng, coins)
            if phase == "search" and recipe.relaxation in RELAXATIONS and i % recipe.gate_every == 0:
                held_out = next(gate)
                held_out = resized(held_out[0], size), held_out[1]
                if recipe.update == "single":
                    held_out = torch.cat([held_out[0], images]), torch.cat([held_out[1], labels])
                figures |= self._gate_step(within, held_out, rng, coins)
            for name, value in figures.items():
                sums.setdefault(name, []).append(value)
            on_step(i + 1, steps)
        means = self.stepper.ranks.mean({name: sum(values) / len(values) for name, values in sums.items()})
        return {name: round(value, 6) for name, value in means.items()}

    def _step_of(self, phase: str, i: int, within: float) -> Callable[..., dict[str, float]]:
        recipe = self.recipe
        if phase == "warmup" and within < recipe.largest_first + recipe.blockwise:
            return self._warm_step
        sandwich = recipe.sandwich_every and i % recipe.sandwich_every == 0
        return self._sandwich_step if sandwich else self._random_step

    def _warm_step(self, phase: str, within: float, images: Tensor, labels: Tensor, rng: random.Random,
                   coins: torch.Generator) -> dict[str, float]:
        """Trains the dearest network, which grows from a small one, then a random choice of each slot beside it, which
        learns what it does.
        """
        live, first = self.supernet.layout, self.recipe.largest_first
        if within < first:
            dearest, drawn = grown(live, self.prices[0], GROWN_IN)[int(GROWN_IN * within / first)], None
        else:
            dearest, drawn = largest(live, self.prices[0]), one_hot(sampling.sample(live, rng))
        return self._weight_step(blockwise(self.supernet, self.stepper, one_hot(dearest), drawn,
                                           self.recipe.label_smoothing), images, labels)

    def _sandwich_step(self, phase: str, within: float, images: Tensor, labels: Tensor, rng: random.Random,
                       coins: torch.Generator) -> dict[str, float]:
        live = self.supernet.layout
        dearest, cheapest = one_hot(largest(live, self.prices[0])), one_hot(smallest(live, self.prices[0]))
        students = [self._drawn(phase, within, rng, coins, (images, labels)), cheapest]

        def loss_of(images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            big = self._logits(images, dearest)
            loss = F.cross_entropy(big, labels, label_smoothing=self.recipe.label_smoothing)
            logits = [self._logits(images, decision) for decision in students]
            taught = [INPLACE[self.recipe.inplace](student, big) for student in logits]
            return loss + sum(taught), {"loss_largest": loss, "kd_random": taught[0], "kd_smallest": taught[1]}

        return self._weight_step(loss_of, images, labels)

    def _random_step(self, phase: str, within: float, images: Tensor, labels: Tensor, rng: random.Random,
                     coins: torch.Generator) -> dict[str, float]:
        """Trains a random network from labels, between two steps of the largest, at a third of its cost."""
        drawn = self._drawn(phase, within, rng, coins, (images, labels))

        def loss_of(images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            loss = F.cross_entropy(self._logits(images, drawn), labels, label_smoothing=self.recipe.label_smoothing)
            return loss, {"loss_random": loss}

        return self._weight_step(loss_of, images, labels)

    def _logits(self, images: Tensor, decision: Decision) -> Tensor:
        return self.stepper.logits(self.supernet, images, decision)

    def _weight_step(self, loss_of: LossOf, images: Tensor, labels: Tensor,
                     beside: Sequence[nn.Parameter] = ()) -> dict[str, float]:
        figures = self.stepper.step(loss_of, (images, labels), self.supernet, self.optimizer, beside)
        if self.average:
            self.average.follow(self.supernet)
        return figures

    def _drawn(self, phase: str, within: float, rng: random.Random, coins: torch.Generator,
               batch: tuple[Tensor, Tensor]) -> Decision:
        """Draws a random network of what is left; in the search half of the time one drawn from the gates.

        In the warm-up each slot is drawn with a probability that rises from 0 to 1 over the first half of what is left
        of it, and is the dearest network's until then: branches learn beside neighbours that have learned something.
        """
        if phase == "search" and self.recipe.relaxation in RELAXATIONS and rng.random() < 0.5:
            return draw(self.gates, self._soft(within, rng, batch[0].shape[-1]), coins)
        live = self.supernet.layout
        if phase != "warmup" and self.recipe.attend != "none":
            return one_hot(choose_by_loss(live, self.prices[0], rng, self.recipe.attend_to,
                                          lambda arch: self._loss_now(arch, batch), self.recipe.attend == "worst-up"))
        before = self.recipe.largest_first + self.recipe.blockwise
        chance = 2 * (within - before) / (1 - before) if phase == "warmup" and before < 1 else 1.0
        if chance >= 1:
            return one_hot(sampling.sample(live, rng))
        return one_hot(sampling.mutate(live, largest(live, self.prices[0]), rng, probability=chance))

    def _loss_now(self, arch: Arch, batch: tuple[Tensor, Tensor]) -> float:
        """Returns a network's loss on a micro-batch, the same in all processes; later random numbers stay the same."""
        images, labels = micro(batch, 0, self.recipe.accumulate // self.stepper.ranks.count)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            loss = float(F.cross_entropy(self._logits(images, one_hot(arch)), labels))
        return self.stepper.ranks.mean({"loss": loss})["loss"]

    def _soft(self, within: float, rng: random.Random, size: int) -> Soft:
        """Returns the gates at a random budget of a random target, at the input size of the step."""
        columns = self.columns(size)
        column = columns[rng.randrange(len(columns))]
        return self.gates.at(rng.uniform(-1, 1), column, closing_gap(within))

    def _gate_step(self, within: float, batch: tuple[Tensor, Tensor], rng: random.Random,
                   coins: torch.Generator) -> dict[str, float]:
        soft = self._soft(within, rng, batch[0].shape[-1])
        high, low = self.recipe.tau
        tau = high * (low / high) ** within
        decision = RELAXATIONS[self.recipe.relaxation](self.gates, soft, tau, coins)

        def loss_of(images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            loss = F.cross_entropy(self._logits(images, decision), labels)
            return self.term(loss, soft), {"gate_loss": loss}  # a term is affine in the loss: means of parts add up

        step = self._single_level if self.recipe.update == "single" else self._bilevel
        figures = step(loss_of, batch[0].to(self.device), batch[1].to(self.device))
        self.term.learn(soft)
        p = soft.p.detach().clamp(min=1e-12)
        entropy = float(-(p * p.log()).sum(-1).mean())
        residual = abs(soft.expected_ms / soft.budget_ms - 1)
        given = [p.grad for p in self.gates.parameters() if p.grad is not None]  # none where half precision overflowed
        norm = float(nn.utils.get_total_norm(given)) if given else math.nan
        return {**figures, "gate_entropy": entropy, "budget_residual": residual, **if_finite("gate_grad_norm", norm)}

    def _bilevel(self, loss_of: LossOf, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Trains the gates alone, from images that the weights never learn from."""
        finite, figures = self.stepper.gradients(loss_of, (images, labels), list(self.gates.parameters()))
        if finite:
            self.gate_optimizer.step()
        return figures

    def _single_level(self, loss_of: LossOf, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Trains gates and weights from one loss, the mean over a batch of either split: no inner problem, one level.

        After RARTS (arXiv 2008.03901), which minimises L_gate(y, a) + l L_train(w, a) + b/2 |y - w|^2 over gates a and
        two copies y, w of the weights, in turn w, y, a. Here l = 1 and y = w (b without bound), so no second supernet:
        the step before this one is that of w on the train split; this one is of w and a at once, from one backward pass
        over both batches together (one set of batch statistics).
        """
        self.gate_optimizer.zero_grad(set_to_none=True)
        figures = self._weight_step(loss_of, images, labels, list(self.gates.parameters()))
        self.gate_optimizer.step()
        figures.pop("grad_norm", None)  # that of the step before is logged, as in bilevel updates
        return figures

    def _gate_batches(self, names: tuple[object, ...]) -> Iterator[tuple[Tensor, Tensor]]:
        passes = 0
        while True:
            yield from batches(self.data.gate, self.data, self.recipe.batch,
                               generator=randomness.generator(*names, "gate", passes),
                               augment=Augmentation(self.recipe.augment), share=self.stepper.ranks.share)
            passes += 1

    def _after_search_epoch(self, index: int) -> Pruning | None:
        last = index == self.recipe.epochs["search"] - 1
        if not self.recipe.prune or self.recipe.relaxation not in RELAXATIONS:
            return None
        dropped = self.pruner.check(self.gates, (index + 1) / self.recipe.epochs["search"])
        keep = survivors(self.gates, self.pruner.grid) if last else _live(self.gates)
        if dropped or last:
            self._keep(keep)
        return Pruning(dropped=tuple(dropped), branches=sum(len(s.branches) for s in self.supernet.layout.slots),
                       parameters=sum(p.numel() for p in self.supernet.parameters()), skip_share=self._skip_share())

    def _keep(self, ops: list[list[Any]]) -> None:
        """Prunes the supernet; the optimizer's state of what is left goes along, the rest is freed."""
        state = optimization.optimizer_state(self.supernet, self.optimizer)
        for net in self._nets():
            net.keep(ops)
        self.optimizer = optimization.optimizer(self.supernet, self.recipe.lr, self.recipe.weight_decay)
        optimization.load_optimizer_state(self.supernet, self.optimizer, state)

    def _nets(self) -> list[Supernet]:
        return [self.supernet, self.average.net] if self.average else [self.supernet]

    def _skip_share(self) -> float:
        with torch.no_grad():
            p = self.gates.at(0.0).p
        slots = self.gates.layout.slots
        skips = [float(p[s.index, b]) for s in slots for b, branch in enumerate(s.branches) if branch.op == SKIP]
        return round(sum(skips) / max(1, len(skips)), 5)


def _check_parts(data: Data, accumulate: int) -> None:
    for name, split in (("train", data.train), ("gate", data.gate)):
        if accumulate > 1 and len(split) < 2 * accumulate:
            raise UserError(f"train.accumulate={accumulate}: the {name} split has {len(split)} images, less than two "
                            "for each of so many parts; give a smaller one, or more images")


def _live(gates: Gates) -> list[list[Any]]:
    return [[op for b, branch in enumerate(slot.branches) if gates.live[slot.index, b] for op in branch.ops]
            for slot in gates.layout.slots]


def _gate_optimizer(gates: Gates, lr: float) -> torch.optim.Adam:
    groups = [{"params": [gates.theta, gates.phi], "lr": lr}, {"params": [gates.c0, gates.c1], "lr": lr * 0.2}]
    return torch.optim.Adam(groups, betas=(0.9, 0.99))
