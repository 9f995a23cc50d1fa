"""Fine-tuning of several networks: side by side on one thread each, against one after the other on all threads.

    python benchmarks/side_by_side.py --space ghost --width 0.5 --size 32 --batch 64

Both ways in turn, in one process, on the same random networks and images; the same way twice tells the noise.
"""

import argparse
import random
import threading
import time
from collections.abc import Callable
from functools import partial

import torch

from nas import sampling
from nas.pipeline.finetune import side_by_side
from nas.plan import Layout, Task, layout
from nas.space import Space
from nas.subnet import build
from nas.training.data import load
from nas.training.finetune import FineTuning
from nas.training.recipes import FineTuningRecipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="ghost")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--networks", type=int, default=torch.get_num_threads())
    parser.add_argument("--images", type=int, default=1200)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    plan = layout(Space.load(options.space).scaled(options.width), Task(options.size, 3, 10))
    found: dict[str, list[float]] = {"in turn": [], "in turn again": [], "side by side": []}
    for round_ in range(options.rounds):
        for way in random.Random(round_).sample(sorted(found), len(found)):
            found[way].append(seconds(plan, options, way == "side by side"))
    threads = torch.get_num_threads()
    print(f"{options.networks} networks of {options.space} at {options.size}, {threads} threads, batch "
          f"{options.batch}, {options.rounds} rounds")
    for way, times in found.items():
        print(f"{way:14} best {min(times):6.2f} s   {' '.join(f'{t:.2f}' for t in times)}")
    best = {way: min(times) for way, times in found.items()}
    print(f"in turn / side by side {best['in turn'] / best['side by side']:.2f}; "
          f"in turn / in turn again {best['in turn'] / best['in turn again']:.2f}")


def seconds(plan: Layout, options: argparse.Namespace, together: bool) -> float:
    data = load("digits", data_dir=None, size=options.size, seed=0, limit=options.images)
    recipe = FineTuningRecipe(epochs=1, batch=options.batch, lr=0.002, weight_decay=0.02, label_smoothing=0.05,
                              augment=data.augment, distill_weight=0.0)
    rng, work = random.Random(0), list[Callable[[], object]]()
    for i in range(options.networks):
        model = build(plan, sampling.sample(plan, rng))
        work.append(FineTuning(str(i), model, None, data, recipe, 0, torch.device("cpu")).epoch)
    start = time.perf_counter()
    if together:
        side_by_side([partial(_run, one) for one in work], options.networks, threading.Event())
    else:
        for one in work:
            one()
    return time.perf_counter() - start


def _run(epoch: Callable[[], object]) -> None:
    epoch()


if __name__ == "__main__":
    main()
