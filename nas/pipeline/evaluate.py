"""Computes how good an ONNX file is on images, in ONNX Runtime, as it will be deployed (``nas evaluate``)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nas.config.search import Config
from nas.errors import UserError, setting
from nas.files import nearest
from nas.latency.devices.onnxruntime import session
from nas.latency.onnx_ending import as_logits, kind_by_values
from nas.latency.onnx_file import runnable
from nas.latency.onnx_graph import read_graph
from nas.pipeline.front import find_picks, read_fronts
from nas.progress import NoProgress, Progress
from nas.run.directory import Run
from nas.run.images import require_place
from nas.run.settings import settings_of
from nas.training.data import Data, Split, load, normalise
from nas.training.header import data_lines
from nas.training.labels import names_in, outputs
from nas.training.pixels import Whites
from nas.training.preprocessing import Preprocessing, check_input

BATCH = 256
Z95 = 1.959964  # two-sided 95 % of a normal distribution
SPLITS = ("test", "select", "all")
FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclass(frozen=True)
class Share:
    """Holds a share of images with its standard error (binomial) and its 95 % interval (``wilson``)."""

    share: float
    se: float
    low: float
    high: float


@dataclass(frozen=True)
class ClassScore:
    """Holds the number of images of one class, and how many of them are right; None of no images."""

    name: str
    n: int
    top1: Share | None

    def to_json(self) -> dict[str, Any]:
        """Returns the fields for JSON, where the name is ``class``, which no field of Python's may be called."""
        return {"class": self.name, "n": self.n, "top1": self.top1}


@dataclass(frozen=True)
class Score:
    """Says how right outputs are for ``n`` images: in all, of the five likeliest classes, and class by class.

    ``top5`` is None for five classes or fewer. ``loss`` is the mean cross-entropy.
    """

    n: int
    top1: Share
    top5: Share | None
    loss: float
    classes: tuple[ClassScore, ...]


@dataclass(frozen=True)
class Evaluation(Score):
    """Says how good a file is on a split of images, and as what it was read.

    ``preprocessing`` is how pixels went in, with where that is known from; ``classes_by`` how the file's outputs were
    matched with the classes of the images; ``ends_in`` what the outputs are, such as ``logits``.
    """

    model: Path
    data: str
    split: str
    preprocessing: Preprocessing
    classes_by: str
    ends_in: str


@dataclass(frozen=True)
class _Wanted:
    """Says on which images a file is judged; None where nothing is said about that."""

    data: str | None
    data_dir: str | None
    size: int | None
    seed: int | None
    limit: int | None = None

    def of_run(self, config: Config) -> _Wanted:
        """Returns a run's own images where no others are named; the run's seed and folder of cifar10 in any case."""
        data = config.data if self.data is None else self.data
        filled = replace(self, data=data, seed=config.seed if self.seed is None else self.seed,
                         data_dir=config.data_dir if self.data_dir is None and data == "cifar10" else self.data_dir)
        if self.data is not None:
            return filled
        side = None if config.sizes else config.side  # of several, the file's own
        return replace(filled, size=side if self.size is None else self.size, limit=config.limit)

    def images(self, file: _File) -> Data:
        """Loads the images as the file needs them. Raises UserError where none are named."""
        if self.data is None:
            raise UserError(f"{setting('data')}: on which images? cluttered, digits, cifar10, or a folder")
        return load(self.data, data_dir=Path(self.data_dir) if self.data_dir else None, size=file.size(self.size),
                    seed=self.seed or 0, limit=self.limit, whites=Whites.from_metadata(file.metadata))


def evaluate(model: Path, *, arch: str | None = None, budget_ms: float | None = None, data: str | None = None,
             data_dir: str | None = None, split: str = "test", size: int | None = None, seed: int | None = None,
             preprocessing: Preprocessing | None = None, classes: Sequence[str] | None = None,
             progress: Progress | None = None) -> Evaluation:
    """Runs a file, or a pick of a run on the run's own images where no others are named, and scores its outputs.

    Images are normalised by ``preprocessing``, else as the file's metadata say, else by ImageNet's mean and deviation;
    ``classes`` are those of the outputs, in place of the file's own. The result says which of these it was,
    ``progress`` what the images are. Raises UserError where file, classes and images do not go together.
    """
    if split not in SPLITS:
        raise UserError(f"{setting('split', split)}: {nearest(split, SPLITS)}")
    if not model.exists():
        raise UserError(f"{model}: no such file or run")
    wanted = _Wanted(data, data_dir, size, seed)
    if model.is_dir():
        run = Run.existing(model)
        config, model = settings_of(run), _pick(run, arch, budget_ms)
        if data is None:
            require_place(run, config)
        wanted = wanted.of_run(config)
    elif arch is not None or budget_ms is not None:
        raise UserError(f"{setting('arch')} and {setting('budget_ms')} choose from a run; {model} is a file")
    file = _File(model)
    how = Preprocessing.from_metadata(file.metadata, model, preprocessing)
    images = wanted.images(file)
    for line in data_lines(images):
        (progress or NoProgress()).note(line)
    images = how.applied(images)
    meant = outputs(model, file.count(images), file.names() if classes is None else classes, images.classes)
    part = _part(images, split)
    made = file.run(part, images)
    kind = file.ends_in(images.size, made)
    judged = score(as_logits(made, kind), meant.labels(part.labels).numpy(), meant.names)
    return Evaluation(**vars(judged), model=model, data=images.name, split=split, preprocessing=how,
                      classes_by=meant.by, ends_in=kind)


