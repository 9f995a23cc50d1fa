"""The Python interface: what the commands do, keyword by keyword, with results as objects.

    import nas

    run = nas.search(space="ghost", target="gpu-v100", data="cluttered", budget_ms=[0.2, 0.4])
    for pick in run.front:
        print(pick.id, pick.ms["gpu-v100"], pick.accuracy)
    network = run.front.best(ms=0.3).load_model()          # a torch module with its trained weights
    cpu = run.select(target="cpu", budget_ms=2.0)          # from the same supernet, in minutes
    files = run.export(out="out", format="onnx")

Keywords are those of the commands; None is their default. Every function raises ``nas.UserError``, one line, for what
the caller has to mend. ``progress=nas.NoProgress()`` is silent; by default progress goes to stderr.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from nas import sampling
from nas.config.fields import listed
from nas.config.search import resolve, spread
from nas.errors import UserError, setting
from nas.files import shipped
from nas.latency import devices
from nas.latency.costs import targets as known_targets
from nas.latency.devices import Measured
from nas.latency.predict import Prediction, predict_on
from nas.ops import user_files
from nas.picks import Front, Pick, SearchRun, Text
from nas.pipeline.begin import begin_search, begin_training
from nas.pipeline.evaluate import Evaluation
from nas.pipeline.evaluate import evaluate as evaluate_file
from nas.pipeline.profile import profile_spaces
from nas.pipeline.train_one import choose_arch
from nas.plan import Task, layout
from nas.progress import Lines, Progress
from nas.run.directory import Run
from nas.run.settings import Baseline
from nas.space import Space
from nas.subnet import Backbone, build
from nas.training.preprocessing import Preprocessing
from nas.training.torchrun import processes

__all__ = ["Evaluation", "Front", "Measured", "Pick", "Prediction", "SearchRun", "create_model", "evaluate",
           "list_models", "list_spaces", "list_targets", "load_run", "measure", "predict", "profile", "search", "train"]


def search(*, space: Text | None = None, target: Text | Sequence[Text], minutes: float | None = None,
           budget_ms: float | Sequence[float] = (), sram_kb: float | None = None, flash_kb: float | None = None,
           data: Text | None = None, data_dir: Text | None = None, limit: int | None = None,
           size: int | Sequence[int] | None = None, width: float | None = None, only_op: str | None = None,
           selector: str | None = None, seed: int | None = None, train_on: str | None = None,
           threads: int | None = None, exits: str | None = None, max_ms: float | None = None, prune: bool | None = None,
           baselines: int | None = None,
           init: Text | None = None, config: Text | None = None, ops: Text | Sequence[Text] = (),
           until: str | None = None, run: Text | None = None, settings: Mapping[str, Any] | None = None,
           progress: Progress | None = None) -> SearchRun:
    """Trains a supernet, prunes it, picks networks at each budget, fine-tunes and exports them.

    At most ``baselines`` known networks that fit the budgets are trained beside the picks, and delivered where better.
    The same call continues what was stopped, in ``run`` (default: a directory named after the settings). ``settings``
    holds every other setting by its dotted name, such as ``{"train.lr": 0.05}``; ``nas settings`` lists them.
    """
    given = {"space": space, "target": list(listed(target)), "minutes": minutes,
             "budget_ms": list(listed(budget_ms)) or None, "sram_kb": sram_kb, "flash_kb": flash_kb, "data": data,
             "data_dir": data_dir, "limit": limit,
             "size": size if size is None or isinstance(size, int) else list(size), "width": width, "only_op": only_op,
             "selector": selector, "seed": seed, "train_on": train_on, "threads": threads, "exits.method": exits,
             "max_ms": max_ms, "prune": prune, "baselines": baselines, "init": init}
    user_files.load(list(listed(ops)))
    resolved = spread(resolve(_path(config), [], _values(given, settings)), processes())
    return SearchRun(Path(str(begin_search(resolved, _path(run), progress or Lines(), until).run)))


def train(*, arch: Text | None = None, space: Text | None = None, epochs: int | None = None,
          minutes: float | None = None, target: Text | Sequence[Text] = (), data: Text | None = None,
          data_dir: Text | None = None, limit: int | None = None, size: int | None = None, width: float | None = None,
          seed: int | None = None, train_on: str | None = None, threads: int | None = None, config: Text | None = None,
          ops: Text | Sequence[Text] = (), run: Text | None = None, settings: Mapping[str, Any] | None = None,
          progress: Progress | None = None) -> SearchRun:
    """Trains one network of a space from scratch, as picks are fine-tuned: ``arch`` is largest, smallest, random, or
    the file of one (default: the only network of a preset). The front of the run has this one pick.
    """
    given = {"arch": arch, "space": space, "minutes": minutes, "target": list(listed(target)) or None, "data": data,
             "data_dir": data_dir, "limit": limit, "size": size, "width": width, "seed": seed, "train_on": train_on,
             "threads": threads, "train.finetune_epochs": epochs}
    user_files.load(list(listed(ops)))
    resolved = resolve(_path(config), [], _values(given, settings), Baseline)
    return SearchRun(Path(str(begin_training(resolved, _path(run), progress or Lines()).run)))


def load_run(path: Text) -> SearchRun:
    """Returns the run that stands in a directory. Raises UserError where there is none."""
    return SearchRun(Run.existing(path).path)


def profile(*, device: str = "cpu", space: Text | Sequence[Text] = (), size: int = 224, classes: int = 10,
            width: float | None = None, exits: bool = False, threads: int = 1, batch: int = 1,
            precision: str | None = None, remeasure: bool = False, out: Text | None = None, validate: int = 0,
            ops: Text | Sequence[Text] = (), seed: int = 0, progress: Progress | None = None) -> Path:
    """Measures what the latency table of a device lacks of some spaces (default: all shipped ones). Returns the table.
    """
    user_files.load(list(listed(ops)))
    done = profile_spaces([str(name) for name in list(listed(space))], Task(size, 3, classes), _path(out),
                          progress or Lines(), device=device, width=width or 1.0, exits=exits, threads=threads,
                          batch=batch, precision=precision, remeasure=remeasure, validate=validate, seed=seed)
    return Path(done.table)


def measure(model: Text, *, device: str = "cpu", threads: int = 1, batch: int | None = None,
            size: int | None = None) -> Measured:
    """Times an ONNX file on a device of this machine: ``ms`` is the 5th percentile of many runs."""
    return devices.measure(Path(model), device, threads=threads, batch=batch, size=size)


def predict(model: Text, *, target: Text, size: int | None = None, allow_unknown: bool = False) -> Prediction:
    """Adds up what an ONNX file costs by a target's model, operator by operator; nothing is measured."""
    return predict_on(str(target), Path(model), size, allow_unknown)


