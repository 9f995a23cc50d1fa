"""Exports of torchvision's classifiers through every command that reads ONNX: a result, or one true line.

    python benchmarks/foreign_graphs.py --out DIR                  # three opsets a model, all opsets in turn
    python benchmarks/foreign_graphs.py --out DIR --every          # all opsets of all models
    python benchmarks/foreign_graphs.py --out DIR --only resnet --opset 12

PyTorch's TorchScript exporter writes the files, as most files that people have were written; opset 21, which it does
not know, is made of its opset 20 by onnx's converter. Weights are constants, images as small as the model takes. The
same command continues: a line of ``results.jsonl`` is not made again. It ends with 1 where anything but a result or a
refusal in one line came out.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import onnx
import onnx.version_converter
import torch
from torch import nn
from torchvision import models

from nas.errors import UserError
from nas.exits.graft import graft
from nas.latency import costs, devices
from nas.latency.onnx_graph import read_graph
from nas.latency.predict import predict
from nas.latency.timing import Timing, summary

OPSETS = range(11, 22)
LAST_OF_TORCH = 20
SIZES = {"alexnet": 224, "vgg": 224, "vit": 224, "maxvit": 224, "inception": 96}  # others take 64
TOO_LARGE = 5e8  # parameters: beyond 2 GiB they do not fit into one file
NPU, NPU_LARGEST = "ethos-u55-128", 3e7  # parameters that Vela compresses in seconds
INITS = ("kaiming_uniform_", "kaiming_normal_", "uniform_", "normal_", "trunc_normal_", "xavier_uniform_",
         "constant_", "zeros_", "ones_")

loaded = cache(costs.load)


def exits(path: Path) -> int:
    graph = read_graph(path).in_float().logits()
    return len(graft(graph.model, graph.entry, graph.shapes).exits)


def priced(target: str, **how: Any) -> Callable[[Path], float]:
    return lambda path: predict(path, loaded(target), **how).ms


COMMANDS: dict[str, Callable[[Path], float]] = {
    **{f"predict {target}": priced(target) for target in ("gpu-v100", "gpu-v100-b32", "gpu-v100-int8", NPU)},
    "predict gpu-v100 --allow-unknown": priced("gpu-v100", allow_unknown=True),
    "measure": lambda path: devices.measure(path, "cpu").ms, "exits": exits}


def count(name: str) -> int:
    """Parameters of a model, as torchvision says of its weights."""
    return int(models.get_model_weights(name).DEFAULT.meta["num_params"])


def settings(name: str) -> dict[str, Any]:
    """These two draw weights of their own, slowly."""
    return {"init_weights": False} if name in ("googlenet", "inception_v3") else {}


def build(name: str) -> tuple[nn.Module, int]:
    """With constants for weights, which a graph's form does not depend on; and the side of its images."""
    with contextlib.ExitStack() as stack:
        for init in INITS:
            stack.enter_context(mock.patch.object(nn.init, init, lambda tensor, *_, **__: tensor))
        model = models.get_model(name, weights=None, **settings(name)).eval()
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            if value.is_floating_point():
                value.fill_(0.01)
    return model, next((side for part, side in SIZES.items() if name.startswith(part)), 64)


def export(model: nn.Module, size: int, opset: int, path: Path) -> None:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (torch.zeros(1, 3, size, size),), str(path), dynamo=False, input_names=["input"],
                          opset_version=min(opset, LAST_OF_TORCH), dynamic_axes={"input": {0: "batch"}})
    if opset > LAST_OF_TORCH:
        onnx.save(onnx.version_converter.convert_version(onnx.load(path), opset), path)


def tried(command: str, path: Path) -> dict[str, Any]:
    start = time.monotonic()
    try:
        outcome: dict[str, Any] = {"value": COMMANDS[command](path)}
    except UserError as error:
        outcome = {"refused": str(error).replace(str(path), "FILE")}
        if "\n" in str(error):
            outcome = {"traceback": "a refusal of several lines", **outcome}
    except Exception:
        outcome = {"traceback": traceback.format_exc(limit=-3)}
    return {**outcome, "s": round(time.monotonic() - start, 2)}


