"""Training steps on a CPU with glibc's allocator as it is, and told to keep the memory that it was given.

    python benchmarks/allocator.py --space ghost --size 32 --batch 32 --rounds 9

Maps of a step are of megabytes: as it is, glibc maps them afresh and returns them after use, so the kernel clears the
same pages in every step. The settings are environment variables that are read when a process starts, so each run is a
child process, in a random order in each round; ``as it is`` runs twice a round, and what differs between the two is the
noise. A ratio above 1 is a gain only where it is beyond the range of the noise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time

import torch

from nas.config.search import Config, resolve
from nas.config.space import checked_space
from nas.decision import prices
from nas.latency import costs
from nas.plan import Task, layout
from nas.training.data import load
from nas.training.recipes import SupernetRecipe
from nas.training.supernet_training import SupernetTraining

MIB = 2**20
KEEPS = {"MALLOC_TOP_PAD_": 64 * MIB, "MALLOC_TRIM_THRESHOLD_": 8192 * MIB, "MALLOC_MMAP_MAX_": 0}
WAYS = ("as it is", "as it is again", "keeps memory")
Times = dict[str, float]  # milliseconds an image: "wall", "cpu" (all threads), and "MiB", the most that was resident


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="ghost")
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--threads", type=int, default=0, help="0: PyTorch's own number")
    parser.add_argument("--epochs", type=int, default=2, help="that are timed, after one that is not")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(timed(options)))
        return
    rounds: list[dict[str, Times]] = []
    for number in range(options.rounds):
        order = random.Random(number).sample(WAYS, len(WAYS))
        rounds.append({way: in_child(way) for way in order})
        print(f"round {number}: " + ", ".join(f"{way} {rounds[-1][way]['wall']:.2f}" for way in WAYS), flush=True)
    report(rounds)


def in_child(way: str) -> Times:
    """Runs this script's training in a process of its own, with the environment of a way."""
    environment = {name: value for name, value in os.environ.items() if name not in KEEPS}
    if way == "keeps memory":
        environment |= {name: str(value) for name, value in KEEPS.items()}
    said = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--child"], env=environment, check=True,
                          stdout=subprocess.PIPE, text=True).stdout
    times: Times = json.loads(said.splitlines()[-1])
    return times


def timed(options: argparse.Namespace) -> Times:
    """Trains a supernet with its gates for some epochs; returns what an image took, of the epochs after the first."""
    import resource

    if options.threads:
        torch.set_num_threads(options.threads)
    words = [f"train.batch={options.batch}", "train.warmup_epochs=0", f"train.search_epochs={1 + options.epochs}",
             "train.settle_epochs=0", "prune=false"]
    config: Config = resolve(None, words, {"space": options.space, "width": options.width, "target": ["gpu-v100"]})
    data = load("digits", data_dir=None, size=options.size, seed=0, limit=options.images)
    space = layout(checked_space(config), Task(options.size, data.in_ch, len(data.classes)))
    priced = prices(space, costs.load("gpu-v100").ms_many)
    least, most = (priced.fixed + sum(end(row.values()) for row in priced.ms) for end in (min, max))
    training = SupernetTraining(space, data, [priced], [(1.05 * least, 0.9 * most)], (-1.0, 0.0, 1.0),
                                SupernetRecipe.from_config(config, data), 0, torch.device("cpu"))
    training.epoch()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(options.epochs):
        training.epoch()
    images = options.epochs * len(data.train)
    return {"wall": 1e3 * (time.perf_counter() - wall) / images, "cpu": 1e3 * (time.process_time() - cpu) / images,
            "MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def report(rounds: list[dict[str, Times]]) -> None:
    """Prints medians, and the ratios of a round beside the noise floor: those of the same way twice."""
    print("\nsettings: " + " ".join(f"{name}={value}" for name, value in KEEPS.items()))
    for way in WAYS:
        wall, cpu, mib = (statistics.median(times[way][what] for times in rounds) for what in ("wall", "cpu", "MiB"))
        print(f"{way:15} median {wall:.3f} ms an image, {cpu:.3f} of CPU, at most {mib:.0f} MiB")
    for what in ("wall", "cpu"):
        for other, name in ((WAYS[2], "as it is / keeps memory"), (WAYS[1], "noise: as it is, twice")):
            ratios = sorted(times[WAYS[0]][what] / times[other][what] for times in rounds)
            print(f"{what:4} {name:24} median {statistics.median(ratios):.3f}, {ratios[0]:.3f} to {ratios[-1]:.3f}")


if __name__ == "__main__":
    main()
