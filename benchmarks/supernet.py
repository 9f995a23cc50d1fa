"""What the supernet costs: the pair of widths (Prunode), a search beside training alone, a step beside Once-for-All's.

    taskset -c 1 python benchmarks/supernet.py prunode
    taskset -c 1 python benchmarks/supernet.py search
    taskset -c 1 python benchmarks/supernet.py gumbel
    taskset -c 1 python benchmarks/supernet.py ofa       # after pip install --no-deps --target DIR ofa; PYTHONPATH=DIR

Each part takes up to 5 minutes on one core. One thread of PyTorch, times of its own clock (what else runs is not
counted, what it does to the caches is), all things that are compared in rounds of random order, 5th percentiles; the
same thing twice is the noise floor. Memory is what PyTorch's allocator has handed out, exact, so n = 1.
"""

import argparse
import json
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from nas.arch import SKIP, Arch
from nas.config.training import Training
from nas.decision import efficient, largest, one_hot, prices
from nas.latency import costs
from nas.latency.timing import Run, Timing, summary
from nas.ops import build
from nas.plan import Layout, OpKey, Task, layout, macs, restrict
from nas.space import Space
from nas.subnet import build as build_subnet
from nas.supernet.gates import Gates, gumbel
from nas.supernet.net import Supernet
from nas.supernet.prune import GRID
from nas.training import optimization, placement
from nas.training.data import batches, load
from nas.training.recipes import SupernetRecipe
from nas.training.stepper import Stepper
from nas.training.supernet_training import SupernetTraining

