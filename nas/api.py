"""The road from Python: what ``nas search``, ``nas select`` and ``nas export`` do, with results as objects.

    from nas import api

    table = api.costs("gpu-v100")                   # milliseconds of operators
    space = api.space("ghost")                      # what can be built
    found = api.search(space="ghost", target="gpu-v100", budget_ms=[0.3, 0.6], run="runs/mine")
    for pick in found.front:
        print(pick.id, pick.ms["gpu-v100"], pick.accuracy, pick.onnx)
    npu = api.select("runs/mine", "ethos-u55-128")  # from the same supernet, in minutes
    files = api.export("runs/mine", budget_ms=0.6, out="out")
    network = found.front[0].network()              # a torch module with its trained weights

Every function raises ``nas.errors.UserError``, one line, for what the caller has to mend; progress goes to stderr.
Operators of your own are loaded first: ``nas.ops.user_files.load([Path("my_ops.py")])``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from nas.arch import Arch
from nas.config.search import PLACES, default_run_dir, resolve, spread
from nas.errors import UserError
from nas.latency.base import Costs
from nas.latency.costs import load
from nas.pipeline import search as pipeline
from nas.pipeline.budgets import Bounds
from nas.pipeline.finetune import load_weights
from nas.pipeline.npu_memory import Memory
from nas.pipeline.setup import load_recorded
from nas.progress import Lines, Progress
from nas.run.directory import Run
from nas.run.images import Images
from nas.run.settings import searched, settings_of
from nas.space import Space
from nas.train.torchrun import processes
from nas.units import least, unit


@dataclass(frozen=True)
class Pick:
    """A network that was picked. Milliseconds are by target; ``measured_ms`` is None where the target is not here.

    ``accuracy`` is that on the test split, with its standard error; ``folder`` holds the files of the network.
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
    run: Path
    folder: Path
    onnx: Path
    exits: tuple[int, ...] = ()

    def network(self) -> nn.Module:
        """In evaluation mode; input [N, channels, size, size], output logits [N, classes].

        Raises UserError for a pick with early exits: ``nas.exits.Runtime`` serves its files.
        """
        if self.exits:
            raise UserError(f"{self.id}: has early exits; nas.exits.Runtime({str(self.folder)!r}) serves it")
        run = Run.existing(self.run)
        place = self.folder.parent.parent.relative_to(self.run).as_posix()
        inputs = load_recorded(settings_of(run), run, list(self.ms), images=False)
        return load_weights(inputs.at(self.arch.size), self.arch, "" if place == "." else f"{place}/")


@dataclass(frozen=True)
class Front:
    """``front``: the picks that no other dominates on the selection split, fastest first; ``dominated``: the others."""

    run: Path
    targets: tuple[str, ...]
    front: tuple[Pick, ...]
    dominated: tuple[Pick, ...]

    def within(self, ms: float, target: str | None = None) -> Pick:
        """The most accurate pick within ``ms`` on a target (default: the first). Raises UserError if there is none."""
        on = target or self.targets[0]
        fitting = [pick for pick in self.front if pick.ms[on] <= ms]
        if not fitting:
            cheapest = min(pick.ms[on] for pick in self.front)
            raise UserError(f"{ms:g} {unit(on)}: the cheapest pick of {self.run} takes {least(cheapest, on)}")
        return max(fitting, key=lambda pick: (pick.select_accuracy, -pick.ms[on]))


def space(name: str) -> Space:
    """A shipped space, or one from a file."""
    return Space.load(name)


def costs(target: str) -> Costs:
    """The cost model of a target: ``costs(t).ms(key)`` for the key of an operator (``nas.plan.candidates``)."""
    return load(target)


