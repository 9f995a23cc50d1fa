"""Runs networks with early exits; needs onnxruntime and numpy only, and is copied beside every export.

    from runtime import Runtime
    run = Runtime("model.onnx")        # one image at a time; Runtime("FOLDER") runs the segments there, in batches
    answer = run(images)               # [n, channels, side, side] float32, normalised as the metadata say
    answer.classes, answer.exits       # [n] each
    run.counts, run.budget(0.8)        # where images left so far; other thresholds, for a mean of 0.8 ms
"""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CONFIDENCES = ("max-softmax", "entropy", "patience")
KEY = "exits"  # of the metadata: the policy
WINDOW = 500  # images after which shares are compared with those of the calibration
ERRORS = 4.0  # standard errors by which they may differ: chance alone does that once in 16,000 comparisons
Array = np.ndarray[Any, Any]


class DriftWarning(UserWarning):
    """Warns that images leave at other exits than those calibrated on: the data may have changed."""


@dataclass(frozen=True)
class Answer:
    """Holds the logits [n, classes] of the exit at which each image left, and the number of that exit [n], from 0."""

    logits: Array
    exits: Array

    @property
    def classes(self) -> Array:
        """Returns the class [n] of the largest logit of each image."""
        return np.asarray(self.logits.argmax(1))


class Runtime:
    """Runs a network with exits from its file (image by image) or from the folder of its segments (in batches).

    ``counts`` [exits] is where images left since ``reset``; ``names`` are the classes.
    """

    def __init__(self, path: str | Path, threads: int = 1) -> None:
        """Opens the network. Raises ValueError for a file without exits or with broken ones, FileNotFoundError without
        segments.
        """
        path = Path(path)
        files = _segments(path) if path.is_dir() else [path]
        self.sessions = [_session(file, threads) for file in files]
        metadata = self.sessions[0].get_modelmeta().custom_metadata_map
        if KEY not in metadata:
            raise ValueError(f"{files[0]}: no early exits in its metadata")
        self.policy = _policy(metadata[KEY], files[0])
        self.names = metadata.get("classes", "").split("\n")
        self.exits = len(self.policy["prefix_ms"])
        self.segmented = path.is_dir()
        if self.segmented and len(files) != self.exits:
            raise FileNotFoundError(f"{path}: {len(files)} segments of {self.exits}")
        given = {value.name: value.shape for value in self.sessions[0].get_overridable_initializers()}
        if not self.segmented and given.get("thresholds") != [self.exits - 1]:
            raise ValueError(f"{path}: its thresholds {given.get('thresholds')} are not those of {self.exits} exits")
        self._set(self.policy["point"])

    @property
    def thresholds(self) -> list[float]:
        """Says how sure each exit has to be; the head's, the last, is -inf."""
        return [float(value) for value in self._thresholds]

    @thresholds.setter
    def thresholds(self, values: list[float]) -> None:
        """Sets thresholds, one an exit, with or without the head's. Raises ValueError for another number of them."""
        kept = [*map(float, values)]
        if len(kept) not in (self.exits - 1, self.exits) or any(map(math.isnan, kept)):
            raise ValueError(f"{len(kept)} thresholds: the network has {self.exits - 1} exits and the head")
        self._set({"thresholds": [*kept[:self.exits - 1], -math.inf]})

    def budget(self, mean_ms: float) -> float:
        """Sets the thresholds of the largest calibrated mean latency up to ``mean_ms``; returns that latency.

        Raises ValueError where there is none.
        """
        points = [p for p in (self.policy["point"], *self.policy["points"]) if p["mean_ms"] <= mean_ms]
        if not points:
            raise ValueError(f"no thresholds for {mean_ms:g} ms: at least {_rounded_up(self.policy['prefix_ms'][0])}")
        point = max(points, key=lambda p: (p["mean_ms"], p["accuracy"]))
        self._set(point)
        return float(point["mean_ms"])

    def deadline(self, ms: float) -> int:
        """Lets every image leave at the deepest exit that is reached in ``ms``; returns that exit.

        Raises ValueError where not even the first is.
        """
        reached = [k for k, prefix in enumerate(self.policy["prefix_ms"]) if prefix <= ms]
        if not reached:
            raise ValueError(f"deadline {ms:g} ms: the first exit takes {_rounded_up(self.policy['prefix_ms'][0])} ms")
        self.thresholds = [math.inf if k < reached[-1] else -math.inf for k in range(self.exits)]
        return reached[-1]

    def __call__(self, images: Array) -> Answer:
        """Classifies images; warns (``DriftWarning``) after every 500 if they leave elsewhere than in calibration."""
        images = np.ascontiguousarray(images, np.float32)
        answer = self._in_batches(images) if self.segmented else self._one_by_one(images)
        counts = np.bincount(answer.exits, minlength=self.exits)
        self.counts += counts
        self._recent += counts
        if self._recent.sum() >= WINDOW:
            if message := self.drift():
                warnings.warn(message, DriftWarning, stacklevel=2)
            self._recent[:] = 0
        return answer

    def drift(self) -> str | None:
        """Describes what differs from calibration; None where nothing does, or thresholds were set by hand."""
        n, calibrated = int(self._recent.sum()), self.policy["n"]
        if self._shares is None or n == 0:
            return None
        expected = np.clip(self._shares, 1 / (calibrated + 1), 1 - 1 / (calibrated + 1))
        error = np.sqrt(expected * (1 - expected) * (1 / n + 1 / calibrated))
        off = np.abs(self._recent / n - expected) / error
        k = int(off.argmax())
        if off[k] <= ERRORS:
            return None
        return (f"{self._recent[k] / n:.1%} of the last {n} images left at exit {k}, {self._shares[k]:.1%} of those "
                "calibrated on: latency and accuracy are not those stated; calibrate on newer images")

    def reset(self) -> None:
        """Sets the counters to zero."""
        self.counts, self._recent = np.zeros(self.exits, int), np.zeros(self.exits, int)

    def _set(self, point: dict[str, Any]) -> None:
        self._thresholds = np.array([float(value) for value in point["thresholds"]], np.float32)
        self._shares = np.array(point["shares"]) if "shares" in point else None
        self.reset()

    def _one_by_one(self, images: Array) -> Answer:
        feeds = {"thresholds": self._thresholds[:-1]}
        outputs = [self.sessions[0].run(["output", "exit"], {"input": image[None], **feeds}) for image in images]
        return Answer(np.concatenate([logits for logits, _ in outputs]), np.array([int(at) for _, at in outputs]))

    def _in_batches(self, images: Array) -> Answer:
        """Runs segment after segment; the images that are left after one go on as a smaller batch."""
        left, before = np.arange(len(images)), None
        answer, feeds = Answer(np.empty(0), np.zeros(len(images), int)), {"input": images}
        for k, session in enumerate(self.sessions):
            outputs = [output.name for output in session.get_outputs()]
            made = dict(zip(outputs, session.run(outputs, feeds), strict=True))
            logits = made.pop("logits")
            sure, before = confidence(self.policy["kind"], logits, self.policy["temperatures"][k], before)
            leaves = sure >= self._thresholds[k]
            if k == 0:
                answer = Answer(np.empty((len(images), logits.shape[1]), np.float32), answer.exits)
            answer.logits[left[leaves]], answer.exits[left[leaves]] = logits[leaves], k
            left, before = left[~leaves], (before[0][~leaves], before[1][~leaves])
            feeds = {name.removesuffix("_out"): np.ascontiguousarray(value[~leaves]) for name, value in made.items()}
            if not len(left):
                break
        return answer


