"""Fits gpu-v100's kernel models to the published TensorRT rows and writes the shipped tables.

    python experiments/v100-kernel-model/fit.py --data ../shared/data/v100 --out latency_tables
    python experiments/v100-kernel-model/fit.py --others --members 1 --width 48 --folds 3

Rows: single convolutions on a V100 (alibaba/lightweight-neural-architecture-search, Apache-2.0, commit 8ccaf88).
Networks: GPUNet-0/1/2 with their published latencies (NVIDIA/DeepLearningExamples, Apache-2.0).
"""

from __future__ import annotations

import argparse
import csv
import datetime
import gzip
import json
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from networks import PADDED, PUBLISHED_MS, Array, calibration, transferred
from torch import Tensor, nn

from nas.latency.fusion import Kernel
from nas.latency.kernel_model import (
    FEATURES,
    KernelModel,
    Layer,
    Limits,
    ModelFile,
    ModelMeta,
    Roofline,
    Shapes,
    Variant,
)

HERE = Path(__file__).resolve().parent
BYTES = {"fp16": 2, "fp32": 4, "int8": 1}  # an element
# V100: 112 TFLOPS fp16 (tensor cores), 15.7 fp32, 62 int8 (no tensor cores); 900 GB/s
MACS_PER_MS = {"fp16": 5e10, "fp32": 7e9, "int8": 3e10}
FLOOR_MS = {"fp16": 0.0085, "fp32": 0.0105, "int8": 0.0085}  # launch overhead: hardly a row is below
SOURCE = ("alibaba/lightweight-neural-architecture-search 8ccaf88 (rows), NVIDIA/DeepLearningExamples (networks); "
          "both Apache-2.0")


@dataclass(frozen=True)
class Setting:
    """What a table is for."""

    precision: str
    batch: int

    @property
    def name(self) -> str:
        """``gpu-v100`` for fp16 and batch 1; what differs is added, such as ``gpu-v100-int8-b128``."""
        precision = "" if self.precision == "fp16" else f"-{self.precision}"
        return f"gpu-v100{precision}" + ("" if self.batch == 1 else f"-b{self.batch}")

    @property
    def roofline(self) -> Roofline:
        return Roofline(macs_per_ms=MACS_PER_MS[self.precision], bytes_per_ms=9e8, launch_ms=0.008,
                        processors=80)


USUAL = Setting("fp16", 1)
OTHERS = [Setting(p, b) for p in BYTES for b in (1, 32, 64, 128) if (p, b) != ("fp16", 1)]


def read_rows(path: Path, setting: Setting) -> tuple[list[Kernel], Array]:
    """Kernels and their ms, [n]."""
    found, ms = [], []
    with gzip.open(path, "rt") as file:
        for r in csv.DictReader(file):
            if (r["precision"], r["batch"]) != (setting.precision, str(setting.batch)):
                continue
            i, o, size, stride = (int(r[c]) for c in ("in_ch", "out_ch", "in_h", "stride"))
            groups = i if r["conv_type"] == "depthwise" else 1
            found.append(Kernel("conv", i, o, size, -(-size // stride), float(r["kernel"]), stride, groups,
                                r["add_fused"] == "1"))
            ms.append(float(r["latency_ms"]))
    return found, np.array(ms)


def shapes(rows: list[Kernel], setting: Setting) -> Shapes:
    c = np.array([(k.groups > 1, k.in_ch, k.out_ch, k.size_in, k.size_out, k.kernel, k.stride, k.fused_add)
                  for k in rows], float).T
    return Shapes(c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7], BYTES[setting.precision], setting.batch)


