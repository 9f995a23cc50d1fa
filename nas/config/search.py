"""Defines every setting that determines the result of a search, and checks them before anything is loaded.

Defaults, then a YAML file, then ``key=value`` and flags. The models are the only list of keys: new key, new field.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from nas.config.fields import Epochs, Kb, Ms, Name, Strict, listed, sides
from nas.config.gates import Gates
from nas.config.sources import from_file, from_flags, from_overrides
from nas.config.training import Training
from nas.errors import UserError, setting
from nas.paths import located
from nas.space import first_mistake

JUDGED_ON = 500  # images: by loss, a quarter of what accuracy needs (gates trial 2)
SCHEDULED = ("warmup_epochs", "search_epochs", "settle_epochs", "finetune_epochs", "epoch_images")  # of train
PLACES = ("data", "data_dir")  # where the images lie; may change between two calls of one run: they are compared
Setting = bool | int | float | list[float]  # of a method that trains exits


class Exits(Strict):
    """Holds the settings of the early exits that picks get after fine-tuning.

    ``lose`` is how many points of accuracy (%) speed may cost, ``settings`` those of the training method
    (``nas.exits.methods``), ``epochs`` as in fine-tuning if None.
    """

    method: Literal["none", "boost", "cache", "cascade", "distill", "joint", "weighted", "ztw"] = Field(
        default="none", description="How the early exits of the picks are trained; none: no exits.")
    settings: dict[str, Setting] = Field(
        default={}, description="Settings of that method (docs/exits.md).")
    confidence: Literal["max-softmax", "entropy", "patience"] = Field(
        default="max-softmax", description="When an image leaves early.")
    rule: Literal["search", "geometric"] = Field(default="search", description="How thresholds are found.")
    lose: float = Field(default=0.0, ge=0, lt=100, description="Points of accuracy (%) that speed may cost.")
    epochs: Epochs = Field(default=None, description="Epochs of the heads; default: as in fine-tuning.")

    @model_validator(mode="after")
    def _has_effect(self) -> Exits:
        changed = [key for key, field in type(self).model_fields.items() if getattr(self, key) != field.default]
        if self.method == "none" and changed:
            raise ValueError(f"{changed[0]} has no effect without a method; set exits.method=boost, for example")
        return self


class Config(Strict):
    """Holds the settings of a search; ``budgets`` is how many are spread over the reachable range without
    ``budget_ms``.
    """

    minutes: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        default=None, description="How long all of it may take; default: by the epochs of train.")
    space: Name = Field(default="ghost", description="Search space: a shipped name, or a file.")
    only_op: Name | None = Field(default=None, description="Only this operator of the space.")
    width: float = Field(default=1.0, ge=0.05, le=8, description="Factor of all channels.")
    size: Annotated[int | list[int] | None, BeforeValidator(sides)] = Field(
        default=None, description="Input side in pixels, or several that are searched; default: the data's own.")
    target: Annotated[list[Name], Field(min_length=1, max_length=16), BeforeValidator(listed)] = Field(
        description="Devices: the first is the one that budgets are of.")
    budget_ms: Annotated[list[Ms], Field(max_length=256), BeforeValidator(listed)] = Field(
        default=[], description="Latency budgets; default: as many as budgets says.")
    budgets: int = Field(
        default=6, ge=1, le=256,
        description="How many budgets are spread over the reachable range, where none is given.")
    baselines: int = Field(
        default=1, ge=0, le=16, description="How many known networks are trained beside the picks, at most.")
    branches: int | None = Field(
        default=None, ge=1, le=1000,
        description="Operators that a slot chooses from; default: as many as minutes are enough to train.")
    finalists: int = Field(
        default=1, ge=1, le=16, description="Networks of a budget that are fine-tuned a while; the best is delivered.")
    sram_kb: Kb = Field(default=None, description="SRAM of an Ethos-U in KB: no pick needs more.")
    flash_kb: Kb = Field(default=None, description="Flash of an Ethos-U in KB: no pick needs more.")
    max_ms: Ms | None = Field(default=None, description="No image takes longer on the first target, as predicted.")
    exits: Exits = Exits()
    selector: Literal["ilp", "auto", "evolution", "bayes", "random"] = Field(
        default="ilp", description="How networks are chosen; auto: the ILP on the scores that rank best.")
    objective: Literal["loss", "mnas-soft", "mnas-hard"] = Field(
        default="loss", description="What evolution and bayes choose by; mnas: MnasNet's reward.")
    shrink: int = Field(
        default=0, ge=0, le=10, description="How often evolution narrows the space to what its best networks have.")
    evaluations: int = Field(default=36, ge=1, le=1_000_000, description="Networks that the selection judges.")
    judge_images: int = Field(
        default=JUDGED_ON, ge=1, le=1_000_000, description="Held-out images that each of them is judged on.")
    data: Name = Field(default="cluttered", description="Images: cluttered, digits, cifar10, or a folder.")
    data_dir: Name | None = Field(default=None, description="Where cifar10 lies.")
    limit: int | None = Field(default=None, ge=1, description="Train on at most this many images.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Of splits, weights and everything drawn.")
    init: Name | None = Field(
        default=None, description="A finished run of the same space whose supernet this one starts from.")
    train_on: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where training runs.")
    threads: int | None = Field(default=None, ge=1, le=1024, description="Threads of training; default: all cores.")
    prune: Literal[True, False, "blocks", "layers"] = Field(
        default=True, description="Drop what loses at every budget: blocks, layers, both or neither.")
    train: Training = Training()
    gates: Gates = Gates()

    @model_validator(mode="after")
    def _minutes_or_epochs(self) -> Config:
        given = [key for key in SCHEDULED if getattr(self.train, key) is not None]
        if self.minutes is not None and given:
            raise ValueError(f"train.{given[0]} has no effect with minutes={self.minutes:g}, from which epochs follow: "
                             "leave one of them out")
        return self

    @model_validator(mode="after")
    def _has_effect(self) -> Config:
        if self.objective != "loss" and self.selector not in ("evolution", "bayes"):
            raise ValueError(f"objective={self.objective} has no effect with selector={self.selector}; set "
                             "selector=evolution or bayes")
        if self.shrink and self.selector != "evolution":
            raise ValueError(f"shrink={self.shrink} has no effect with selector={self.selector}; set "
                             "selector=evolution")
        if self.finalists > 1 and self.train.distill not in ("grow", "kd", "assistant", "none"):
            raise ValueError(f"finalists={self.finalists} is not there with train.distill={self.train.distill}, which "
                             "trains more than the pick: take grow, kd, assistant or none")
        return self

    @field_validator("target")
    @classmethod
    def _once(cls, names: list[str]) -> list[str]:
        if len(set(names)) < len(names):
            raise ValueError("every target once")
        return names

    @field_validator("budget_ms")
    @classmethod
    def _sorted(cls, values: list[float]) -> list[float]:
        return sorted({float(value) for value in values})

    @model_validator(mode="after")
    def _of_one_size(self) -> Config:
        """Refuses settings that cannot be combined with several input sizes."""
        for name in ("sram_kb", "flash_kb"):
            if self.sizes and (given := getattr(self, name)) is not None:
                raise ValueError(f"{name}={given:g} is not there for several sizes (size={self.sizes}): give one size, "
                                 f"or leave {name} out")
        if self.sizes and (method := self.exits.method) != "none":
            raise ValueError(f"exits.method={method} is not there for several sizes (size={self.sizes}): give one "
                             "size, or add exits to a pick afterwards (nas exits)")
        if self.sizes and self.objective != "loss":
            raise ValueError(f"objective={self.objective} is not there for several sizes (size={self.sizes}): leave it "
                             "out")
        return self

    @property
    def sizes(self) -> list[int]:
        """Returns the input sizes that are searched along with the network; empty if there is one size."""
        return self.size if isinstance(self.size, list) else []

    @property
    def side(self) -> int | None:
        """Returns the side in pixels at which images are loaded: the largest size; None for the data's own."""
        return self.size[0] if isinstance(self.size, list) else self.size

    def to_json(self) -> dict[str, Any]:
        """Returns every setting as a run records it."""
        return self.model_dump(mode="json")

    @staticmethod
    def from_json(value: Any, file: str) -> Config:
        """Reads the ``config.json`` of a run. Raises UserError naming ``file`` and key."""
        try:
            return Config.model_validate(value)
        except ValidationError as error:
            raise UserError(f"{file}: {recorded_mistake(error)}") from None


