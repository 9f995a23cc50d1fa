"""What a finished run gives to Python: its front, each pick with weights and files, and picks for other targets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from nas.arch import Arch
from nas.config.fields import listed
from nas.errors import UserError, setting
from nas.pipeline import search as pipeline
from nas.pipeline.budgets import Bounds
from nas.pipeline.finetune import load_weights
from nas.pipeline.npu_memory import Memory
from nas.pipeline.setup import load_finished_inputs
from nas.progress import Lines, Progress
from nas.report.figures import front_figure
from nas.run import records
from nas.run.directory import Run
from nas.run.images import Images
from nas.run.records import Card
from nas.run.settings import searched, settings_of
from nas.subnet import Backbone

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

Text = str | Path
Format = Literal["onnx", "features", "int8-onnx", "tflite"]


@dataclass(frozen=True)
class Pick:
    """Describes a network that was chosen.

    Milliseconds are keyed by target; what is not measured on this machine is None there.
    ``accuracy`` is that on the test split, with its standard error, ``select_accuracy`` that on the images that choose;
    ``folder`` holds the network's files. ``known`` is the name of a known network that stands beside the picks.
    """

    id: str
    arch: Arch
    ms: Mapping[str, float]
    measured_ms: Mapping[str, float | None]
    accuracy: float
    accuracy_se: float
    select_accuracy: float
    macs: int
    params: int
    fine_tuned: bool
    exits: tuple[int, ...]
    run: Path
    folder: Path
    onnx: Path
    known: str | None = None

    def load_model(self, *, features_only: bool = False) -> nn.Module:
        """Builds the network with its trained weights, in evaluation mode.

        Its input is [N, channels, size, size], its output logits [N, classes]; with ``features_only`` it has no head
        and returns the map of each stride, finest first (``model.maps`` says channels and strides). Raises UserError
        for a pick with early exits: ``nas.exits.Runtime`` serves its files.
        """
        if self.exits:
            raise UserError(f"{self.id}: has early exits; nas.exits.Runtime({str(self.folder)!r}) serves it")
        run = Run.existing(self.run)
        place = self.folder.parent.parent.relative_to(self.run).as_posix()
        inputs = load_finished_inputs(settings_of(run), run, list(self.ms))
        network = load_weights(inputs.of(self.arch), self.arch, "" if place == "." else f"{place}/")
        return Backbone(network).eval() if features_only else network


@dataclass(frozen=True)
class Front(Sequence[Pick]):
    """Holds the picks that no other beats in both accuracy and latency on the selection split, fastest first.

    It is a sequence of these; ``dominated`` has the other picks.
    """

    run: Path
    targets: tuple[str, ...]
    picks: tuple[Pick, ...]
    dominated: tuple[Pick, ...]
    record: records.Front = field(repr=False, compare=False)  # as front.json has it

    def __len__(self) -> int:
        return len(self.picks)

    def __iter__(self) -> Iterator[Pick]:
        return iter(self.picks)

    def __getitem__(self, index: Any) -> Any:
        """Returns the pick at a position, the picks of a slice, or the pick of an id."""
        if not isinstance(index, str):
            return self.picks[index]
        named = [pick for pick in (*self.picks, *self.dominated) if pick.id == index]
        if not named:
            raise KeyError(index)
        return named[0]

    def best(self, ms: float | None = None, target: str | None = None) -> Pick:
        """Returns the most accurate pick (on the selection split) within ``ms`` on a target (default: the first).

        What is measured above its prediction counts as measured. Without ``ms`` it is the most accurate of all. Raises
        UserError where none is as fast.
        """
        on = self._target(target)
        best: Pick = self[self.record.best(math.inf if ms is None else ms, on).id]
        return best

    def to_dataframe(self) -> pandas.DataFrame:
        """Returns a table with a row for each pick of the front and a column ``ms TARGET`` for each target.

        Raises UserError where pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise UserError("to_dataframe: pandas is not installed: pip install pandas") from None
        return pandas.DataFrame([_row(pick) for pick in self.picks])

    def plot(self) -> Figure:
        """Draws accuracy over predicted milliseconds, a panel for each target: a figure of matplotlib's."""
        return front_figure(self.record)

    def _target(self, target: str | None) -> str:
        if target is not None and target not in self.targets:
            raise UserError(f"target {target}: the picks are for {', '.join(self.targets)}")
        return target or self.targets[0]