def score(logits: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> Score:
    """Scores outputs [n, classes] by labels [n]. Raises UserError for outputs that are not numbers."""
    if not np.isfinite(logits).all():
        raise UserError(f"{int((~np.isfinite(logits)).any(1).sum())} of {len(logits)} images give outputs that are no "
                        "numbers")
    true = logits[np.arange(len(labels)), labels][:, None]
    ties = (logits == true) & (np.arange(logits.shape[1]) < labels[:, None])  # the first of equals is the answer
    rank = (logits > true).sum(1) + ties.sum(1)
    top = logits.max(1, keepdims=True)
    loss = float(np.mean(np.log(np.exp((logits - top).astype(np.float64)).sum(1)) - (true - top)[:, 0]))
    each = [ClassScore(name, len(ranks), _share(ranks < 1) if len(ranks) else None)
            for i, name in enumerate(classes) for ranks in [rank[labels == i]]]
    return Score(len(labels), _share(rank < 1), _share(rank < 5) if len(classes) > 5 else None, loss, tuple(each))


def wilson(right: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Returns the confidence interval of a share, sound at 0, at 1 and for few images.

    After Wilson, J. Am. Stat. Assoc. 22, 1927.
    """
    share, shrink = right / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def _share(right: np.ndarray) -> Share:
    n, count = len(right), int(right.sum())
    low, high = wilson(count, n)
    return Share(count / n, math.sqrt(count / n * (1 - count / n) / n), low, high)


def _pick(run: Run, arch: str | None, budget_ms: float | None) -> Path:
    """Returns the file of a pick that its accuracy in the front is of: the int8 one where there is one."""
    fronts = read_fronts(run)
    place, wanted = find_picks(fronts, arch, budget_ms)
    if len(wanted) > 1:
        raise UserError(f"{setting('arch')}: which pick? {', '.join(wanted)}")
    card = fronts[place].card(wanted[0])
    return run.file(card.int8_onnx or card.onnx)


def _part(data: Data, split: str) -> Split:
    if split != "all":
        return data.test if split == "test" else data.select
    parts = (data.learn, data.select, data.test)
    return Split(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))


class _File:
    """Runs an ONNX file of one input [N, 3, S, S] in ONNX Runtime; ``metadata`` is what the file says of itself."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():  # the run says that it has one
            raise UserError(f"{path}: missing; nas export writes it anew")
        self.path, self.session = path, session(runnable(path), torch.get_num_threads())
        self.metadata: dict[str, str] = self.session.get_modelmeta().custom_metadata_map
        names = [output.name for output in self.session.get_outputs()]
        if len(self.session.get_inputs()) != 1 or not names:
            raise UserError(f"{path}: has {len(self.session.get_inputs())} inputs and {len(names)} outputs, expected "
                            "one input [N, 3, S, S] and the classes")
        self.entry = self.session.get_inputs()[0]
        check_input(path, self.entry.shape, self.entry.type in FLOATS)
        self.output = "output" if "output" in names else names[0]

    def size(self, asked: int | None) -> int:
        """Returns the side of the images that the file takes. Raises UserError where ``asked`` is another."""
        side, text = self.entry.shape[2], self.metadata.get("size", "")
        of_file = side if isinstance(side, int) else int(text) if re.fullmatch("[1-9][0-9]{0,5}", text) else asked
        if of_file is None:
            raise UserError(f"{setting('size')}: {self.path} leaves open how large its images are")
        if asked is not None and asked != of_file:
            raise UserError(f"{setting('size', asked)}: {self.path} takes images of {of_file}x{of_file}")
        return int(of_file)

    def names(self) -> list[str] | None:
        """Returns the names of its classes, where it has them."""
        return names_in(self.metadata)

    def count(self, data: Data) -> int:
        """Returns the number of classes that the file knows. Raises UserError where it is no classifier."""
        blank = torch.zeros(1, 3, data.size, data.size, dtype=torch.uint8)
        shape = self.run(Split(blank, torch.zeros(1, dtype=torch.int64)), data).shape
        if len(shape) != 2:
            raise UserError(f"{self.path}: its output is {list(shape[1:])} an image, not one number for each class")
        return int(shape[1])

    def ends_in(self, side: int, outputs: np.ndarray) -> str:
        """Tells whether outputs are logits or probabilities: by the graph, or else by their values."""
        try:
            graph = read_graph(self.path, side, weights=False, any_batch=True)
        except UserError:  # ONNX Runtime runs it all the same, such as one whose channels are open
            return kind_by_values(outputs)
        first = graph.model.graph.output[0].name == self.output
        return graph.ending.kind if first and graph.ending.node else kind_by_values(outputs)

    def run(self, split: Split, data: Data) -> np.ndarray:
        """Returns the outputs [n, classes] for a split; where the file fixes a batch, the last one is filled up."""
        fixed = self.entry.shape[0] if isinstance(self.entry.shape[0], int) else None
        results = []
        for images in torch.split(split.images, fixed or BATCH):
            batch = normalise(images, data).contiguous().numpy().astype(FLOATS[self.entry.type])
            short = (fixed or len(batch)) - len(batch)
            filled = np.concatenate([batch, np.zeros((short, *batch.shape[1:]), batch.dtype)]) if short else batch
            try:
                made = self.session.run([self.output], {self.entry.name: filled})[0]
            except Exception as error:  # its own classes have no public base
                raise UserError(f"{self.path}: ONNX Runtime: {str(error).splitlines()[0][:200]}") from None
            results.append(made[:len(batch)])
        return np.concatenate(results).astype(np.float32)