def recorded_mistake(error: ValidationError) -> str:
    """Describes what is wrong with settings that a run has recorded; an unknown key must come from another version."""
    mistake = first_mistake(error)
    other = "; a run of another version: use the nas that its environment.json names"
    return mistake + other if mistake.endswith(": unknown key") else mistake


C = TypeVar("C", bound=Config)


def resolve(config_file: Path | None, overrides: Sequence[str], flags: Mapping[str, Any],
            kind: type[C] = Config) -> C:  # type: ignore[assignment]
    """Merges defaults, a file, ``key=value`` texts and flags, in rising order, into checked settings of class ``kind``.

    ``flags`` are key -> value, None where a flag was not given. Raises UserError naming file or flag, key and value,
    also for a key that is given twice.
    """
    settings: dict[str, tuple[Any, str]] = {}  # dotted key -> value and where it was written
    if config_file is not None:
        settings.update((key, (located(key, value), f"{config_file}: {key}"))
                        for key, value in from_file(config_file, kind))
    given: dict[str, tuple[Any, str]] = {}
    for key, value, origin in [*from_flags(flags), *from_overrides(overrides, kind)]:
        if key in given:
            raise UserError(f"{key}: given twice, {given[key][1]} and {origin}")
        given[key] = (value, origin)
    settings |= {key: (located(key, value), where) for key, (value, where) in given.items()}
    if "target" not in settings and kind.model_fields["target"].is_required():
        raise UserError(f"{setting('target')}: missing; give a device, for example {setting('target', 'gpu-v100')} "
                        "(nas targets lists them)")
    return _checked(settings, kind)