def _row(pick: Pick) -> dict[str, Any]:
    times = {f"{name} {target}": ms for name, by_target in (("ms", pick.ms), ("measured ms", pick.measured_ms))
             for target, ms in by_target.items()}
    return {"id": pick.id, "known": pick.known, **times, "accuracy": pick.accuracy, "accuracy_se": pick.accuracy_se,
            "select_accuracy": pick.select_accuracy, "macs": pick.macs, "params": pick.params,
            "exits": len(pick.exits), "fine_tuned": pick.fine_tuned, "onnx": str(pick.onnx)}


@dataclass(frozen=True)
class SearchRun:
    """Opens the directory of a search or of a training: what it found, and what can be made of it."""

    path: Path

    @property
    def front(self) -> Front:
        """Returns the picks of the search itself. Raises UserError for a run that is not that far."""
        run = Run.existing(self.path)
        return front_of_run(run.path, run.read("front.json", records.Front))

    def select(self, *, target: Text | Sequence[Text] = (),
               budget_ms: float | Sequence[float] | Mapping[str, float] = (), budgets: int | None = None,
               max_params: float | None = None, max_macs: float | None = None, sram_kb: float | None = None,
               flash_kb: float | None = None, fine_tune: bool = False,
               storage: str | None = None, workers: int = 1, data: Text | None = None, data_dir: Text | None = None,
               progress: Progress | None = None) -> Front:
        """Picks anew from the trained supernet, for other targets or budgets; nothing is trained again.

        ``budget_ms`` are budgets of the first target, or one for each of several targets, which one network keeps
        together; without them there are ``budgets`` of them. ``data`` says where the run's images lie now.
        """
        together = {str(name): float(ms) for name, ms in budget_ms.items()} if isinstance(budget_ms, Mapping) else {}
        values = [] if isinstance(budget_ms, Mapping) else list(listed(budget_ms))
        run = Run.existing(self.path)
        targets = [str(name) for name in list(listed(target))] or list(searched(run).target)
        with run.lock():
            chosen = pipeline.select(run, targets, values, progress or Lines(), fine_tune,
                                     Memory(sram_kb, flash_kb), Bounds.of(max_params, max_macs, together), budgets,
                                     storage, workers, _images(data, data_dir))
        return front_of_run(run.path, chosen)

    def export(self, *, arch: str | None = None, budget_ms: float | None = None, out: Text | None = None,
               format: Format = "onnx", data: Text | None = None, data_dir: Text | None = None,
               progress: Progress | None = None) -> list[Path]:
        """Writes one pick, or all, as files of a format, each of them checked against PyTorch. Returns their paths."""
        if format not in pipeline.FORMATS:
            raise UserError(f"{setting('format', format)}: known are {', '.join(pipeline.FORMATS)}")
        run = Run.existing(self.path)
        with run.lock():
            done = pipeline.export(run, arch, budget_ms, Path(out) if out else None, progress or Lines(), format,
                                   _images(data, data_dir))
        return [Path(file.onnx or file.tflite or "") for file in done.files]


def front_of_run(run: Path, front: records.Front) -> Front:
    """Returns the front that a run's ``front.json`` holds."""

    def pick(card: Card) -> Pick:
        onnx = run / card.onnx
        folder = onnx.parent.parent if card.exits else onnx.parent  # exits lie in a folder of the network's
        arch = Arch.from_json(Run(run).read_json((folder / "arch.json").relative_to(run).as_posix()))
        return Pick(id=card.id, arch=replace(arch, exits=tuple(card.exits)), ms=card.ms, measured_ms=card.measured_ms,
                    accuracy=card.accuracy, accuracy_se=card.accuracy_se, select_accuracy=card.select_accuracy,
                    macs=card.macs, params=card.params, fine_tuned=card.fine_tuned, exits=tuple(card.exits), run=run,
                    folder=onnx.parent, onnx=onnx, known=card.known)

    return Front(run, tuple(front.target), tuple(map(pick, front.front)), tuple(map(pick, front.dominated)), front)


def _images(data: Text | None, data_dir: Text | None) -> Images:
    return Images(str(data) if data else None, str(data_dir) if data_dir else None)