def cases(name: str, opsets: list[int], done: set[tuple[str, int, str]]) -> Iterator[dict[str, Any]]:
    """A line for each command on each export that is not there yet."""
    missing = {opset: [c for c in COMMANDS if (name, opset, c) not in done] for opset in opsets}
    if not any(missing.values()):
        return
    parameters = count(name)
    if parameters > TOO_LARGE:
        yield from ({"model": name, "opset": o, "command": c, "skipped": "its weights do not fit into 2 GiB"}
                    for o in opsets for c in missing[o])
        return
    model, size = build(name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        for opset in opsets:
            try:
                export(model, size, opset, path)
            except Exception as error:
                reason = f"PyTorch does not export it: {str(error).splitlines()[0][:100]}"
                yield from ({"model": name, "opset": opset, "command": c, "skipped": reason} for c in missing[opset])
                continue
            for command in missing[opset]:
                large = command == f"predict {NPU}" and parameters > NPU_LARGEST
                yield {"model": name, "opset": opset, "command": command,
                       **({"skipped": "too large to compile here"} if large else tried(command, path))}


def shape_of(message: str) -> str:
    """A refusal without the names and numbers of its file."""
    return re.sub(r"\d+", "N", re.sub(r"\([^)]*\)", "()", message))[:90]


def show(lines: list[dict[str, Any]]) -> int:
    exported = {(one["model"], one["opset"]) for one in lines if "skipped" not in one}
    print(f"{len({one['model'] for one in lines})} models, {len(exported)} exports of {len({o for _, o in exported})} "
          f"opsets, {len({one['command'] for one in lines})} commands, {len(lines)} cases")
    for command in COMMANDS:
        those = [one for one in lines if one["command"] == command]
        counts = {what: sum(what in one for one in those) for what in ("value", "refused", "skipped", "traceback")}
        print(f"{command}: {counts['value']} results, {counts['refused']} refused, {counts['skipped']} not tried, "
              f"{counts['traceback']} tracebacks")
        refusals = Counter(shape_of(one["refused"]) for one in those if "refused" in one)
        for reason, count in refusals.most_common(6):
            print(f"    {count} {reason}")
    faults = [one for one in lines if "traceback" in one]
    for one in faults:
        print(f"{one['model']} opset {one['opset']} {one['command']}: {one['traceback']}")
    print(f"tracebacks: {len(faults)}")
    return int(bool(faults))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--every", action="store_true", help="all opsets of each model")
    parser.add_argument("--only", default="", help="models whose name begins so")
    parser.add_argument("--opset", type=int, action="append", choices=list(OPSETS))
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    with mock.patch.object(devices, "repeated", twice):
        return sweep(args)


def twice(run: Callable[[], float]) -> Timing:
    """In place of a second of runs: what comes out matters here, not how long it takes."""
    return summary([run(), run()])


def sweep(args: argparse.Namespace) -> int:
    """Runs what the options ask for and has not been run, and prints the counts."""
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "results.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(one["model"], one["opset"], one["command"]) for one in lines}
    names = sorted(models.list_models(module=models), key=count)  # small ones first
    for index, name in enumerate(names):
        if not name.startswith(args.only):
            continue
        turn = list(OPSETS) if args.every else sorted(OPSETS[(index + 4 * i) % len(OPSETS)] for i in range(3))
        for line in cases(name, args.opset or turn, done):
            lines.append(line)
            with file.open("a") as out:
                out.write(json.dumps(line) + "\n")
        print(f"{index + 1} of {len(names)}: {name}", file=sys.stderr)
    return show(lines)


if __name__ == "__main__":
    sys.exit(main())