CPU = torch.device("cpu")
STEPPER = Stepper(CPU)  # as the search steps, in one process and one piece
Step = Callable[[], None]
Loss = tuple[Tensor, dict[str, Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--seconds", type=float, default=200, help="of measuring")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=32, help="input side")
    parser.add_argument("--width", type=float, default=1.0, help="of the space, for search and gumbel")
    parser.add_argument("--epochs", type=int, default=4, help="of gumbel's search")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    PARTS[options.part](options)


COUNTS = (4, 8, 16, 32, 64)
NARROWEST, WIDEST = 48, 300  # hidden channels of 48; the same two ends for every number of widths
CHAIN = {"name": "chain", "stem": {"op": "stem(kernel=3, act=relu)", "out": 48, "stride": 2}, "skip": False,
         "stages": [{"out": 48, "depth": 6, "stride": 1}], "head": {"op": "head(hidden=96)"},
         "ops": {"mbconv": {"kernel": [3], "hidden": {"min": 1, "max": 2, "step": 8}}}}


def prunode(options: argparse.Namespace) -> None:
    """A step of weights and gates together on both live widths of every slot, for more and more admissible widths."""
    images = torch.randn(options.batch, 3, options.size, options.size).to(memory_format=torch.channels_last)
    labels = torch.arange(options.batch) % 10
    steps = {f"{count} widths": pair_step(_chain(options.size, count), images, labels) for count in COUNTS}
    steps["4 widths again"] = pair_step(_chain(options.size, 4), images, labels)
    for hidden in (NARROWEST, WIDEST):
        steps[f"single path {hidden}"] = path_step(_chain(options.size, 2), hidden, images, labels)
    memory = {name: peak_bytes(step) for name, step in steps.items()}
    timings = timed(steps, options.seconds / 2)
    single = (timings[f"single path {NARROWEST}"].ms + timings[f"single path {WIDEST}"].ms) / 2
    report(timings, single, memory)
    times, held = [timings[f"{n} widths"].ms for n in COUNTS], [memory[f"{n} widths"] for n in COUNTS]
    floor = timings["4 widths again"].ms / times[0]
    print(f"mean of both single paths {single:.1f} ms; slowest pair {max(times) / single:.2f} of it; slowest / fastest "
          f"{max(times) / min(times):.3f} (floor {floor:.3f}), memory {max(held) / min(held):.4f}", flush=True)
    steps = {f"{count} enumerated": enumerated_step(_chain(options.size, count), images, labels) for count in COUNTS}
    memory = {name: peak_bytes(step) for name, step in steps.items()}
    report(timed(steps, options.seconds / 2), single, memory)


def _chain(size: int, count: int) -> Layout:
    plan = layout(Space.parse(CHAIN), Task(size, 3, 10))
    widths = tuple(int(width) // 2 * 2 for width in np.linspace(NARROWEST, WIDEST, count))
    return replace(plan, slots=tuple(replace(slot, branches=tuple(replace(branch, widths=widths)
                                                                  for branch in slot.branches)) for slot in plan.slots))


def pair_step(plan: Layout, images: Tensor, labels: Tensor) -> Step:
    """Gates and weights from one loss, as with ``gates.update=single``; the pairs are the two ends of the range."""
    priced = prices(plan, by_macs)
    low, high = (priced.fixed + sum(pick(row.values()) for row in priced.ms) for pick in (min, max))
    net, gates = placement.placed(Supernet(plan), CPU).train(), Gates(plan, [priced], [(low * 1.05, high * 0.95)])
    optimizer, gate_optimizer = optimization.optimizer(net, 1e-4, 0.0), torch.optim.Adam(gates.parameters(), 1e-4)
    rng, noise = random.Random(0), torch.Generator().manual_seed(0)

    def loss(images: Tensor, labels: Tensor) -> Loss:
        decision = gumbel(gates, gates.at(rng.uniform(-1, 1), gap_share=1.0), 1.0, noise)
        return F.cross_entropy(net(images, decision), labels), {}

    def step() -> None:
        gate_optimizer.zero_grad(set_to_none=True)
        STEPPER.step(loss, (images, labels), net, optimizer, beside=[*gates.parameters()])
        gate_optimizer.step()

    return step


def path_step(plan: Layout, hidden: int, images: Tensor, labels: Tensor) -> Step:
    """A plain network of one width."""
    arch = Arch(plan.space, plan.task.size, tuple(slot.branches[0].op.with_knobs(hidden=hidden) for slot in plan.slots))
    return plain_step(placement.placed(build_subnet(plan, arch), CPU), images, labels)


def plain_step(net: nn.Module, images: Tensor, labels: Tensor) -> Step:
    optimizer = optimization.optimizer(net.train(), 1e-4, 0.0)

    def loss(images: Tensor, labels: Tensor) -> Loss:
        return F.cross_entropy(net(images), labels), {}

    def step() -> None:
        STEPPER.step(loss, (images, labels), net, optimizer)

    return step


class Enumerated(nn.Module):
    """FBNet (arXiv 1812.03443, section 3.2): every width a module of its own, all of them run and mixed."""

    def __init__(self, plan: Layout) -> None:
        super().__init__()
        self.stem, self.head = (build(key.op, key.in_ch, key.out_ch, key.stride) for key in plan.fixed)
        self.slots = nn.ModuleList(nn.ModuleList(build(op, slot.in_ch, slot.out_ch, slot.stride) for op in slot.ops)
                                   for slot in plan.slots)
        self.theta = nn.Parameter(torch.zeros(len(plan.slots), len(plan.slots[0].ops)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for weights, slot in zip(F.gumbel_softmax(self.theta, 1.0), self.slots, strict=True):
            assert isinstance(slot, nn.ModuleList)
            x = sum((weight * op(x) for weight, op in zip(weights, slot, strict=True)), torch.zeros(()))
        return self.head(x)


def enumerated_step(plan: Layout, images: Tensor, labels: Tensor) -> Step:
    return plain_step(placement.placed(Enumerated(plan), CPU), images, labels)


def by_macs(keys: list[OpKey]) -> list[float]:
    return [0.01 + macs(key) * 1e-6 for key in keys]


def search(options: argparse.Namespace) -> None:
    """The default schedule, shortened in proportion, and the largest network alone in between."""
    run = training(options, {"warmup": 2, "search": 1, "settle": 1})
    spent, images, alone = defaultdict[str, float](float), defaultdict[str, int](int), [Alone(run), Alone(run)]
    while not run.finished:
        phase = run.schedule[run.done][0]
        spent[phase] += without(run, alone)
        steps = len(run.data.train) // run.recipe.batch
        images[phase] += steps * run.recipe.batch * (2 if phase == "search" else 1)  # gates draw as many again
    per_image, again = (one.seconds / one.images for one in alone)
    unit = (per_image + again) / 2
    print(f"largest network alone {unit * 1e3:.2f} ms an image (floor {per_image / again:.3f}, n = "
          f"{alone[0].images} and {alone[1].images} images)")
    for phase in [*spent]:
        print(f"  {phase:8} {spent[phase] / images[phase] * 1e3:7.2f} ms an image, n = {images[phase]} images"
              f"{spent[phase] / images[phase] / unit:8.3f}")
    print(f"  {'all':8} {sum(spent.values()) / sum(images.values()) * 1e3:7.2f} ms an image"
          f"{sum(spent.values()) / sum(images.values()) / unit:25.3f}")


def gumbel_search(options: argparse.Namespace) -> None:
    """Every live branch in every gate step: what pruning frees from the first search epoch to the last."""
    run = training(options, {"warmup": 1, "search": options.epochs, "settle": 0}, relaxation="gumbel")
    run.epoch()
    first: tuple[float, float, float] | None = None
    while not run.finished:
        branches = sum(len(slot.branches) for slot in run.supernet.layout.slots)
        memory, alone = held_bytes(run) + peak_bytes(partial(gate_step, run)), Alone(run)
        seconds = without(run, [alone])
        figures = seconds, seconds / (alone.seconds / alone.images), memory
        first = first or figures
        by_clock, beside, held = (now / then for now, then in zip(figures, first, strict=True))
        print(f"  epoch {run.done - 1}: {branches} branches, {seconds:.1f} s, {memory / 2**20:.1f} MiB; of the first: "
              f"{by_clock:.3f}, {beside:.3f} in steps of the largest network alone, memory {held:.3f}", flush=True)


def training(options: argparse.Namespace, epochs: dict[str, int], **more: Any) -> SupernetTraining:
    data = load("digits", data_dir=None, size=options.size, seed=0)
    plan = layout(Space.load("ghost").scaled(options.width), Task(options.size, 3, len(data.classes)))
    priced = prices(plan, costs.load("gpu-v100").ms_many)
    plan = restrict(plan, efficient(plan, [priced]))
    low, high = (priced.fixed + sum(pick(row.values()) for row in priced.ms) for pick in (min, max))
    usual = Training()
    first, then = usual.beginning(trained=False)
    recipe = SupernetRecipe(epochs=epochs, batch=options.batch, lr=usual.lr, weight_decay=usual.weight_decay,
                            label_smoothing=usual.label_smoothing, augment=data.augment,
                            sandwich_every=usual.sandwich_every, largest_first=first, blockwise=then, **more)
    return SupernetTraining(plan, data, [priced], [(1.03 * low, 0.9 * high)], GRID, recipe, 0, CPU)


class Alone:
    """The largest network of the space, trained by itself with the search's own recipe; seconds and images so far."""

    def __init__(self, run: SupernetTraining) -> None:
        self.run, self.seconds, self.images = run, 0.0, 0
        self.net = placement.placed(build_subnet(run.layout, largest(run.layout, run.prices[0])), CPU).train()
        self.optimizer = optimization.optimizer(self.net, run.recipe.lr, run.recipe.weight_decay)
        self.batches = self._batches()

    def step(self) -> None:
        start = time.thread_time()
        batch = next(self.batches)
        STEPPER.step(self._loss, batch, self.net, self.optimizer)
        self.seconds += time.thread_time() - start
        self.images += len(batch[1])

    def _loss(self, images: Tensor, labels: Tensor) -> Loss:
        return F.cross_entropy(self.net(images), labels, label_smoothing=self.run.recipe.label_smoothing), {}

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        data, recipe = self.run.data, self.run.recipe
        while True:
            yield from batches(data.train, data, recipe.batch, generator=torch.Generator(),
                               augment=recipe.augmentation)


def without(run: SupernetTraining, alone: Sequence[Alone]) -> float:
    """Seconds of the next epoch, between whose steps the others take theirs, which are not counted."""
    spent = 0.0

    def on_step(step: int, of: int) -> None:
        nonlocal spent
        start = time.thread_time()
        if step % 2:
            alone[step // 2 % len(alone)].step()
        spent += time.thread_time() - start

    start = time.thread_time()
    run.epoch(on_step)
    return time.thread_time() - start - spent


def gate_step(run: SupernetTraining) -> None:
    """As in the search, without the optimizer: all live branches of one batch, gradients of the gates alone."""
    images = torch.zeros(run.recipe.batch, 3, run.data.size, run.data.size).to(memory_format=torch.channels_last)
    decision = gumbel(run.gates, run.gates.at(0.0, gap_share=0.5), 1.0, torch.Generator())
    loss = F.cross_entropy(run.supernet.train()(images, decision), torch.arange(run.recipe.batch) % 10)
    torch.autograd.grad(loss, [*run.gates.parameters()], allow_unused=True)


def held_bytes(run: SupernetTraining) -> int:
    """Weights and optimizer state."""
    tensors = [*run.supernet.state_dict().values(), *(value for state in run.optimizer.state.values()
                                                      for value in state.values() if isinstance(value, Tensor))]
    return sum(tensor.nbytes for tensor in tensors)


KERNELS, EXPAND, DEPTHS = [3, 5, 7], [3, 4, 6], [2, 3, 4]
STAGES = ((24, 2, 0), (40, 2, 1), (80, 2, 0), (112, 1, 1), (160, 2, 1))  # channels, stride, squeeze-excite
MOBILENET_V3 = """
name: ofa-mbv3
stem: {op: "stem(kernel=3, act=relu)", out: 16, stride: 2}
stages:
  - {out: 16, depth: 1, stride: 1, ops: {mbconv: {kernel: [3], hidden: {min: 1, max: 1}}}}
""" + "".join(f"  - {{out: {out}, depth: 4, stride: {stride}, ops: {{mbconv: {{kernel: [3, 5, 7], se: [{se}], "
              f"hidden: {{min: 3, max: 6, step: 8}}}}}}}}\n" for out, stride, se in STAGES) + """
ops: {mbconv: {kernel: [3, 5, 7], hidden: {min: 3, max: 6, step: 8}}}
head: {op: "head(hidden=960, features=1280)"}
"""


@dataclass(frozen=True)
class Subnet:
    """Kernel and expansion of every block, depth of every stage: the words of OFA."""

    ks: list[int]
    e: list[int]
    d: list[int]


def once_for_all(options: argparse.Namespace) -> None:
    """Largest, smallest and two random networks, forward and backward each, then one step of AdamW."""
    if find_spec("ofa") is None:
        print("skipped: ofa is not installed (pip install --no-deps --target DIR ofa, then PYTHONPATH=DIR)")
        return
    rng = random.Random(0)
    nets = [Subnet([max(KERNELS)] * 20, [max(EXPAND)] * 20, [4] * 5), Subnet([3] * 20, [3] * 20, [2] * 5)]
    nets += [Subnet(rng.choices(KERNELS, k=20), rng.choices(EXPAND, k=20), rng.choices(DEPTHS, k=5)) for _ in range(2)]
    images, labels = torch.randn(options.batch, 3, 128, 128), torch.arange(options.batch) % 10
    packed = images.contiguous(memory_format=torch.channels_last)
    steps = {"ofa as it comes": their_step(nets, images, labels, False), "ours": our_step(nets, packed, labels, True)}
    for again in ("", " again"):
        steps["ofa made equal" + again] = their_step(nets, packed, labels, True)
        steps["ours, no first block" + again] = our_step(nets, packed, labels, False)
    memory = {name: peak_bytes(step) for name, step in steps.items()}
    timings = timed(steps, options.seconds)
    report(timings, timings["ofa made equal"].ms, memory)


def our_step(nets: Sequence[Subnet], images: Tensor, labels: Tensor, first: bool) -> Step:
    """``first``: with our nearest to OFA's first block, which has no expansion; ours has a 1x1 convolution more."""
    plan = layout(Space.parse(yaml.safe_load(MOBILENET_V3)), Task(images.shape[-1], 3, 10))
    net, decisions = placement.placed(Supernet(plan), CPU).train(), [one_hot(arch_of(plan, one, first)) for one in nets]
    return accumulated(net, [partial(net, images, decision) for decision in decisions], labels)


def arch_of(plan: Layout, subnet: Subnet, first: bool) -> Arch:
    """Slot 0 is OFA's fixed first block; slots 1 .. 20 are its five stages of four."""
    ops = [plan.slots[0].ops[0] if first else SKIP]
    for slot, kernel, expand in zip(plan.slots[1:], subnet.ks, subnet.e, strict=True):
        stage, position = divmod(slot.index - 1, 4)
        op = slot.branches[0].op.with_knobs(kernel=kernel, hidden=slot.in_ch * expand)
        ops.append(op if position < subnet.d[stage] else SKIP)
    return Arch(plan.space, plan.task.size, tuple(ops))


def their_step(nets: Sequence[Subnet], images: Tensor, labels: Tensor, equal: bool) -> Step:
    """``equal``: no kernel transforms, ReLU for its hard swish, no first block; else as the package builds it."""
    from ofa.imagenet_classification.elastic_nn.modules.dynamic_op import DynamicSeparableConv2d
    from ofa.imagenet_classification.elastic_nn.networks import OFAMobileNetV3

    DynamicSeparableConv2d.KERNEL_TRANSFORM_MODE = None if equal else 1
    net = OFAMobileNetV3(n_classes=10, dropout_rate=0, ks_list=KERNELS, expand_ratio_list=EXPAND, depth_list=DEPTHS)
    if equal:
        net.blocks[0] = nn.Identity()
        for module in [*net.modules()]:
            for name, child in module.named_children():
                if type(child).__name__ == "Hswish":
                    setattr(module, name, nn.ReLU(inplace=True))
    if images.is_contiguous(memory_format=torch.channels_last):
        net = placement.placed(net, CPU)

    def forward(subnet: Subnet) -> Tensor:
        DynamicSeparableConv2d.KERNEL_TRANSFORM_MODE = None if equal else 1
        net.set_active_subnet(ks=subnet.ks, e=subnet.e, d=subnet.d)
        return net(images)

    return accumulated(net.train(), [partial(forward, subnet) for subnet in nets], labels)


def accumulated(net: nn.Module, forwards: Sequence[Callable[[], Tensor]], labels: Tensor) -> Step:
    optimizer = optimization.optimizer(net, 1e-4, 0.0)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        for forward in forwards:
            F.cross_entropy(forward(), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def timed(steps: Mapping[str, Step], seconds: float) -> dict[str, Timing]:
    """Every step once a round, in random order, the first round not counted; as many rounds as fit, at least 3."""
    runs, rng, samples = {name: clocked(step) for name, step in steps.items()}, random.Random(0), defaultdict(list)
    start, rounds = time.thread_time(), 0
    while rounds < 4 or time.thread_time() - start < seconds * rounds / (rounds + 1):
        for name in rng.sample(list(runs), len(runs)):
            samples[name].append(runs[name]())
        rounds += 1
    return {name: summary(samples[name][1:]) for name in steps}


def clocked(step: Step) -> Run:
    """Milliseconds of this thread: a backward pass on the CPU runs in the thread that asks for it."""

    def run() -> float:
        start = time.thread_time()
        step()
        return (time.thread_time() - start) * 1e3

    return run


def peak_bytes(step: Step) -> int:
    """Most that the allocator has handed out during a step beyond what it had before, the step once warm."""
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = [event for event in json.loads(path.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    sizes = [event["args"]["Bytes"] for event in sorted(events, key=lambda event: event["ts"])]
    return int(np.cumsum([0, *sizes]).max())


def report(timings: Mapping[str, Timing], unit: float, memory: Mapping[str, int] | None = None) -> None:
    """One line a step; the last figure is in units of ``unit`` ms."""
    for name, timing in timings.items():
        held = f"{memory[name] / 2**20:9.1f} MiB" if memory else ""
        print(f"  {name:26} {timing.ms:9.1f} ms ({timing.p10_ms:.1f} to {timing.p90_ms:.1f}, n = {timing.n:2})"
              f"{timing.ms / unit:8.3f}{held}", flush=True)


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "prunode": prunode, "search": search, "gumbel": gumbel_search, "ofa": once_for_all}

if __name__ == "__main__":
    main()