def spread(config: Config, processes: int) -> Config:
    """Divides each batch of a search among ``processes``: a ``train.accumulate`` of 1 becomes their number.

    A run records the parts, which determine the result, and not who computed them. Raises UserError where the parts do
    not come out even.
    """
    train = config.train
    if train.accumulate % processes == 0:
        return config
    if train.accumulate > 1 or train.batch % processes or train.batch < 2 * processes:
        raise UserError(f"torchrun: {processes} processes cannot share train.batch={train.batch} in equal parts of at "
                        f"least 2 images with train.accumulate={train.accumulate}; make both multiples of {processes}")
    return config.model_copy(update={"train": train.model_copy(update={"accumulate": processes})})


def fingerprint(config: Config) -> str:
    """Returns 8 hex digits of the hash of everything that determines the result."""
    value = {key: part for key, part in config.to_json().items() if key != "data_dir"}
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:8]


def default_run_dir(config: Config) -> Path:
    """Returns ``runs/SPACE-TARGET-DATA-HEX``, so that the same settings find the same directory."""
    targets = "+".join(safe(Path(name).name.removesuffix(".json")) for name in config.target)[:80]
    return run_dir(config, targets)


def run_dir(config: Config, what: str) -> Path:
    space = safe(Path(config.space).stem if config.space.endswith((".yaml", ".yml")) else Path(config.space).name)
    return Path("runs") / f"{space}-{what}-{safe(Path(config.data).resolve().name)}-{fingerprint(config)}"


def _checked(settings: dict[str, tuple[Any, str]], kind: type[C]) -> C:
    nested: dict[str, Any] = {}
    for key, (value, _) in settings.items():
        *parents, last = key.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    try:
        return kind.model_validate(nested)
    except ValidationError as error:
        key, _, mistake = first_mistake(error).partition(": ")
        origin = _origin(settings, key, mistake)
        if key == "file" or (key not in settings and " (got {" in mistake):  # that do not go together: it names them
            mistake = mistake.rpartition(" (got ")[0]
        raise UserError(mistake if origin == "file" else f"{origin}: {mistake}") from None


def _origin(settings: Mapping[str, tuple[Any, str]], key: str, mistake: str) -> str:
    """Returns where the setting at fault was written; of a mistake in a whole group, that of the setting it names."""
    above = (where for known, (_, where) in settings.items() if f"{key}.".startswith(f"{known}."))
    first = mistake.split(" ", 1)[0]
    named = (where for known, (_, where) in settings.items() if f".{first}." in f".{known}.")
    return next(above, None) or next(named, key)


def safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._@+-]+", "_", name).strip("._-")[:40] or "data"
