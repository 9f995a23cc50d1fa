"""Makes a folder to deploy of trained heads: chooses exits, sets thresholds, writes files, checks and measures them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nas.errors import UserError, setting
from nas.exits import choice, policy
from nas.exits.base import Method
from nas.exits.choice import ExitLogits, Pieces
from nas.exits.export import BRANCHED, export
from nas.exits.net import Kept, MultiExit
from nas.exits.policy import calibrate
from nas.exits.runtime import CONFIDENCES, Runtime, confidences
from nas.exits.thresholds import Point, Policy
from nas.files import write_atomic, write_json, write_text
from nas.latency.base import Costs
from nas.latency.devices import measured_here
from nas.latency.table import LatencyTable
from nas.latency.timing import Device
from nas.latency.timing import Run as Timed
from nas.lower.verify import MAX_RELATIVE, Disagreement
from nas.pipeline.exits.card import CheckedFiles, Delivered, Figures, Times
from nas.report import exits as figures
from nas.training.data import Data, Split, normalise
from nas.training.evaluation import standard_error
from nas.training.exits import record

THRESHOLDS, CLASSES, CARD = "thresholds.json", "classes.txt", "card.json"
PICTURES = {"curve.png": figures.draw_curve, "shares.png": figures.draw_shares, "first-and-last.png":
            figures.draw_examples}
CHECKED = 1000  # test images on which the files are compared with PyTorch
ROUNDING = 1e-5  # of a confidence, which is of float32 here and in ONNX Runtime
TIMED = 64  # images an exit is timed on
Array = np.ndarray[Any, Any]
# (ms, drift) of several runs: what prepares them, and how many they are
Clock = Callable[[Callable[[], Mapping[str, Timed]], int], tuple[dict[str, float], float | None]]


@dataclass(frozen=True)
class Wishes:
    """Holds what the user asks of exits: a mean latency of ``budget_ms``, or else to lose little accuracy.

    That is at most ``lose`` below the accuracy ``than``, or, where that is None, below that of the network's own head.
    No image may take longer than ``max_ms``. ``kind`` is what confidence is made of, ``rule`` how thresholds are set.
    """

    kind: str = "max-softmax"
    rule: str = "search"
    budget_ms: float | None = None
    lose: float = 0.0
    than: float | None = None
    max_ms: float | None = None


LOSE_NOTHING = Wishes()


@dataclass(frozen=True)
class Trained:
    """Holds a network with all the exits it could have, trained, and their logits on selection and test split.

    Thresholds and exits are chosen on the first; the second is only reported.
    """

    method: Method
    data: Data
    select: ExitLogits
    test: ExitLogits

    @staticmethod
    def of(method: Method, data: Data, device: torch.device, kind: str,
           views: Sequence[Split] | None = None) -> Trained:
        """Computes the logits of all exits on both splits; ``views`` replace the selection split if given."""
        method.eval()
        logits_of_splits = []
        for splits in (views or [data.select], [data.test]):
            records = [record(method.net.net.logits, _even_part(split, len(splits)), data, device) for split in splits]
            logits = np.concatenate([part.logits for part in records], 1)
            labels = np.concatenate([part.labels for part in records])
            logits_of_splits.append(ExitLogits(logits, labels, method.net.combine, kind))
        method.cpu()
        return Trained(method, data, *logits_of_splits)

    def network(self, kept: Sequence[int]) -> MultiExit:
        """Returns the network with only the exits ``kept``, on the CPU, in eval mode."""
        combine = self.method.net.combine.kept(kept)
        assert combine is not None
        return MultiExit(Kept(self.method.net.net, kept), combine).eval()


@dataclass(frozen=True)
class Served:
    """Holds the exits that are kept, their thresholds, and the accuracy and latency that these give.

    ``test`` is on the test split, ``crossed`` on the selection split: on each half by thresholds set on the other.
    """

    kept: tuple[int, ...]
    policy: Policy
    crossed: Point
    test: Point


def choose_exits(trained: Trained, pieces: Pieces, wishes: Wishes, kept: Sequence[int] | None = None) -> Served:
    """Chooses the exits to keep (unless given) and sets their thresholds.

    Raises UserError where nothing meets the wishes.
    """
    answers = trained.select
    least = (answers.accuracy if wishes.than is None else wishes.than) - wishes.lose
    point = None
    if kept is None:
        kept, point = choice.choose(answers, pieces, budget_ms=wishes.budget_ms, accuracy=least, max_ms=wishes.max_ms)
    prefix, predictions = pieces.prefix_ms(kept), answers.predictions(kept)
    assert predictions is not None
    budget = wishes.budget_ms
    if budget is not None:
        point = None  # the rule finds its own
    else:
        if point is None or wishes.rule != "search":  # subsets were compared by searched thresholds
            point = choice.cheapest(*answers.sure(predictions), prefix, least, wishes.rule)
        budget = point.mean_ms
    made = calibrate(predictions, answers.labels, prefix, budget, kind=wishes.kind, rule=wishes.rule, chosen=point)
    tested = trained.test.predictions(kept)
    assert tested is not None
    confidence, fits = confidence_and_right(made, tested, trained.test.labels)
    return Served(tuple(kept), made, choice.cross_validated(answers, kept, prefix, budget),
                  policy.outcome(confidence, fits, made.point.thresholds, prefix))


def confidence_and_right(made: Policy, predictions: Array, labels: Array) -> tuple[Array, Array]:
    """Returns how sure each exit is of each image by the policy's measure, and whether it is right: both [exits, n]."""
    return confidences(made.kind, predictions, np.array(made.temperatures)), predictions.argmax(-1) == labels


