"""Measuring finished networks: each by itself against all in the same rounds, as picks are before and after training.

    python benchmarks/together.py RUN --rounds 5

RUN is a finished search for this machine. The ways take turns, each time in new processes. A figure of a network is its
milliseconds, scaled to when the table was made; what counts is how far its figures of several rounds lie apart. While
the machine is slow, a figure is taken again: up to three times of a network alone, once of all together.
"""

import argparse
import random
import resource
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from nas.arch import Arch
from nas.latency import profile
from nas.pipeline.finetune import load_weights
from nas.pipeline.front import read_fronts
from nas.pipeline.inputs import Inputs
from nas.pipeline.measuring import Network, is_measured_here, measure
from nas.pipeline.setup import load_finished_inputs
from nas.run.directory import Run
from nas.run.settings import settings_of

Figures = dict[Arch, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    run = Run.existing(options.run)
    inputs = load_finished_inputs(settings_of(run), run, read_fronts(run)[""].target)
    target = next(target for target in inputs.costs if is_measured_here(inputs, target))
    networks = picks(run, inputs)
    ways: dict[str, Callable[[], Figures]] = {
        "alone": partial(alone, inputs, target, networks, 3), "together": partial(timed, inputs, target, networks, 1)}
    figures: dict[str, list[Figures]] = {way: [] for way in ways}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for round_ in range(options.rounds):
        for way in random.Random(round_).sample(sorted(ways), len(ways)):
            began = spent()
            figures[way].append(ways[way]())
            seconds[way].append(spent() - began)
            print(f"{way:8} {seconds[way][-1]:5.1f} s {' '.join(f'{ms:.4f}' for ms in figures[way][-1].values())}",
                  flush=True)
    print(f"{len(networks)} networks of {inputs.layout.space} on {target}, {options.rounds} rounds")
    for way in ways:
        ms = np.array([[of_round[arch] for arch in networks] for of_round in figures[way]])
        deviations = 100 * ms.std(0, ddof=1) / ms.mean(0)
        print(f"{way:8} {np.mean(seconds[way]):5.1f} processor seconds; standard deviation "
              f"{np.sqrt(np.mean(deviations**2)):.2f} % ({deviations.min():.2f} to {deviations.max():.2f}); ms "
              f"{' '.join(f'{value:.4f}' for value in ms.mean(0))}")


def picks(run: Run, inputs: Inputs) -> dict[Arch, Network]:
    """Returns the networks of a front without exits, with their delivered files."""
    networks = {}
    for card in read_fronts(run)[""].cards:
        if not card.exits:
            arch = Arch.from_json(run.read_json(f"archs/{card.id}/arch.json"))
            files = {"float": card.onnx, **({"int8": card.int8_onnx} if card.int8_onnx else {})}
            networks[arch] = Network(load_weights(inputs.of(arch), arch, ""),
                                     {kind: run.file(name) for kind, name in files.items()})
    return networks


def alone(inputs: Inputs, target: str, networks: Mapping[Arch, Network], again: int) -> Figures:
    return {arch: timed(inputs, target, {arch: network}, again)[arch] for arch, network in networks.items()}


def timed(inputs: Inputs, target: str, networks: Mapping[Arch, Network], again: int) -> Figures:
    profile.CHECKED_AGAIN = again
    return {arch: time.ms for arch, time in measure(inputs, target, networks).items() if time.ms is not None}


def spent() -> float:
    """Returns the seconds of processor that this process and those that it forked have used."""
    parts = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in parts)


if __name__ == "__main__":
    main()
