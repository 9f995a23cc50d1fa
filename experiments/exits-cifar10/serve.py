"""What trained exits save when they are served: measured on the exported files, at the accuracy of the plain network.

    python experiments/exits-cifar10/serve.py --table FILE --data-dir DIR

Takes the networks that ``run.py`` trained (its ``--work``, and its settings; what is missing is trained), keeps the
exits and sets the thresholds on images that none has seen so that the network is as right as ``plain``, trained for as
many epochs, exports it and measures it with ``benchmarks/exits.py``. A method and a seed append their line to
``served.jsonl``. FILE is a table of this machine, with the heads of exits (``nas profile --device cpu --exits``).
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from run import CPU, HERE, PLAIN, Bench, arguments, asked_of, settings_of

from nas.cli.progress import TerminalProgress
from nas.exits import choice
from nas.exits.methods import methods
from nas.latency.table import LatencyTable
from nas.lower.emit import emit
from nas.pipeline.exits.price import known_exit_ms
from nas.pipeline.exits.serve import Trained, Wishes, choose_exits, input_metadata, write_files
from nas.pipeline.exits.train import train_exits
from nas.plan import plan
from nas.run.directory import Run
from nas.subnet import build
from nas.training import evaluation, randomness
from nas.training.data import Data, Split, load

sys.path.insert(0, str(HERE.parent.parent / "benchmarks"))
from exits import Subject, report

sys.path.append(str(Path(__file__).resolve().parents[1]))
from results import keep, standing, told

CALIBRATED = 5000  # images that thresholds are set on


def held_out(options: argparse.Namespace, data: Data) -> Split:
    """Training images that the networks never learned from, outside of ``--limit``; without it the selection split."""
    if options.limit is None:
        return data.select
    whole = load(options.data, data_dir=options.data_dir, size=None, seed=0).learn
    learned = {image.numpy().tobytes() for image in data.learn.images}
    kept = [i for i, image in enumerate(whole.images) if image.numpy().tobytes() not in learned][:CALIBRATED]
    return Split(whole.images[kept], whole.labels[kept])


def served(bench: Bench, table: LatencyTable, method: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Exports and measures; returns the line."""
    work, place, progress = Run(options.work), f"{method}-{seed}/", TerminalProgress()
    data = replace(bench.data, select=held_out(options, bench.data))
    # refused, if at all, before training
    pieces, nets = choice.pieces(plan(bench.at, bench.arch), table.ms_many, known_exit_ms(table)), []
    for _ in (PLAIN, method):  # the same initial weights
        with randomness.seeded("exits-cifar10", seed):
            nets.append(build(bench.at, bench.arch))
    plain, net = nets
    bench.plain(plain, seed, work, progress)
    if method in methods(frozen=True):
        net.load_state_dict(plain.state_dict())
    select, test = (evaluation.evaluate(plain, split, data, CPU) for split in (data.select, data.test))
    made = train_exits(f"{method}-{seed}", net, bench.data, bench.recipe, work, place, seed, CPU, progress,
                       method=method)
    trained = Trained.of(made, data, CPU, "max-softmax")
    found = choose_exits(trained, pieces, Wishes(than=select.accuracy))
    folder, without = work.file(f"{place}served"), work.file(f"{PLAIN}-{seed}.onnx")
    write_files(folder, trained, found, input_metadata(data, data.size))
    without.write_bytes(emit(plain, in_ch=data.in_ch, size=data.size).SerializeToString())
    subject = Subject(f"{method}, seed {seed}, exits {found.kept} of {len(bench.arch.exits)}", trained, found.kept,
                      folder, without, test.accuracy)
    return {"kept": list(found.kept), "select_images": len(data.select), "select_accuracy_without": select.accuracy,
            "select_accuracy": found.crossed.accuracy, **report(subject, options.images, options.seconds)}


def main() -> None:
    parser = arguments(__doc__, HERE / "served.jsonl")
    parser.set_defaults(methods="boost")
    parser.add_argument("--table", type=Path, required=True, help="latencies of this machine, exits among them")
    parser.add_argument("--images", type=int, default=10_000, help="of the test split, in random order")
    parser.add_argument("--seconds", type=float, default=120.0, help="of timing, a network")
    options = parser.parse_args()
    with told():
        table = LatencyTable.load(options.table)
        prices = hashlib.sha256(options.table.read_bytes()).hexdigest()[:12]
        settings = settings_of(options) | {"images": options.images, "timing_s": options.seconds, "table": prices}
        lines = standing(options.out, settings)
        asked = asked_of(options, methods())
        torch.set_num_threads(1)
        bench = Bench(options, settings_of(options))
        done = {(line["method"], line["seed"]) for line in lines}
        for seed in range(options.seeds):
            for method in asked:
                if (method, seed) not in done:
                    line = served(bench, table, method, seed, options)
                    lines.append({"method": method, "seed": seed, **line, "arch": bench.arch.to_json(),
                                  "settings": settings,
                                  "where": {**bench.where(), "processor": table.meta.processor}})
                    keep(options.out, lines)


if __name__ == "__main__":
    main()
