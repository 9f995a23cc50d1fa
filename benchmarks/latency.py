"""How right predicted latencies are, each figure beside its noise floor. One part a call:

    python benchmarks/latency.py cpu --space ghost --size 32 --table cpu32.json      [--precision int8] [--threads 2]
    python benchmarks/latency.py npu --target ethos-u55-128 --space ghost --size 224
    python benchmarks/latency.py v100
    python benchmarks/latency.py predict

``cpu`` fills the table as ``nas profile`` does, then draws networks that neither rows nor correction have seen and
measures each twice in the same interleaved rounds, beside the table's yardstick (``nas.latency.timing.Steady``). Their
mean is predicted by the table, by the operators timed alone, and by a line through the MACs of other networks. The
floor is the one measurement as a prediction of the other. ``npu`` compares the shipped table with Vela's figures for
whole networks. ``v100`` prints what ``experiments/v100-kernel-model`` wrote into the shipped tables. ``predict``
asks ``nas predict`` about four networks of torchvision. ``benchmarks/int8.py`` has the int8 files.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from scipy.stats import kendalltau

from nas import sampling
from nas.cli.progress import TerminalProgress
from nas.files import resolve
from nas.latency.correction import uncorrected
from nas.latency.costs import known, load
from nas.latency.devices.onnxruntime import Cpu
from nas.latency.predict import predict
from nas.latency.profile import clocked, one_torch_thread, profile
from nas.latency.table import LatencyTable
from nas.latency.timing import Steady
from nas.ops import build
from nas.plan import Layout, OpKey, Task, candidates, layout, macs, plan
from nas.space import Space

FITTED_ON = 30  # networks that the line through MACs is fitted on
SECONDS_A_GRAPH = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    for part in (_cpu, _npu):
        sub = parts.add_parser(part.__name__.removeprefix("_"))
        sub.set_defaults(part=part)
        sub.add_argument("--space", default="ghost")
        sub.add_argument("--size", type=int, default=32)
        sub.add_argument("--networks", type=int, default=40)
        sub.add_argument("--seed", type=int, default=0)
        if part is _cpu:
            sub.add_argument("--threads", type=int, default=1)
            sub.add_argument("--precision", default="fp32")
            sub.add_argument("--table", type=Path, required=True)
        else:
            sub.add_argument("--target", default="ethos-u55-128")
    parts.add_parser("v100").set_defaults(part=_v100)
    parts.add_parser("predict").set_defaults(part=_predict)
    options = parser.parse_args()
    options.part(options)


def _laid_out(options: argparse.Namespace) -> Layout:
    return layout(Space.load(options.space), Task(options.size, 3, 1000 if options.size >= 128 else 10))


def _cpu(options: argparse.Namespace) -> None:
    plan_, device = _laid_out(options), Cpu(options.threads, precision=options.precision)
    start = time.monotonic()
    done = profile(plan_, options.table, device=device, progress=TerminalProgress())
    seconds = time.monotonic() - start
    table = LatencyTable.load(options.table)
    print(f"{options.space} at {options.size}, {options.precision}, {options.threads} threads, "
          f"{device.conditions().processor}: {done.measured} rows in {seconds:.0f} s, {done.flagged} flagged")
    if knots := done.knot_error:
        print(f"  {knots.n} widths between the knots: MAPE {knots.mape:.2%}; measured again {knots.noise_mape:.2%}")
    with one_torch_thread():
        _compare(plan_, table, device, options.networks, options.seed)


def _npu(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / f"{options.target}.json"
        copy.write_bytes(resolve("latency_tables", options.target, ".json").read_bytes())
        done = profile(_laid_out(options), copy, device=options.target, validate=options.networks,
                       rng_seed=options.seed)
    check = done.validation
    assert check is not None
    print(f"{options.target}, {options.space} at {options.size}, {check.n} networks ({done.measured} rows were "
          f"missing): sum of rows against Vela on the whole network: MAPE {check.mape:.2%}, bias "
          f"{check.bias:+.2%}, tau {check.kendall:.3f}; Vela again: {check.noise_mape:.2%}")


def _v100(_: argparse.Namespace) -> None:
    for name in sorted(name for name in known() if name.startswith("gpu-v100")):
        meta = load(name).meta
        assert meta.held_out and meta.held_out.groups and meta.model_extra
        held = meta.held_out.groups
        print(f"{name:22} (in_ch, out_ch) groups held out: median {held.median:5.2f} %, MAPE {held.mape:5.2f} %")
        for network in meta.model_extra["calibration"] if name == "gpu-v100" else []:
            print(f"{'':24}{network['network']}, left out: {network['left_out_scale_%']:+.1f} %")


def _predict(_: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("mobilenet_v3_small", "resnet18", "efficientnet_b0", "regnet_y_400mf"):
            file = Path(folder) / f"{name}.onnx"
            network = torchvision.models.get_model(name, weights=None).eval()
            torch.onnx.export(network, (torch.zeros(1, 3, 224, 224),), str(file), dynamo=False)
            for target in ("gpu-v100", "ethos-u55-128"):
                start = time.monotonic()
                answer = predict(file, load(target))
                print(f"{name:20} {target:14} {answer.ms:7.2f} ms, {len(answer.operators)} operators, "
                      f"{len(answer.unknown)} unknown, in {time.monotonic() - start:.1f} s")


def _compare(plan_: Layout, table: LatencyTable, device: Cpu, count: int, seed: int) -> None:
    rng = random.Random(f"benchmark {seed}")
    drawn = [plan(plan_, sampling.sample_thinned(plan_, rng)) for _ in range(count + FITTED_ON)]
    nets, others = drawn[:count], drawn[count:]
    bench = clocked(plan_, table, device, rng)
    first, second = bench.networks(drawn)
    measured, drift = (first + second) / 2, bench.drift
    measured, fitted_on = measured[:count], measured[count:]
    alone = _alone(device, {key for keys in nets for key in keys}, bench.steady)
    line = np.polyfit([_macs(keys) for keys in others], fitted_on, 1)
    raw = LatencyTable(table.name, table.meta, map(uncorrected, table.rows.values()))
    sums, sums_of_others, sizes, sizes_of_others = (np.array([of(keys) for keys in group]) for of in (  # type: ignore[no-untyped-call]
        lambda keys: _grouped(plan_, keys, lambda key: [table.ms(key)]),
        lambda keys: _grouped(plan_, keys, lambda key: [macs(key) / 1e9, _moved(key) / 1e9, 1e-3]),
    ) for group in (nets, others))
    predictions = {
        "the same measured again": (first[:count], second[:count]),
        "table": np.array([sum(table.ms_many(keys)) for keys in nets]),
        "table, uncorrected": np.array([sum(raw.ms_many(keys)) for keys in nets]),
        f"{FITTED_ON} networks alone": _regressed(sizes_of_others, fitted_on, sizes, 0.0),
        "table and they": _regressed(sums_of_others, fitted_on, sums, 1.0),
        "operators alone": np.array([sum(alone[key] for key in keys) for keys in nets]),
        "line through MACs": np.polyval(line, [_macs(keys) for keys in nets]),
    }
    print(f"{count} networks, {measured.min():.3f} .. {measured.max():.3f} ms; the machine took {drift:.2f} times as "
          "long as for the table")
    for name, given in predictions.items():
        predicted, truth = given if isinstance(given, tuple) else (given, measured)
        error = predicted / truth - 1
        print(f"  {name:24} MAPE {np.abs(error).mean():7.2%}  bias {error.mean():+7.2%}  "
              f"tau {kendalltau(predicted, truth).statistic:.3f}")


def _grouped(plan_: Layout, keys: list[OpKey], of: Callable[[OpKey], list[float]]) -> list[float]:
    """Sums over the operators of one family and input size: what a regression on whole networks can tell apart."""
    groups = sorted({(key.op.name, key.size) for key in candidates(plan_)})
    sums = {group: np.zeros(len(of(keys[0]))) for group in groups}
    for key in keys:
        sums[key.op.name, key.size] += of(key)
    return [value for group in groups for value in sums[group]]


def _moved(key: OpKey) -> int:
    return key.in_ch * key.size**2 + key.out_ch * (key.size // key.stride) ** 2


def _regressed(x: np.ndarray, ms: np.ndarray, new: np.ndarray, prior: float) -> np.ndarray:
    """``new @ w`` with the least relative squares of ``x @ w - ms``, shrunk towards ``prior`` as leave-one-out says."""
    used = np.abs(x).sum(0) > 0
    a = (x / ms[:, None])[:, used]
    scale = np.linalg.norm(a, axis=0)
    a, left = a / scale, 1 - prior * a.sum(1)
    fits = []
    for strength in np.logspace(-5, 3, 33):
        solve = np.linalg.solve(a.T @ a + strength * np.eye(a.shape[1]), a.T)
        hat = a @ solve
        fits.append((np.abs((left - hat @ left) / (1 - np.diag(hat))).mean(), solve @ left))
    return np.asarray(new[:, used] @ (prior + min(fits, key=lambda fit: fit[0])[1] / scale))


def _alone(device: Cpu, keys: set[OpKey], steady: Steady) -> dict[OpKey, float]:
    """Every operator as a graph of its own, in rounds of a hundred."""
    ordered, result = sorted(keys, key=str), dict[OpKey, float]()
    for start in range(0, len(ordered), 100):
        part = ordered[start : start + 100]
        timings = steady.time(lambda part=part: {  # type: ignore[misc]
            str(i): device.prepare(build(key.op, key.in_ch, key.out_ch, key.stride), in_ch=key.in_ch, size=key.size)
            for i, key in enumerate(part)}, SECONDS_A_GRAPH * len(part))
        result |= {key: timings[str(i)].ms for i, key in enumerate(part)}
    return result


def _macs(keys: list[OpKey]) -> float:
    return float(sum(macs(key) for key in keys))


if __name__ == "__main__":
    main()
