"""What a short supernet training gives to the networks that are taken out of it, by how it is spent.

    python experiments/warmup-cifar10/run.py --data-dir DIR

Every part, one way of training with one seed, trains a supernet for as many images through one network as the others
("no supernet": none), takes the same random networks out of it, judges them, fine-tunes each alike and judges it again;
it appends its line to ``results.jsonl``. The same command goes on with what is missing; at the end the table is
printed.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from scipy.stats import kendalltau

from nas import sampling
from nas.arch import Arch
from nas.cli.progress import TerminalProgress
from nas.decision import largest, prices, smallest
from nas.latency import costs
from nas.plan import Layout, Task, layout
from nas.space import Space
from nas.subnet import Subnet, build
from nas.training import evaluation, finetune, placement, randomness
from nas.training.data import Data, load
from nas.training.recipes import FineTuningRecipe, SupernetRecipe
from nas.training.supernet_training import SupernetTraining

sys.path.append(str(Path(__file__).resolve().parents[1]))
from results import keep, standing, told

HERE = Path(__file__).resolve().parent
CPU = torch.device("cpu")
CALIBRATED_ON = 500
# (epochs of warm-up, shares of it): networks a batch, times epochs, are 1.5 x 2, 1 x 3 and (1 + 2) / 2 x 2
WAYS: dict[str, tuple[int, dict[str, Any]]] = {
    "random and sandwich": (2, {}),
    "largest alone": (3, {"largest_first": 1.0}),
    "largest, then blockwise": (2, {"largest_first": 0.5, "blockwise": 0.5}),
    "no supernet": (0, {}),
}


def part(way: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One line: held-out loss and accuracy of each network as inherited and after fine-tuning."""
    data = load("cifar10", data_dir=options.data_dir, size=None, seed=seed, limit=options.limit)
    at = layout(Space.load(options.space), Task(data.size, data.in_ch, len(data.classes)))
    start = time.thread_time()
    run = trained(way, seed, at, data, options)
    seconds = time.thread_time() - start
    rng = random.Random(f"networks {seed}")
    networks = [sampling.sample(at, rng) for _ in range(options.networks)]
    if WAYS[way][0]:
        ends = [judged(run.inherit(arch), data, seed) for arch in (largest(at, run.prices[0]),
                                                                   smallest(at, run.prices[0]))]
        before = [judged(run.inherit(arch), data, seed) for arch in networks]
    else:
        ends, before = [], []
    after = [tuned(beginning(run, at, arch, way, seed), arch, data, seed, options) for arch in networks]
    return {"way": way, "seed": seed, "supernet_s": round(seconds, 1), "ends": ends, "inherited": before,
            "tuned": after, "networks": [arch.id for arch in networks]}


def trained(way: str, seed: int, at: Layout, data: Data, options: argparse.Namespace) -> SupernetTraining:
    epochs, shares = WAYS[way]
    priced = prices(at, costs.load(options.target).ms_many)
    low = priced.fixed + sum(min(row.values()) for row in priced.ms)
    high = priced.fixed + sum(max(row.values()) for row in priced.ms)
    recipe = SupernetRecipe(epochs={"warmup": epochs, "search": 0, "settle": 0}, batch=options.batch, lr=0.003,
                            weight_decay=0.02, label_smoothing=0.05, augment=data.augment, sandwich_every=4, **shares)
    run = SupernetTraining(at, data, [priced], [(low * 1.05, high * 0.9)], (0.0,), recipe, seed, CPU)
    while not run.finished:
        run.epoch()
    return run


def beginning(run: SupernetTraining, at: Layout, arch: Arch, way: str, seed: int) -> Subnet:
    """What fine-tuning begins with: the supernet's weights, or random ones."""
    if WAYS[way][0]:
        return run.inherit(arch)
    with randomness.seeded(seed, arch.id, "scratch"):
        return build(at, arch)


def tuned(net: Subnet, arch: Arch, data: Data, seed: int, options: argparse.Namespace) -> list[float]:
    recipe = FineTuningRecipe(epochs=1, batch=options.batch, lr=options.finetune_lr, weight_decay=0.02,
                              label_smoothing=0.05, augment=data.augment, distill_weight=0.0)
    tuning = finetune.FineTuning(arch.id, net, None, data, recipe, seed, CPU)
    while not tuning.finished:
        tuning.epoch()
    return judged(net, data, seed)


def judged(net: Subnet, data: Data, seed: int) -> list[float]:
    """Loss and accuracy on the selection split, batch norms recomputed."""
    net = placement.placed(net, CPU)
    evaluation.recalibrate(net, evaluation.calibration_images(data, CALIBRATED_ON, 128, CPU, seed))
    result = evaluation.evaluate(net, data.select, data, CPU)
    return [round(result.loss, 4), round(result.accuracy, 4)]


def show(lines: list[dict[str, Any]]) -> None:
    """Markdown: a row a way, means over networks with the standard deviation over networks and seeds."""
    print("| way | n | largest | inherited: loss | accuracy, % | fine-tuned: loss | accuracy, % | tau | supernet, s |\n"
          f"|{'---|' * 9}")
    for way in dict.fromkeys(line["way"] for line in lines):
        own = [line for line in lines if line["way"] == way]
        cells = [way, f"{len(own)} x {len(own[0]['tuned'])}", "-", "-", "-"]
        if own[0]["inherited"]:
            cells[2] = f"{100 * statistics.fmean(line['ends'][0][1] for line in own):.1f}"
            cells[3:] = _figures([pair for line in own for pair in line["inherited"]])
        cells += _figures([pair for line in own for pair in line["tuned"]])
        taus = [kendalltau([one[0] for one in line["inherited"]], [one[0] for one in line["tuned"]]).statistic
                for line in own if line["inherited"]]
        cells += [f"{statistics.fmean(taus):.2f}" if taus else "-",
                  f"{statistics.fmean(line['supernet_s'] for line in own):.0f}"]
        print(f"| {' | '.join(cells)} |")


def _figures(pairs: list[list[float]]) -> list[str]:
    losses, accuracies = zip(*pairs, strict=True)
    return [f"{statistics.fmean(losses):.3f} +- {statistics.stdev(losses):.3f}",
            f"{100 * statistics.fmean(accuracies):.1f} +- {100 * statistics.stdev(accuracies):.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="where CIFAR-10 lies")
    parser.add_argument("--out", type=Path, default=HERE / "results.jsonl")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--space", default="ghost@0.5")
    parser.add_argument("--target", default="gpu-v100", help="only says which network is the largest")
    parser.add_argument("--limit", type=int, default=10_000)
    parser.add_argument("--networks", type=int, default=6)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--finetune-lr", type=float, default=0.002)
    options = parser.parse_args()
    if options.networks < 2:
        parser.error(f"--networks {options.networks}: a spread needs 2 at least")
    torch.set_num_threads(1)
    with told():
        settings = {key: getattr(options, key) for key in ("space", "target", "limit", "networks", "batch",
                                                           "finetune_lr")}
        lines = standing(options.out, settings)
        stand = {(line["way"], line["seed"]) for line in lines}
        left = [(way, seed) for seed in range(options.seeds) for way in WAYS if (way, seed) not in stand]
        with TerminalProgress().task("parts", len(left)) as task:
            for way, seed in left:
                lines.append(part(way, seed, options) | {"settings": settings})
                keep(options.out, lines)
                task.advance()
        show(lines)


if __name__ == "__main__":
    main()
