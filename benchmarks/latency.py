"""Predicted against measured latency of whole random networks on this machine's CPU, beside the noise floor.

    python benchmarks/latency.py --space ghost --size 32 --table cpu32.json

Fills the table as ``nas profile`` does, then draws networks that neither rows nor correction have seen and measures
each twice in the same interleaved rounds, beside the table's yardstick (``nas.latency.timing.Steady``). Their mean is
predicted by the table, by the operators timed alone, and by a line through the MACs of other networks. The floor is the
one measurement as a prediction of the other.
"""

import argparse
import random
import time
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau

from nas import genome
from nas.latency.bench import Clocked
from nas.latency.devices.onnxruntime import Cpu
from nas.latency.profile import one_torch_thread, profile, yardstick_of
from nas.latency.table import LatencyTable
from nas.latency.timing import Steady
from nas.ops import build
from nas.plan import Layout, OpKey, Task, layout, macs, plan
from nas.space import Space

FITTED_ON = 15  # networks that the line through MACs is fitted on
SECONDS_A_GRAPH = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="ghost")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--networks", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path, required=True)
    options = parser.parse_args()
    plan_ = layout(Space.load(options.space), Task(options.size, 3, 1000 if options.size >= 128 else 10))
    device = Cpu(options.threads, precision=options.precision)
    start = time.monotonic()
    done = profile(plan_, options.table, device=device, progress=_tell)
    seconds = time.monotonic() - start
    table = LatencyTable.load(options.table)
    print(f"{options.space} at {options.size}, {options.precision}, {options.threads} threads, "
          f"{device.conditions()['processor']}: "
          f"{done['measured']} rows in {seconds:.0f} s, {done['flagged']} flagged; knots held out: "
          f"{done['knot_error'] or 'none'}")
    with one_torch_thread():
        _compare(plan_, table, device, options.networks, options.seed)


def _compare(plan_: Layout, table: LatencyTable, device: Cpu, count: int, seed: int) -> None:
    rng = random.Random(f"benchmark {seed}")
    drawn = [plan(plan_, genome.sample_thinned(plan_, rng)) for _ in range(count + FITTED_ON)]
    nets, others = drawn[:count], drawn[count:]
    steady = yardstick_of(plan_, table, device, rng)
    first, second = Clocked(plan_, device, steady).networks(drawn)
    measured, drift = (first + second) / 2, steady.drift
    measured, fitted_on = measured[:count], measured[count:]
    alone = _alone(device, {key for keys in nets for key in keys}, steady)
    line = np.polyfit([_macs(keys) for keys in others], fitted_on, 1)
    predictions = {
        "the same measured again": (first[:count], second[:count]),
        "table": (np.array([sum(table.ms_many(keys)) for keys in nets]), measured),
        "operators alone": (np.array([sum(alone[key] for key in keys) for keys in nets]), measured),
        "line through MACs": (np.polyval(line, [_macs(keys) for keys in nets]), measured),
    }
    print(f"{count} networks, {measured.min():.3f} .. {measured.max():.3f} ms; the machine took {drift:.2f} times as "
          "long as for the table")
    for name, (predicted, truth) in predictions.items():
        error = predicted / truth - 1
        print(f"  {name:24} MAPE {np.abs(error).mean():7.2%}  bias {error.mean():+7.2%}  "
              f"tau {kendalltau(predicted, truth).statistic:.3f}")


def _alone(device: Cpu, keys: set[OpKey], steady: Steady) -> dict[OpKey, float]:
    """Every operator as a graph of its own, in rounds of a hundred."""
    ordered, result = sorted(keys, key=str), {}
    for start in range(0, len(ordered), 100):
        part = ordered[start : start + 100]
        runs = {str(i): device.prepare(build(key.op, key.in_ch, key.out_ch, key.stride), in_ch=key.in_ch, size=key.size)
                for i, key in enumerate(part)}
        timings = steady.time(runs, SECONDS_A_GRAPH * len(runs))
        result |= {key: timings[str(i)].ms for i, key in enumerate(part)}
    return result


def _macs(keys: list[OpKey]) -> float:
    return float(sum(macs(key) for key in keys))


def _tell(done: int, total: int, left: float) -> None:
    print(f"\rrow {done} of {total}, {left:.0f} s left ", end="" if done < total else "\n", flush=True)


if __name__ == "__main__":
    main()