def write_files(folder: Path, trained: Trained, served: Served, metadata: dict[str, str]) -> Delivered:
    """Writes files and pictures of chosen exits, and compares them with PyTorch."""
    data, network = trained.data, trained.network(served.kept)
    written = export(network, folder, in_ch=data.in_ch, size=data.size, policy=served.policy, metadata=metadata)
    write_json(folder / THRESHOLDS, served.policy)
    write_text(folder / CLASSES, "\n".join(data.classes) + "\n")
    agreement = check_files(folder, network, served.policy, normalise(data.test.images[:CHECKED], data))
    predictions = trained.test.predictions(served.kept)
    assert predictions is not None
    held_out = figures.HeldOut(served.policy, *confidence_and_right(served.policy, predictions, trained.test.labels),
                               trained.test.labels, data.classes, data.test.images, trained.test.accuracy,
                               served.test)
    for name, draw in PICTURES.items():
        write_atomic(folder / name, partial(draw, held_out))
    return Delivered(**dict(written), **dict(agreement), **dict(_figures(trained, served)))


def _figures(trained: Trained, served: Served) -> Figures:
    test, n = served.test, len(trained.test.labels)
    return Figures(kept=list(served.kept), select_accuracy=served.crossed.accuracy,
                   select_accuracy_without=trained.select.accuracy, accuracy=test.accuracy,
                   accuracy_se=standard_error(test.accuracy, n), accuracy_without=trained.test.accuracy, n=n,
                   shares=list(test.shares), mean_ms=test.mean_ms, calibrated_ms=served.policy.point.mean_ms,
                   worst_ms=test.worst_ms, prefix_ms=list(served.policy.prefix_ms), confidence=served.policy.kind)


def check_files(folder: Path, network: MultiExit, made: Policy, images: torch.Tensor) -> CheckedFiles:
    """Compares exits, classes and logits of the file with ``If`` and of the segments with PyTorch's on some images.

    These are [n, C, S, S]. Where a confidence is within rounding of its threshold either exit is right;
    ``at_threshold`` counts those images. Raises Disagreement where another exit or a class differs, or a logit by 1e-4
    of the largest or more.
    """
    with torch.inference_mode():
        expected = torch.cat([torch.stack(network(part)) for part in torch.split(images, 256)], 1).numpy()
    confidence, _ = confidence_and_right(made, expected, np.zeros(len(images)))
    thresholds = np.array(made.point.thresholds)
    at = policy.leaving(confidence, made.point.thresholds)
    close = np.zeros(len(at), bool)
    if made.kind != "patience":  # whole numbers, without rounding
        close = (np.abs(confidence[:-1] - thresholds[:-1, None]) < ROUNDING).any(0)
    worst = 0.0
    for path in (folder / BRANCHED, folder):
        answer = Runtime(path)(images.numpy())
        logits = expected[answer.exits, np.arange(len(at))]
        worst = max(worst, float(np.abs(answer.logits - logits).max() / max(np.abs(logits).max(), 1e-12)))
        other = int(((answer.exits != at) & ~close).sum() + (answer.classes != logits.argmax(1)).sum())
        if other or not worst < MAX_RELATIVE:
            raise Disagreement(f"{path}: {other} of {len(at)} images leave elsewhere or as another class than in "
                               f"PyTorch (not counting {int(close.sum())} within rounding of a threshold), and logits "
                               f"differ by {worst:.1e} of the largest")
    return CheckedFiles(relative_diff=worst, compared=len(at), at_threshold=int(close.sum()))