def wider_pairs(rows: list[Kernel], n: int, rng: np.random.Generator) -> tuple[list[Kernel], list[Kernel]]:
    """Shapes around the rows, and the same with more input or output channels: the second should not be cheaper."""
    narrow, wide = list[Kernel](), list[Kernel]()
    for index in rng.integers(0, len(rows), n):
        k = rows[index]
        jitter, grow, size = np.exp(rng.uniform(-0.5, 0.5, 2)), float(np.exp(rng.uniform(0, 0.5))), k.size_in
        size = max(5, min(480, round(size * float(np.exp(rng.uniform(-0.1, 0.1))))))
        i, o = _eighths(k.in_ch * jitter[0]), _eighths(k.out_ch * jitter[1])
        i = k.in_ch if k.in_ch == 3 else o if k.groups > 1 else i
        more_in, more_out = _eighths(i * grow + 8), _eighths(o * grow + 8)
        both = k.groups > 1
        widen_in = both or (rng.random() < 0.5 and k.in_ch != 3)
        i2, o2 = (more_in if widen_in else i), (more_out if both or not widen_in else o)
        if i2 <= 4096 and o2 <= 2560:
            for into, a, b in ((narrow, i, o), (wide, i2, o2)):
                into.append(Kernel("conv", a, b, size, -(-size // k.stride), k.kernel, k.stride, a if both else 1,
                                   k.fused_add))
    return narrow, wide


def _eighths(channels: float) -> int:
    return max(8, round(channels / 8) * 8)


class Rows:
    """What training reads: features, log roofline and log ms of rows, and pairs for the monotone penalty."""

    def __init__(self, rows: list[Kernel], ms: Array, pairs: tuple[list[Kernel], list[Kernel]],
                 setting: Setting) -> None:
        s, roofline = shapes(rows, setting), setting.roofline
        features = s.features(roofline)
        self.residual = np.log(ms) - np.log(s.roofline_ms(roofline))
        self.mean, self.scale = features.mean(0), features.std(0) + 1e-6
        self.x, self.y = self._tensor(features), torch.tensor(self.residual, dtype=torch.float32)
        both = [shapes(side, setting) for side in pairs]
        self.narrow, self.wide = (self._tensor(p.features(roofline)) for p in both)
        logs = [np.log(p.roofline_ms(roofline)) for p in both]
        self.rise = torch.tensor(logs[1] - logs[0], dtype=torch.float32)

    def _tensor(self, features: Array) -> Tensor:
        return torch.tensor((features - self.mean) / self.scale, dtype=torch.float32)


def train(rows: Rows, seed: int, epochs: int, monotone: float, width: int, batch: int = 512) -> nn.Sequential:
    """One network for the residual: smooth L1 on the rows, hinge on pairs where more channels would be cheaper."""
    generator = torch.Generator().manual_seed(seed)
    net = _network(width, generator)
    steps = epochs * (len(rows.x) // batch)
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps, pct_start=0.1)
    for _ in range(epochs):
        parts = torch.randperm(len(rows.x), generator=generator).split(batch)  # type: ignore[no-untyped-call]
        for chosen in parts[: len(rows.x) // batch]:
            pair = torch.randint(0, len(rows.rise), (batch // 4,), generator=generator)
            out = net(torch.cat([rows.x[chosen], rows.narrow[pair], rows.wide[pair]]))[:, 0]
            own, narrow, wide = out.split([batch, batch // 4, batch // 4])
            loss = nn.functional.smooth_l1_loss(own, rows.y[chosen], beta=0.03)
            loss = loss + monotone * torch.relu(narrow - wide - rows.rise[pair]).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return net


def _network(width: int, generator: torch.Generator) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in ((len(FEATURES), width), (width, width), (width, width), (width, 1)):
        linear = nn.Linear(inputs, outputs)
        for parameter in linear.parameters():
            nn.init.uniform_(parameter, -(inputs**-0.5), inputs**-0.5, generator=generator)
        layers += [linear, nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def variant(rows: list[Kernel], ms: Array, setting: Setting, args: argparse.Namespace) -> Variant:
    """A model fitted to these rows, without correction."""
    data = Rows(rows, ms, wider_pairs(rows, 40_000, np.random.default_rng(args.seed)), setting)
    nets = [train(data, args.seed + i, args.epochs, args.monotone, args.width) for i in range(args.members)]
    dense = [k for k in rows if k.groups == 1]
    limits = Limits(in_ch=_range(k.in_ch for k in dense), out_ch=_range(k.out_ch for k in dense),
                    size=_range(k.size_in for k in rows), residual=_range(data.residual))
    return Variant(element_bytes=BYTES[setting.precision], batch=setting.batch, roofline=setting.roofline,
                   floor_ms=FLOOR_MS[setting.precision], limits=limits, features=list(FEATURES),
                   mean=_short(data.mean), scale=_short(data.scale),
                   networks=[_layers(net, args.digits) for net in nets], correction=PADDED)


def _range(values: Any) -> tuple[float, float]:
    low_to_high = sorted(float(v) for v in values)
    return low_to_high[0], low_to_high[-1]


def _layers(net: nn.Sequential, digits: int) -> list[Layer]:
    linears = [layer for layer in net if isinstance(layer, nn.Linear)]
    return [Layer(weight=[_short(row, digits) for row in layer.weight.tolist()],
                  bias=_short(layer.bias.tolist(), digits)) for layer in linears]


def _short(values: Any, digits: int = 5) -> list[float]:
    return [float(f"{v:.{digits}g}") for v in values]


def model_of(setting: Setting, fitted: Variant, **notes: Any) -> KernelModel:
    """The model as its file has it, with ``notes`` in its meta."""
    meta = ModelMeta.model_validate({
        "device": "NVIDIA V100", "runtime": "TensorRT", "precision": setting.precision, "batch": setting.batch,
        "method": "kernel-database", "source": SOURCE, "date": datetime.date.today().isoformat(), **notes})
    file = ModelFile(name=setting.name, meta=meta, variants={f"{setting.precision}-batch{setting.batch}": fitted})
    return KernelModel(file, fitted)


def held_out(rows: list[Kernel], ms: Array, folds: Array, setting: Setting,
             args: argparse.Namespace) -> dict[str, float]:
    """Errors in % of rows predicted by models that saw no row of their fold; fold -1 is known to all."""
    predicted = np.zeros(len(ms))
    for fold in range(max(folds) + 1):
        test = np.flatnonzero(folds == fold)
        kept = np.flatnonzero(folds != fold)
        model = model_of(setting, variant([rows[i] for i in kept], ms[kept], setting, args))
        predicted[test] = model.raw_ms([rows[i] for i in test])
        print(f"fold {fold}:", errors(predicted[test], ms[test]), file=sys.stderr, flush=True)
    return errors(predicted[folds >= 0], ms[folds >= 0])


def errors(predicted: Array, ms: Array) -> dict[str, float]:
    off = 100 * np.abs(predicted / ms - 1)
    return {"median_%": round(float(np.median(off)), 2), "mape_%": round(float(off.mean()), 2)}


def group_folds(rows: list[Kernel], n: int, seed: int) -> Array:
    """Whole (in_ch, out_ch, dense or depthwise) groups in one fold."""
    groups = sorted({(k.in_ch, k.out_ch, k.groups > 1) for k in rows})
    fold = dict(zip(groups, np.random.default_rng(seed).permutation(len(groups)) % n, strict=True))
    return np.array([fold[k.in_ch, k.out_ch, k.groups > 1] for k in rows])


def size_folds(rows: list[Kernel], n: int) -> Array:
    """Every n-th map size in one fold; the smallest and the largest, which nothing encloses, are always known."""
    sizes = sorted({k.size_in for k in rows})
    fold = {s: -1 if s in (sizes[0], sizes[-1]) else i % n for i, s in enumerate(sizes)}
    return np.array([fold[k.size_in] for k in rows])


def narrowing(model: KernelModel, rows: list[Kernel], seed: int) -> dict[str, float]:
    """How much the model deviates from "more channels are not cheaper" on pairs that training has not drawn."""
    narrow, wide = wider_pairs(rows, 10_000, np.random.default_rng(seed + 1))
    dense = np.array([k.groups == 1 for k in narrow])
    result = {}
    for form, price in (("raw", model.raw_ms), ("least", model.kernel_ms)):
        drop = np.log(price(narrow)) - np.log(price(wide))
        for name, part in (("dense", drop[dense]), ("depthwise", drop[~dense])):
            result[f"{form}_{name}_mean_%"] = round(100 * float(np.maximum(part, 0).mean()), 2)
            result[f"{form}_{name}_share_over_2_%"] = round(100 * float((part > 0.02).mean()), 2)
    return result


EXAMPLES = (Kernel("conv", 64, 256, 56, 56), Kernel("conv", 128, 128, 28, 28, 3.0),
            Kernel("conv", 3, 32, 224, 112, 3.0, 2), Kernel("conv", 256, 256, 14, 14, 5.0, 1, 256),
            Kernel("conv", 512, 128, 14, 14, fused_add=True),
            Kernel("conv", 960, 1280, 1, 1), Kernel("pool", 960, 960, 7, 1, moved=48_000))


def examples(model: KernelModel) -> list[dict[str, Any]]:
    """Figures that a reader of the table can check itself against."""
    return [{"kernel": vars(k), "raw_ms": round(float(model.raw_ms([k])[0]), 6),
             "ms": round(float(model.kernel_ms([k])[0]), 6)} for k in EXAMPLES]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/v100"))
    parser.add_argument("--out", type=Path, default=Path("latency_tables"), help="folder")
    parser.add_argument("--others", action="store_true", help="every precision and batch but fp16 at 1")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--members", type=int, default=4, help="networks in the mean")
    parser.add_argument("--width", type=int, default=64, help="of a network's layers")
    parser.add_argument("--digits", type=int, default=4, help="of a weight in the file")
    parser.add_argument("--monotone", type=float, default=0.3, help="weight of the penalty on cheaper wider kernels")
    parser.add_argument("--folds", type=int, default=5, help="0: fit only, keep no held-out errors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="more do not help networks this small")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    if not (args.data / "trt_conv_v100.csv.gz").is_file():
        raise SystemExit(f"{args.data}: no trt_conv_v100.csv.gz; give the folder of the rows with --data")
    for setting in OTHERS if args.others else [USUAL]:
        result = make(setting, args)
        with (HERE / "results.jsonl").open("a") as file:
            file.write(json.dumps(result) + "\n")
        print(json.dumps({"table": setting.name, "n": result["n"], **result["errors"]}), flush=True)


def make(setting: Setting, args: argparse.Namespace) -> dict[str, Any]:
    """Writes one table; returns the line of ``results.jsonl``."""
    start = time.perf_counter()
    rows, ms = read_rows(args.data / "trt_conv_v100.csv.gz", setting)
    off = {}
    if args.folds:
        off["groups"] = held_out(rows, ms, group_folds(rows, args.folds, args.seed), setting, args)
    if args.folds and setting == USUAL:
        off["sizes"] = held_out(rows, ms, size_folds(rows, 3), setting, args)
    fitted = variant(rows, ms, setting, args)
    raw = model_of(setting, fitted)
    off["fitted_rows"] = errors(raw.raw_ms(rows), ms)
    corrected = _correction(setting, raw, args)
    model = model_of(setting, fitted.model_copy(update={"correction": corrected.pop("correction")}))
    notes = {"rows": len(rows), "held_out": off, **corrected, "examples": examples(model)}
    model_of(setting, model.variant, **notes).save(args.out / f"{setting.name}.json")
    return {"command": " ".join(["python", *map(str, _relative(sys.argv))]), "table": setting.name, "n": len(rows),
            "errors": off, **corrected, "correction": model.variant.correction.model_dump(),
            "narrowing": narrowing(raw, rows, args.seed),
            "date": model.meta.date, "seconds": round(time.perf_counter() - start), "python": platform.python_version(),
            "torch": torch.__version__, "numpy": np.__version__}


def _correction(setting: Setting, raw: KernelModel, args: argparse.Namespace) -> dict[str, Any]:
    """``correction`` and what it rests on. Where no network is published for a setting, it follows from fp16 at the
    same batch (at 128: of 64). It is a scale in any case, which changes no ranking."""
    if setting.precision == "fp16" and setting.batch in (1, *PUBLISHED_MS):
        found, networks = calibration(raw, args.data / "gpunet_calibration.json", setting.batch)
        return {"correction": found, "calibration": networks}
    like = Setting("fp16", min(setting.batch, 64)).name
    table = KernelModel.load(args.out / f"{like}.json")
    if setting.batch > 1:
        return {"correction": table.variant.correction, "calibration": [], "correction_like": like}
    scale = transferred(raw, args.data / "gpunet_calibration.json", (table.meta.model_extra or {})["calibration"])
    return {"correction": PADDED.model_copy(update={"scale": float(f"{scale:.5g}")}), "calibration": [],
            "correction_like": like}


def _relative(argv: list[str]) -> list[str]:
    return ["experiments/v100-kernel-model/fit.py", *argv[1:]]


if __name__ == "__main__":
    main()
