"""Networks with early exits as they are served: latency, agreement and thresholds, on the test images of a run.

    python benchmarks/exits.py RUN [--data-dir DIR] [--images 2000] [--seconds 20]
    python benchmarks/exits.py --late ghost [--width 0.5] [--size 32] [--networks 3]

RUN is a search with exits (`nas search --exits boost ...`); `experiments/exits-cifar10/serve.py` measures its networks
with the same functions. With ``--late`` it prints (c) of random networks of a space with all their exits, untrained. Of
each network with exits of a run it prints

(a) the mean latency measured on the exported file, image after image in random order as they would come, beside the
    predicted one and the network without exits, with both accuracies;
(b) whether the file with If, the segments and PyTorch agree: exit and class of every image, logits;
(c) what the late path of the file with If takes beyond the same network with all heads as one plain graph;
(d) the mean latency realised on the test images with thresholds for five budgets from the selection split, by MSDNet's
    rule, which spends a budget (the search leaves over what buys no accuracy).

One thread, its own CPU time. A figure of (a) is the mean over images of the 20th percentile of each image's passes; the
compared files take turns, some images each. "again" is the same file once more: the noise.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nas import sampling
from nas.config.search import Config
from nas.exits import Runtime, policy
from nas.exits.net import Additive, MultiExit
from nas.exits.runtime import confidences
from nas.exits.thresholds import Policy
from nas.latency.devices.onnxruntime import session
from nas.lower.emit import emit_many
from nas.pipeline.exits.picks import load_with_all_exits
from nas.pipeline.exits.price import write_untrained
from nas.pipeline.exits.serve import THRESHOLDS, Trained, confidence_and_right
from nas.pipeline.inputs import Inputs
from nas.pipeline.setup import load_finished_inputs
from nas.plan import Layout, Task, layout
from nas.run.directory import Run
from nas.run.records import Card, Front
from nas.space import Space
from nas.subnet import build
from nas.training.data import normalise

LOW = 20  # percentile of an image's passes
BUDGETS = 5
RANDOM = 200  # images of random numbers for --late
BLOCK, WARM = 100, 5  # images that a file has in a row, and some of them before, untimed


class AllHeads(torch.nn.Module):
    """The same network without branches: every prediction as an output."""

    def __init__(self, net: MultiExit) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.net(x))


def passes(calls: dict[str, Any], images: np.ndarray, seconds: float, rng: random.Random) -> dict[str, np.ndarray]:
    """Milliseconds [n] of each image in each file: a low percentile of as many passes as fit, at least three.

    A file has ``BLOCK`` images one after another, as where it is served: its weights are in the caches then, which five
    other files in between would drive out.
    """
    found: dict[str, list[list[float]]] = {name: [] for name in calls}
    for call in calls.values():
        for image in images[:50]:
            call(image[None])
    end = time.monotonic() + seconds
    while len(next(iter(found.values()))) < 3 or time.monotonic() < end:
        for name in calls:
            found[name].append([0.0] * len(images))
        order = rng.sample(range(len(images)), len(images))
        for first in range(0, len(order), BLOCK):
            block = order[first:first + BLOCK]
            for name in rng.sample(list(calls), len(calls)):
                for index in block[:WARM]:
                    calls[name](images[index][None])
                for index in block:
                    start = time.thread_time_ns()
                    calls[name](images[index][None])
                    found[name][-1][index] = (time.thread_time_ns() - start) / 1e6
    return {name: np.percentile(ms, LOW, axis=0) for name, ms in found.items()}


def branched(path: Path, thresholds: list[float] | None = None) -> Any:
    run = Runtime(path)
    if thresholds is not None:
        run.thresholds = thresholds
    own, at = run.sessions[0], np.array(run.thresholds[:-1], np.float32)
    return lambda image: own.run(["output", "exit"], {"input": image, "thresholds": at})


def plain(model: Path | bytes) -> Any:
    own = session(model)
    return lambda image: own.run(None, {"input": image})


@dataclass(frozen=True)
class Subject:
    """A network that ``folder`` serves with the exits ``kept`` of all that were ``trained``; ``without`` is the file of
    the network without exits, which is right on the share ``accuracy_without`` of all test images.
    """

    name: str
    trained: Trained
    kept: Sequence[int]
    folder: Path
    without: Path
    accuracy_without: float


def report(subject: Subject, count: int, seconds: float) -> dict[str, Any]:
    """Prints (a) to (d) of the module, on ``count`` of the test images; returns the figures."""
    rng, trained, kept, folder = random.Random(0), subject.trained, subject.kept, subject.folder
    data, net = trained.data, trained.network(kept)
    made = Policy.model_validate_json((folder / THRESHOLDS).read_bytes())
    count = min(count, len(data.test))
    chosen = rng.sample(range(len(data.test)), count)
    images = normalise(data.test.images[chosen], data).contiguous().numpy()
    labels = data.test.labels[chosen].numpy()
    print(f"\n{subject.name}, {count} test images")

    with torch.inference_mode():
        parts = [torch.stack(net(part)) for part in torch.from_numpy(images).split(256)]  # type: ignore[no-untyped-call]
    expected = torch.cat(parts, 1).numpy()
    sure = confidences(made.kind, expected, np.array(made.temperatures))
    at = policy.leaving(sure, made.point.thresholds)
    logits = expected[at, np.arange(count)]
    right = float((logits.argmax(1) == labels).mean())
    shares = np.bincount(at, minlength=len(kept) + 1) / count
    predicted = float(shares @ np.array(made.prefix_ms))
    held_out = trained.test.predictions(kept)
    assert held_out is not None
    on_all = policy.outcome(*confidence_and_right(made, held_out, trained.test.labels), made.point.thresholds,
                            np.array(made.prefix_ms)).accuracy
    figures: dict[str, Any] = {"images": count, "accuracy_on_these": right, "accuracy": on_all,
                               "accuracy_without": subject.accuracy_without, "shares": shares.tolist(),
                               "predicted_ms": predicted}
    for name, path in (("If file", folder / "model.onnx"), ("segments", folder)):
        answer = Runtime(path)(images)
        found = {"exits": int((answer.exits != at).sum()), "classes": int((answer.classes != logits.argmax(1)).sum()),
                 "logits": float(np.abs(answer.logits - logits).max())}
        figures[name] = found
        print(f"(b) {name}: {found['exits']} other exits, {found['classes']} other classes, logits within "
              f"{found['logits']:.1e}")

    with tempfile.TemporaryDirectory() as temporary:
        names = [f"logits_{index}" for index in range(len(kept) + 1)]
        graph = emit_many(AllHeads(net), {"input": (data.in_ch, data.size, data.size)}, names, 1)
        whole = Path(temporary) / "all.onnx"
        whole.write_bytes(graph.SerializeToString())
        never = [np.inf] * len(kept)
        calls = {"with": branched(folder / "model.onnx"), "with again": branched(folder / "model.onnx"),
                 "without": plain(subject.without), "all heads": plain(whole), "all heads again": plain(whole),
                 "late": branched(folder / "model.onnx", never)}
        ms = {name: float(own.mean()) for name, own in passes(calls, images, seconds, rng).items()}
    print(f"(a) mean {ms['with']:.4f} ms measured (again {ms['with again']:.4f}), {predicted:.4f} predicted "
          f"({100 * (predicted / ms['with'] - 1):+.1f} %); without exits {ms['without']:.4f} ms: "
          f"{100 * (1 - ms['with'] / ms['without']):.1f} % less; accuracy {100 * on_all:.2f} % with and "
          f"{100 * subject.accuracy_without:.2f} % without on all test images, {100 * right:.2f} % with on these; "
          f"shares {', '.join(f'{share:.3f}' for share in shares)}")
    print(f"(c) late path {ms['late']:.4f} ms, all heads as one graph {ms['all heads']:.4f} (again "
          f"{ms['all heads again']:.4f}): {100 * (ms['late'] / ms['all heads'] - 1):+.1f} %")
    return figures | {"ms": ms, "budgets": list(_budgets(trained, kept, made))}


def late(at: Layout, seed: int, seconds: float) -> None:
    """Prints (c) of a random network with all its exits."""
    arch = replace(sampling.sample(at, random.Random(seed)), exits=tuple(exit_.slot for exit_ in at.exits))
    net, count, task = MultiExit(build(at, arch), Additive(0.5)).eval(), len(at.exits), at.task
    shape = RANDOM, task.in_ch, task.size, task.size
    images = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).numpy()
    with tempfile.TemporaryDirectory() as temporary:
        write_untrained(net, Path(temporary), at, np.arange(1.0, count + 2))
        names = [f"logits_{index}" for index in range(count + 1)]
        whole = emit_many(AllHeads(net), {"input": shape[1:]}, names, 1).SerializeToString()
        calls = {"all heads": plain(whole), "again": plain(whole),
                 "late": branched(Path(temporary) / "model.onnx", [np.inf] * count)}
        ms = {name: float(own.mean()) for name, own in passes(calls, images, seconds, random.Random(0)).items()}
    beyond = ms["late"] - ms["all heads"]
    print(f"(c) {at.space} at {task.size}, network {seed}, {count} exits: late path {ms['late']:.4f} ms, all heads as "
          f"one graph {ms['all heads']:.4f} (again {ms['again']:.4f}): {100 * beyond / ms['all heads']:+.1f} %, "
          f"{1000 * beyond / count:.1f} us an exit", flush=True)


def _budgets(trained: Trained, kept: Sequence[int], made: Policy) -> Iterator[dict[str, float]]:
    prefix = np.array(made.prefix_ms)
    select, test = trained.select, trained.test
    predictions, held_out = select.predictions(kept), test.predictions(kept)
    assert predictions is not None and held_out is not None
    for share in np.linspace(0.15, 0.85, BUDGETS):
        budget = float(prefix[0] + share * (prefix[-1] - prefix[0]))
        set_on = policy.calibrate(predictions, select.labels, prefix, budget, kind=made.kind, rule="geometric",
                                  points=2)
        point = policy.outcome(confidences(made.kind, held_out, np.array(set_on.temperatures)),
                               held_out.argmax(-1) == test.labels, set_on.point.thresholds, prefix)
        print(f"(d) budget {budget:.4f} ms: {set_on.point.mean_ms:.4f} on {len(select.labels)} selection images, "
              f"{point.mean_ms:.4f} on {len(test.labels)} test images ({100 * (point.mean_ms / budget - 1):+.1f} %), "
              f"accuracy {100 * point.accuracy:.2f} %")
        yield {"budget_ms": budget, "mean_ms": point.mean_ms, "accuracy": point.accuracy}


def of_card(inputs: Inputs, card: Card, accuracy_without: float) -> Subject:
    """A network with exits of a search."""
    method, full = load_with_all_exits(inputs, card, "")
    return Subject(f"{card.id} ({card.method}, exits behind slots {card.exits})",
                   Trained.of(method, inputs.data, torch.device("cpu"), "max-softmax"),
                   [full.exits.index(slot) for slot in card.exits], inputs.run.file(card.onnx).parent,
                   inputs.run.file(f"archs/{card.of}/model.onnx"), accuracy_without)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--late", metavar="SPACE", help="in place of a run")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--networks", type=int, default=3)
    parser.add_argument("--data-dir")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing, a network")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.late:
        at = layout(Space.load(options.late).scaled(options.width), Task(options.size, 3, 10), exits=True)
        for seed in range(options.networks):
            late(at, seed, options.seconds)
        return
    if options.run is None:
        parser.error("give a RUN, or --late SPACE")
    run = Run.existing(options.run)
    config = Config.from_json(run.config | {"data_dir": options.data_dir or run.config["data_dir"]}, str(run.path))
    front = run.read("front.json", Front)
    inputs = load_finished_inputs(config, run, front.target, images=True)
    for card in front.cards:
        if card.of:
            report(of_card(inputs, card, front.card(card.of).accuracy), options.images, options.seconds)


if __name__ == "__main__":
    main()
