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

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from nas.config.sources import from_file, from_flags, from_overrides
from nas.errors import UserError, setting
from nas.paths import located
from nas.space import first_mistake

SIDES = (8, 1024)
JUDGED_ON = 500  # images: by loss, a quarter of what accuracy needs (gates trial 2)
PLACES = ("data", "data_dir")  # where the images lie; may change between two calls of one run: they are compared


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True)


def listed(value: Any) -> Any:
    """Puts a single value into a list, so that a setting takes one or several."""
    return [value] if isinstance(value, str | int | float) and not isinstance(value, bool) else value


def sides(value: Any) -> Any:
    """Checks the setting ``size``: None, one side in pixels, or several, which it sorts, the largest first.

    Raises ValueError.
    """
    given = value if isinstance(value, list | tuple) else [] if value is None else [value]
    for side in given:
        if isinstance(side, bool) or not isinstance(side, int) or not SIDES[0] <= side <= SIDES[1]:
            raise ValueError(f"an input side is a whole number from {SIDES[0]} to {SIDES[1]}, or a list of these")
    if len(given) > 16 or len(set(given)) < len(given):
        raise ValueError("every size once, and at most 16 of them")
    return sorted(given, reverse=True) if len(given) > 1 else given[0] if given else None


Epochs = Annotated[int, Field(ge=0, le=100_000)] | None  # None: from the number of images
Name = Annotated[str, Field(min_length=1, max_length=4096)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Ms = Annotated[float, Field(gt=0)]
Kb = Annotated[float, Field(ge=1)] | None  # of 1024 bytes


class Training(_Strict):
    """Sets how weights are trained: AdamW with a one-cycle schedule; epochs count passes over the train split."""

    batch: int = Field(default=32, ge=2, le=65_536)
    lr: float = Field(default=0.003, gt=0, le=100)  # of the supernet
    finetune_lr: float = Field(default=0.002, gt=0, le=100)
    weight_decay: float = Field(default=0.02, ge=0, le=1)
    sandwich_every: int = Field(default=2, ge=0, le=1000)  # steps between two of the largest, the costliest; 0: never
    largest_first: Share | None = None  # share of the warm-up in which the largest network learns alone, and, after it,
    blockwise: Share | None = None  # in which choices learn what the largest's blocks do; None: see ``beginning``
    warmup_epochs: Epochs = None
    search_epochs: Epochs = None
    settle_epochs: Epochs = None
    finetune_epochs: Epochs = None
    augment: Name | None = None  # None: what suits the data
    label_smoothing: Fraction = 0.05
    distill: Literal["kd", "none", "hints", "fsp", "mutual", "born-again", "assistant"] = "kd"
    inplace: Literal["kl", "alpha"] = "kl"  # what small networks of the supernet learn from the largest by
    attend: Literal["none", "best-up", "worst-up"] = "none"  # which of ``attend_to`` random networks is trained
    attend_to: int = Field(default=3, ge=2, le=32)
    ema: Fraction = 0.0  # decay of the supernet's averaged weights, which are then those judged and inherited; 0: none
    accumulate: int = Field(default=1, ge=1, le=65_536)  # parts a batch is computed in: memory of one, statistics, too
    amp: Literal["auto", "none", "bf16", "fp16"] = "auto"  # half precision in training; auto: on a GPU

    @model_validator(mode="after")
    def _parts_of_the_warmup(self) -> Training:
        first, then = self.largest_first or 0.0, self.blockwise or 0.0
        if first + then > 1 + 1e-9:
            raise ValueError(f"largest_first {first:g} and blockwise {then:g} are shares of one warm-up: together at "
                             "most 1")
        return self

    def beginning(self, trained: bool) -> tuple[float, float]:
        """Returns the shares of the warm-up of ``largest_first`` and ``blockwise``. Where none was given: 0 for weights
        that are ``trained`` already, else 0.6 and 0.4; where one was given, the other is at most what it leaves.
        """
        first, then = self.largest_first, self.blockwise
        if trained and first is None and then is None:
            return 0.0, 0.0
        first = min(0.6, 1 - (then or 0.0)) if first is None else first
        return first, min(0.4, 1 - first) if then is None else then

    @model_validator(mode="after")
    def _equal_parts(self) -> Training:
        if self.batch % self.accumulate or self.batch < 2 * self.accumulate:
            raise ValueError(f"batch {self.batch} does not make {self.accumulate} (accumulate) equal parts of at least "
                             "2 images")
        return self


class Dual(_Strict):
    """Sets the latency term loss + l g + rho/2 g^2, g = expected ms / budget - 1, after whose steps l <- l + lr g.

    The defaults come from a trial of ours, not from a paper.
    """

    lr: float = Field(default=0.05, gt=0, le=100)
    rho: float = Field(default=1.0, ge=0, le=1000)


class FBNet(_Strict):
    """Sets the latency term of FBNet: loss * alpha log(expected us)^beta."""

    alpha: float = Field(default=0.2, gt=0, le=1000)
    beta: float = Field(default=0.6, gt=0, le=100)


class Proxyless(_Strict):
    """Sets the latency term of ProxylessNAS, added to the loss or multiplied with it.

    ``add``: loss + weight (expected ms / budget - 1); ``mul``: loss * alpha (log expected us / log budget)^beta.
    """

    form: Literal["add", "mul"] = "add"
    weight: float = Field(default=0.1, gt=0, le=1000)
    alpha: float = Field(default=0.2, gt=0, le=1000)
    beta: float = Field(default=0.3, gt=0, le=100)

    @model_validator(mode="after")
    def _has_effect(self) -> Proxyless:
        for name in ("alpha", "beta") if self.form == "add" else ("weight",):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect with form={self.form}")
        return self


class Mnas(_Strict):
    """Sets the latency term of MnasNet: loss * (expected ms / budget)^-w, w = alpha within the budget, else beta."""

    alpha: float = Field(default=-0.07, ge=-100, le=0)
    beta: float = Field(default=-0.07, ge=-100, lt=0)


class Gates(_Strict):
    """Sets how gates are trained: a step ``every`` batches, temperature falling from ``tau_start`` to ``tau_end``."""

    relaxation: Literal["two-path", "single", "gumbel"] = "two-path"
    lr: float = Field(default=0.05, gt=0, le=100)
    tau_start: float = Field(default=2.0, gt=0, le=1000)
    tau_end: float = Field(default=0.3, gt=0, le=1000)
    every: int = Field(default=1, ge=1, le=10_000)
    latency: Literal["projection", "dual", "fbnet", "proxyless", "mnas"] = "projection"
    update: Literal["bilevel", "single"] = "bilevel"  # single: gates and weights learn from one loss on both splits
    widths: Literal["pair", "enumerated"] = "pair"  # enumerated: each width a choice of its own, for comparisons
    granularity: Literal["target", "space"] = "target"  # target: no width where a wider one costs no more on any
    dual: Dual = Dual()
    fbnet: FBNet = FBNet()
    proxyless: Proxyless = Proxyless()
    mnas: Mnas = Mnas()

    @property
    def latency_options(self) -> dict[str, Any]:
        """Returns the settings of the chosen latency term."""
        return {} if self.latency == "projection" else getattr(self, self.latency).model_dump()

    @model_validator(mode="after")
    def _falls(self) -> Gates:
        if self.tau_end > self.tau_start:
            raise ValueError(f"tau_end {self.tau_end:g} is above tau_start {self.tau_start:g}")
        return self

    @model_validator(mode="after")
    def _has_effect(self) -> Gates:
        for name in ("dual", "fbnet", "proxyless", "mnas"):
            if name != self.latency and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect with latency={self.latency}; set gates.latency={name}")
        asked = (self.latency, self.update, self.widths)
        if self.relaxation == "single" and asked != ("projection", "bilevel", "pair"):
            raise ValueError(f"relaxation single learns no gates, so latency={self.latency}, update={self.update} and "
                             f"widths={self.widths} have no effect; set gates.relaxation=two-path")
        return self


class Exits(_Strict):
    """Holds the settings of the early exits that picks get after fine-tuning.

    ``lose`` is how many points of accuracy (%) speed may cost, ``settings`` those of the training method
    (``nas.exits.methods``), ``epochs`` as in fine-tuning if None.
    """

    method: Literal["none", "boost", "cache", "cascade", "distill", "joint", "weighted", "ztw"] = "none"
    settings: dict[str, bool | int | float | list[float]] = {}
    confidence: Literal["max-softmax", "entropy", "patience"] = "max-softmax"
    rule: Literal["search", "geometric"] = "search"
    lose: float = Field(default=0.0, ge=0, lt=100)
    epochs: Epochs = None

    @model_validator(mode="after")
    def _has_effect(self) -> Exits:
        changed = [key for key, field in type(self).model_fields.items() if getattr(self, key) != field.default]
        if self.method == "none" and changed:
            raise ValueError(f"{changed[0]} has no effect without a method; set exits.method=boost, for example")
        return self


class Config(_Strict):
    """Holds the settings of a search; without ``budget_ms`` it has ``budgets``, geometric over the reachable range."""

    space: Name = "ghost"
    only_op: Name | None = None
    width: float = Field(default=1.0, ge=0.05, le=8)
    # input side; None: the data's own; several: searched along with the network
    size: Annotated[int | list[int] | None, BeforeValidator(sides)] = None
    target: Annotated[list[Name], Field(min_length=1, max_length=16), BeforeValidator(listed)]
    budget_ms: Annotated[list[Ms], Field(max_length=256), BeforeValidator(listed)] = []
    budgets: int = Field(default=6, ge=1, le=256)
    sram_kb: Kb = None  # of a target that Vela compiles; None: no limit
    flash_kb: Kb = None
    max_ms: Ms | None = None  # of any image on the first target; with exits budgets bound the mean; None: no limit
    exits: Exits = Exits()
    selector: Literal["ilp", "auto", "evolution", "bayes", "random"] = "ilp"  # auto: the ILP on the scores that rank
    # best; random: best of as many, the control
    objective: Literal["loss", "mnas-soft", "mnas-hard"] = "loss"  # of evolution and bayes; mnas: MnasNet's reward
    shrink: int = Field(default=0, ge=0, le=10)  # times that evolution narrows the space to what its best networks have
    evaluations: int = Field(default=36, ge=1, le=1_000_000)
    judge_images: int = Field(default=JUDGED_ON, ge=1, le=1_000_000)  # held out; each is ranked by its loss on them
    data: Name = "digits"
    data_dir: Name | None = None
    limit: int | None = Field(default=None, ge=1)  # images of train, gate and select together
    seed: int = Field(default=0, ge=0, lt=2**32)
    init: Name | None = None  # a finished run of the same space whose supernet this one starts from
    train_on: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(default=None, ge=1, le=1024)  # of torch, in training; None: all cores
    prune: Literal[True, False, "blocks", "layers"] = True  # or these alone; widths that lost go with either
    train: Training = Training()
    gates: Gates = Gates()

    @model_validator(mode="after")
    def _has_effect(self) -> Config:
        if self.objective != "loss" and self.selector not in ("evolution", "bayes"):
            raise ValueError(f"objective={self.objective} has no effect with selector={self.selector}; set "
                             "selector=evolution or bayes")
        if self.shrink and self.selector != "evolution":
            raise ValueError(f"shrink={self.shrink} has no effect with selector={self.selector}; set "
                             "selector=evolution")
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
        if key == "file":  # of settings that do not go together: the text names them
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
