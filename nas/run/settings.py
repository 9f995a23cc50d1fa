"""Defines the settings of ``nas train``, and which kind of work a run directory holds.

One network has the settings of a search's data and fine-tuning; what only a search has is refused, not ignored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from nas import paths
from nas.config.fields import Name, listed
from nas.config.gates import Gates
from nas.config.search import Config, recorded_mistake, run_dir, safe
from nas.errors import UserError
from nas.run.directory import Run
from nas.run.schedule import scheduled

SEARCH_ONLY = {  # refused, and not recorded
    "": ("budget_ms", "budgets", "baselines", "finalists", "sram_kb", "flash_kb", "selector", "objective", "shrink",
         "evaluations", "judge_images", "init", "prune", "gates", "max_ms", "exits"),
    "train": ("lr", "sandwich_every", "warmup_epochs", "search_epochs", "settle_epochs", "inplace", "ema", "distill",
              "largest_first", "blockwise", "attend", "attend_to"),
}

TABLES = "tables.json"  # of a run: its copy of each target that is a path
C = TypeVar("C", bound=Config)

# What other commands record, by a key that searches and trainings do not have.
OTHERS = {
    "spaces": "made by nas compare, not by nas search or nas train: see its compare.json and compare.png; the same nas "
              "compare command prints them",
    "model": "made by nas exits, not by nas search or nas train: see its card.json and pictures; its "
             "runtime.py runs it",
}


class Baseline(Config):
    """Sets the training of one network from scratch, by the recipe of fine-tuning; targets only price and time it."""

    target: Annotated[list[Name], BeforeValidator(listed)] = Field(default=[], max_length=16)
    # largest, smallest, random, a file, in a run its id; empty: the only one of the space
    arch: Annotated[str, Field(max_length=4096)] = ""
    gates: Gates = Gates(granularity="space")  # there are none, and any width may be asked for

    @model_validator(mode="after")
    def _only_what_acts(self) -> Baseline:
        for part in SEARCH_ONLY:
            place: BaseModel = getattr(self, part) if part else self
            for key in SEARCH_ONLY[part]:
                if getattr(place, key) != type(place).model_fields[key].get_default():
                    raise ValueError(f"{f'{part}.' if part else ''}{key} has no effect in nas train: leave it out")
        if self.sizes:
            raise ValueError(f"size: one network is of one size, not of {', '.join(map(str, self.sizes))}")
        return self

    def to_json(self) -> dict[str, Any]:
        """Returns what a run records: the settings that have an effect on a training of one network."""
        value = self.model_dump(mode="json")
        for part, keys in SEARCH_ONLY.items():
            for key in keys:
                del (value[part] if part else value)[key]
        return value


def default_run_dir(settings: Baseline) -> Path:
    """Returns ``runs/SPACE-train-ARCH-DATA-HEX``, so that the same settings find the same directory."""
    return run_dir(settings, f"train-{safe(settings.arch)}")


def searched(run: Run) -> Config:
    """Returns the settings of a search. Raises UserError as ``settings_of`` does, and for a run of ``nas train``."""
    settings = settings_of(run)
    if isinstance(settings, Baseline):
        raise UserError(f"{run.path}: made by nas train: one network, no supernet to select from; give a run of nas "
                        "search")
    return settings


def as_recorded(settings: C, run: Run) -> C:
    """Returns the settings with the names that the run has for what it copied, as paths may have changed since."""
    kept = settings_of(run)
    return settings.model_copy(update={key: getattr(kept, key) for key in ("space", "target", "init")})


def named_target(run: Run, target: str) -> str:
    """Returns what a run calls a target: a table's path may be given from anywhere, and the run may have been moved."""
    known = [*settings_of(run).target, *(run.read_json(TABLES) if run.has(TABLES) else ())]
    alike = list(dict.fromkeys(name for name in known if Path(name).name == Path(target).name))
    path = paths.target(target)
    return target if target in known else alike[0] if len(alike) == 1 and not Path(path).exists() else path


def settings_of(run: Run) -> Config:
    """Returns the settings of a search or of a training, as recorded.

    Raises UserError naming file and key, or the command whose directory it is where that is another.
    """
    value, file = run.config, str(run.file("config.json"))
    for key, what in OTHERS.items():
        if key in value:
            raise UserError(f"{run.path}: {what}")
    if "arch" not in value:
        return scheduled(Config.from_json(value, file), run)
    try:
        return scheduled(Baseline.model_validate(value), run)
    except ValidationError as error:
        raise UserError(f"{file}: {recorded_mistake(error)}") from None