def exit_runs(path: Path, images: Array, at: Array, exits: int, now_ns: Callable[[], int]) -> dict[str, Timed]:
    """Returns, for each exit, a function that runs the ``If`` file on one image that leaves there, and returns the ms.

    It takes images [n, C, S, S] in turn whose exit by ``at`` is this one, or any where there are none.
    """
    runs = {}
    for index in range(exits):
        leaving = images[at == index][:TIMED] if (at == index).any() else images[:TIMED]
        runtime = Runtime(path)
        runtime.thresholds = [np.inf] * index + [-np.inf] * (exits - index)
        runs[f"exit {index}"] = _timed_in_turn(runtime, leaving, now_ns)
    return runs


def measure_exits(folder: Path, trained: Trained, served: Served, clock: Clock,
                  now_ns: Callable[[], int]) -> Times:
    """Measures what leaving at each exit takes, and the mean and worst that follow from where test images leave."""
    images = normalise(trained.data.test.images, trained.data).numpy()
    predictions = trained.test.predictions(served.kept)
    assert predictions is not None
    sure, _ = confidence_and_right(served.policy, predictions, trained.test.labels)
    at = policy.leaving(sure, served.policy.point.thresholds)
    exits = len(predictions)
    ms, drift = clock(lambda: exit_runs(folder / BRANCHED, images, at, exits, now_ns), exits)
    prefix = np.array([ms[f"exit {index}"] for index in range(exits)])
    point = policy.outcome(sure, sure > 0, served.policy.point.thresholds, prefix)
    return Times(measured_ms=point.mean_ms, measured_worst_ms=point.worst_ms, measured_prefix_ms=prefix.tolist(),
                 drift=drift)


def timed_here(costs: Costs) -> tuple[LatencyTable, Device] | None:
    """Returns a target's table and device where it is this machine's CPU in float with one thread and one image.

    Other targets are None: so ``runtime.py`` runs networks with exits.
    """
    if costs.int8_on_cpu or (costs.meta.threads, costs.meta.batch) != (1, 1):
        return None
    here = measured_here(costs)
    return here if here and here[1].name == "cpu" else None


def with_prefix_ms(served: Served, prefix_ms: Sequence[float]) -> Served:
    """Returns chosen exits with other milliseconds of leaving at each, such as measured ones in place of sums."""
    ms = np.asarray(prefix_ms)

    def again(point: Point) -> Point:
        deepest = int(np.argmax(np.asarray(point.thresholds) == -np.inf))
        mean_ms, worst_ms = float(np.asarray(point.shares) @ ms), float(ms[deepest])
        return point.model_copy(update={"mean_ms": mean_ms, "worst_ms": worst_ms})

    made = served.policy.model_copy(update={
        "prefix_ms": tuple(map(float, ms)), "point": again(served.policy.point),
        "points": tuple(map(again, served.policy.points))})
    return replace(served, policy=made, crossed=again(served.crossed), test=again(served.test))


def input_metadata(data: Data, size: int) -> dict[str, str]:
    """Returns the metadata of a file that a program needs to use it on images."""
    return {"classes": "\n".join(data.classes), "input": "NCHW float32", "size": str(size), "scale": "pixels / 255",
            "producer": "nas", "mean": " ".join(f"{v:.6g}" for v in data.mean),
            "std": " ".join(f"{v:.6g}" for v in data.std), **data.whites.metadata()}


def checked_wishes(wishes: Wishes) -> Wishes:
    """Returns the wishes unchanged. Raises UserError for one that cannot be: its number, or its kind of confidence."""
    for key in ("budget_ms", "max_ms"):
        ms = getattr(wishes, key)
        if ms is not None and not 0 < ms < np.inf:
            raise UserError(f"{setting(key, f'{ms:g}')}: not a number of milliseconds above 0")
    if wishes.kind not in CONFIDENCES:
        raise UserError(f"{setting('confidence', wishes.kind)}: known are {', '.join(CONFIDENCES)}")
    if not 0 <= wishes.lose < 1:
        raise UserError(f"{setting('lose', f'{100 * wishes.lose:g}')}: points of accuracy, from 0 to below 100")
    return wishes


def _even_part(split: Split, views: int) -> Split:
    """Cuts several views to an even number of images each, so that halves of all are the same images."""
    return split if views == 1 else split.part(0, len(split) // 2 * 2)


def _timed_in_turn(runtime: Runtime, images: Array, now_ns: Callable[[], int]) -> Timed:
    """Returns a function that runs a file on the next of the images and returns the ms: of the session's run alone."""
    session, thresholds = runtime.sessions[0], np.array(runtime.thresholds[:-1], np.float32)
    state = {"next": 0}

    def run() -> float:
        image = images[state["next"] % len(images)][None]
        state["next"] += 1
        start = now_ns()
        session.run(["output", "exit"], {"input": image, "thresholds": thresholds})
        return (now_ns() - start) / 1e6

    return run