def confidence(kind: str, logits: Array, temperature: float = 1.0,
               before: tuple[Array, Array] | None = None) -> tuple[Array, tuple[Array, Array]]:
    """Returns how sure one exit is of logits [n, classes], larger is surer, and what the next exit needs as ``before``.

    ``max-softmax``: the largest probability; ``entropy``: 1 - entropy / log(classes); both of logits / temperature.
    ``patience``: how many exits before it agree with it in a row (PABEE, Zhou et al., arXiv 2006.04152).
    """
    classes = logits.argmax(1)
    run = np.zeros(len(logits)) if before is None else np.where(classes == before[0], before[1] + 1, 0.0)
    if kind == "patience":
        return run, (classes, run)
    z = logits / temperature
    z = z - z.max(1, keepdims=True)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    if kind == "max-softmax":
        return p.max(1), (classes, run)
    if kind == "entropy":
        entropy = -(p * np.log(np.maximum(p, 1e-30))).sum(1)
        return 1 - entropy / np.log(logits.shape[1]), (classes, run)
    raise ValueError(f"confidence {kind!r}: known are {', '.join(CONFIDENCES)}")


def confidences(kind: str, logits: Array, temperatures: Array | None = None) -> Array:
    """Returns how sure every exit is, [exits, n], of logits [exits, n, classes]."""
    values, before = [], None
    for index, alone in enumerate(logits):
        sure, before = confidence(kind, alone, 1.0 if temperatures is None else float(temperatures[index]), before)
        values.append(sure)
    return np.stack(values)


def _policy(text: str, path: Path) -> dict[str, Any]:
    """Reads the policy from metadata, numbers as floats. Raises ValueError for what the export did not write."""
    try:
        policy = json.loads(text)
        prefix, temperatures = ([*map(float, policy[key])] for key in ("prefix_ms", "temperatures"))
        point, *points = (_point(record, len(prefix)) for record in (policy["point"], *policy["points"]))
        images = int(policy["n"])
        if policy["kind"] not in CONFIDENCES or len(temperatures) != len(prefix) or images < 1 or not (
                all(0 < value < math.inf for value in temperatures) and all(0 <= ms < math.inf for ms in prefix)):
            raise ValueError("kind, temperatures, prefix_ms or n")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path}: early exits: not as they were exported ({error!r})") from None
    return {**policy, "prefix_ms": prefix, "temperatures": temperatures, "n": images, "point": point, "points": points}


def _point(point: dict[str, Any], exits: int) -> dict[str, Any]:
    thresholds, shares = ([*map(float, point[key])] for key in ("thresholds", "shares"))
    mean_ms, accuracy = float(point["mean_ms"]), float(point["accuracy"])
    if len(thresholds) != exits or len(shares) != exits or any(map(math.isnan, (*thresholds, *shares, mean_ms))):
        raise ValueError("thresholds or shares")
    return {**point, "thresholds": thresholds, "shares": shares, "mean_ms": mean_ms, "accuracy": accuracy}


def _rounded_up(ms: float) -> str:
    """Rounds ms up for a message, so that the number it names can be asked for (this file imports nothing of nas)."""
    digits = 3 - math.floor(math.log10(ms)) if ms > 0 else 0
    return f"{math.ceil(ms * 10**digits) / 10**digits:.4g}" if ms > 0 else "0"


def _segments(folder: Path) -> list[Path]:
    """Returns the files of the segments in order, whatever their number."""
    files = sorted(folder.glob("segment-*.onnx"), key=lambda path: int(path.stem.partition("-")[2]))
    if not files:
        raise FileNotFoundError(f"{folder}: no segment-0.onnx in it")
    return files


def _session(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.enable_mem_pattern = False  # a branch is slower with it (docs/decisions.md)
    options.log_severity_level = 3  # it warns of the thresholds, which are an input with a default on purpose
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