def evaluate(model: Text | SearchRun, *, arch: str | None = None, budget_ms: float | None = None,
             data: Text | None = None, data_dir: Text | None = None, split: str = "test", size: int | None = None,
             seed: int | None = None, mean: Sequence[float] | None = None, std: Sequence[float] | None = None,
             scale: float | None = None, classes: Sequence[str] | None = None,
             progress: Progress | None = None) -> Evaluation:
    """Computes the accuracy of an ONNX file, or of a pick of a run, on images: top-1, top-5 and of every class.

    ``mean``, ``std`` and ``scale`` say how the network wants its input (default: what the file says, else ImageNet's),
    ``classes`` what its outputs are called.
    """
    place = model.path if isinstance(model, SearchRun) else Path(model)
    how = Preprocessing.from_flags(_words(mean), _words(std), scale)
    return evaluate_file(place, arch=arch, budget_ms=budget_ms, data=str(data) if data else None,
                         data_dir=str(data_dir) if data_dir else None, split=split, size=size, seed=seed,
                         preprocessing=how, classes=classes, progress=progress or Lines())


def create_model(name: Text, *, num_classes: int = 1000, size: int = 224, in_chans: int = 3, arch: str | None = None,
                 seed: int = 0, features_only: bool = False) -> nn.Module:
    """Builds a network with random weights: a known one (``list_models``), or one of a space.

    ``name@0.5`` has half the channels; ``arch`` is largest, smallest or random (drawn by ``seed``) of a space of
    several networks. With ``features_only`` it has no head and returns the map of each stride.
    """
    at = layout(Space.load(str(name)), Task(size, in_chans, num_classes))
    if arch is None and sampling.count(at) > 1:
        raise UserError(f"{setting('arch')}: {name} has {sampling.count(at):.3g} networks; give largest, smallest or "
                        "random")
    if arch not in (None, "largest", "smallest", "random"):
        raise UserError(f"{setting('arch', arch)}: give largest, smallest or random")
    network = build(at, choose_arch(at, arch or "largest", seed))
    return Backbone(network) if features_only else network


def list_models() -> list[str]:
    """Returns the names of the known networks that are shipped; each takes a width, as in ``mobilenet_v2@0.5``."""
    return shipped("search_spaces/presets", ".yaml")


def list_spaces() -> list[str]:
    """Returns the names of the search spaces that are shipped."""
    return shipped("search_spaces", ".yaml")


def list_targets() -> list[str]:
    """Returns the names of the devices whose costs are known here, and of the counts that can be a target."""
    return [target.name for target in known_targets()]


def _path(value: Text | None) -> Path | None:
    return None if value is None else Path(value)


def _words(values: Sequence[float] | None) -> str | None:
    return None if values is None else ",".join(map(str, values))


def _values(given: Mapping[str, Any], settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the settings by name with paths as text. Raises UserError for one that is given twice."""
    twice = [key for key, value in given.items() if value is not None and key in (settings or {})]
    if twice:
        raise UserError(f"{setting(twice[0])}: given twice, as a keyword and in settings")
    every = {**given, **(settings or {})}
    return {key: _plain(value) for key, value in every.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value