def search(settings: Mapping[str, Any] | None = None, *, config: Path | str | None = None,
           run: Path | str | None = None, progress: Progress | None = None, **flags: Any) -> Front:
    """Trains a supernet, prunes, picks, fine-tunes and exports; continues what ``run`` holds of the same settings.

    ``flags`` are those of ``nas search`` (``space``, ``target``, ``budget_ms``, ...), ``settings`` every other by its
    dotted name (``{"train.lr": 0.05}``).
    """
    words = [f"{key}={value}" for key, value in (settings or {}).items() if value is not None]
    if "exits" in flags:
        flags["exits.method"] = flags.pop("exits")
    resolved = spread(resolve(Path(config) if config else None, words, flags), processes())
    path = Path(run) if run else default_run_dir(resolved)
    if Run.fresh(path):
        pipeline.refuse(resolved)  # before a directory is made
    with Run.begun(path, resolved.to_json(), PLACES) as here:
        return _front(path, pipeline.search(resolved, here, progress or Lines()))


def front(run: Path | str) -> Front:
    """The picks of a finished search, wherever it was made. Raises UserError for a run that is not that far."""
    here = Run.existing(run)
    return _front(here.path, here.read_json("front.json"))


def select(run: Path | str, target: str | Sequence[str] = (), budget_ms: Sequence[float] = (), *,
           together: Mapping[str, float] | None = None, max_params: float | None = None,
           max_macs: float | None = None, points: int | None = None, fine_tune: bool = False,
           sram_kb: float | None = None, flash_kb: float | None = None, data: Path | str | None = None,
           data_dir: Path | str | None = None, progress: Progress | None = None) -> Front:
    """Picks anew from the supernet of a finished run, for other targets or budgets (of the first target).

    ``data`` and ``data_dir`` say where its images lie now, if that is another place than the run knows.

    ``together``: budgets by target, for one network under all of them as well; ``points`` of a front without budgets.
    """
    here = Run.existing(run)
    targets = [target] if isinstance(target, str) else list(target)
    with here.lock():
        found = pipeline.select(here, targets or list(searched(here).target), budget_ms, progress or Lines(),
                                fine_tune, Memory(sram_kb, flash_kb),
                                Bounds.of(max_params, max_macs, dict(together or {})), points,
                                images=_images(data, data_dir))
    return _front(here.path, found)


def export(run: Path | str, arch: str | None = None, budget_ms: float | None = None, out: Path | str | None = None,
           format: str = "onnx", data: Path | str | None = None, data_dir: Path | str | None = None,
           progress: Progress | None = None) -> list[Path]:
    """Writes one pick, or all, as ``onnx``, ``int8-onnx`` or ``tflite``; every file is checked. Returns the files.

    ``data`` and ``data_dir`` are as in ``select``, for formats that are calibrated on images.
    """
    if format not in pipeline.FORMATS:
        raise UserError(f"format {format}: known are {', '.join(pipeline.FORMATS)}")
    here = Run.existing(run)
    with here.lock():
        done = pipeline.export(here, arch, budget_ms, Path(out) if out else None, progress or Lines(), format,
                               _images(data, data_dir))
    return [Path(file.get("onnx") or file["tflite"]) for file in done["files"]]


def _images(data: Path | str | None, data_dir: Path | str | None) -> Images:
    return Images(str(data) if data else None, str(data_dir) if data_dir else None)


def _front(run: Path, found: Mapping[str, Any]) -> Front:
    def pick(card: Mapping[str, Any]) -> Pick:
        onnx = run / card["onnx"]
        own = onnx.parent.parent if card["exits"] else onnx.parent  # exits lie in a folder of the network's
        arch = Arch.from_json(Run(run).read_json((own / "arch.json").relative_to(run).as_posix()))
        return Pick(card["id"], replace(arch, exits=tuple(card["exits"])), card["ms"],
                    card["measured_ms"], card["accuracy"], card["accuracy_se"],
                    card["select_accuracy"], card["macs"], card["params"], card["fine_tuned"], run, onnx.parent, onnx,
                    tuple(card["exits"]))

    return Front(run, tuple(found["target"]), tuple(map(pick, found["front"])), tuple(map(pick, found["dominated"])))
