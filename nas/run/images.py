"""Loads the images of a run: where they lie may change, but they must be those that it began with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from nas.config.search import Config
from nas.errors import UserError, setting
from nas.paths import BUILT_IN, absolute, located
from nas.run.directory import CONFIG, Run
from nas.run.records import DataRecord
from nas.training.data import Data, check_data_dir, load, without_images
from nas.training.pixels import Whites

DATA = "data.json"
C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class Images:
    """Says where a run's images lie now, where that is another place than it has recorded."""

    data: str | None = None
    data_dir: str | None = None


RECORDED = Images()


def with_images_at(config: C, images: Images) -> C:
    """Returns the settings with the images in another place, where one is given."""
    check_data_dir(images.data or config.data, images.data_dir)
    given = {key: located(key, value) for key, value in vars(images).items() if value is not None}
    return config.model_copy(update=given)


def require_place(run: Run, config: Config) -> None:
    """Raises UserError where the folder of a run's images is gone, with the flag that says where it is now."""
    if config.data not in BUILT_IN and not Path(config.data).expanduser().exists():
        raise UserError(f"{run.path}: its images were in {config.data}, where nothing is now: give the folder that "
                        f"they are in, with {setting('data')}")


def load_images(config: Config, run: Run) -> Data:
    """Loads the images of the settings; at the start their splits and provenance are recorded.

    Raises UserError where they are not those that the run began with, saying in what they differ.
    """
    if run.has(DATA):
        require_place(run, config)
    data_dir = (config.data_dir or _recorded_dir(run)) if config.data == "cifar10" else None
    data = load(config.data, data_dir=Path(data_dir) if data_dir else None, size=config.side, seed=config.seed,
                limit=config.limit)
    now = described(data)
    if not run.has(DATA):
        run.write_json("splits.json", data.indices)
        run.write_json(DATA, now.to_json())
        keep_place(run, config)
    before = run.read(DATA, DataRecord)
    if before.source.fingerprint != now.source.fingerprint:
        raise UserError(f"{run.path}: began with other images than those of {config.data}: "
                        f"{difference(before, now)}; name the folder of the same images with "
                        f"{setting('data')} (a search of other ones needs a directory of its own)")
    return data


def described(data: Data) -> DataRecord:
    """Returns what a run records of its images."""
    return DataRecord(name=data.name, classes=list(data.classes), size=data.size, mean=list(data.mean),
                      std=list(data.std), augment=data.augment, whites=data.whites.metadata(), source=data.source)


def recorded_images(run: Run) -> Data:
    """Returns the data set of a run without its images: enough to export a network."""
    known = run.read(DATA, DataRecord)
    return without_images(known.name, known.classes, known.size, known.mean, known.std, source=known.source,
                          augment=known.augment, whites=Whites.from_metadata(known.whites))


def keep_place(run: Run, config: Config) -> None:
    """Records where the run's images lie, once they are known to be the same, for commands that are given elsewhere."""
    recorded = run.config
    data_dir = config.data_dir or _recorded_dir(run) or (absolute("data") if config.data == "cifar10" else None)
    now = {**recorded, "data": config.data, "data_dir": data_dir}
    if now != recorded:
        run.write_json(CONFIG, now)


def difference(before: DataRecord, now: DataRecord) -> str:
    """Says in what images differ from those that were recorded before."""
    old, new = before.classes, now.classes
    if strange := sorted(set(old) ^ set(new)):
        return f"the class {strange[0]!r} is {'new' if strange[0] in new else 'missing'}"
    if before.size != now.size:
        return f"they are {now.size}x{now.size} by default, and were {before.size}x{before.size}"
    counts = [[sum(of_class) for of_class in zip(*record.source.class_counts.values(), strict=False)]
              for record in (before, now)]  # in all splits together
    for name, was, is_ in zip(new, *counts, strict=False):
        if was != is_:
            return f"{is_} of the class {name!r}, and there were {was}"
    return "as many of each class, with other pixels"


def _recorded_dir(run: Run) -> str | None:
    value = run.config.get("data_dir")
    return value if isinstance(value, str) else None
