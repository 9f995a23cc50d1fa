"""Holds what a search or a training was given so many minutes for: epochs, fixed before the first of them."""

from __future__ import annotations

from typing import TypeVar

from pydantic import Field

from nas.config.search import Config
from nas.record import Record
from nas.run.directory import Run

SCHEDULE = "schedule.json"
C = TypeVar("C", bound=Config)


class Schedule(Record):
    """Says how long each part of a run is trained, as follows from its minutes and the speed of this machine.

    It is made once. A run that was stopped goes on by it, so that it ends as it would have; the time in which nothing
    ran does not count.
    """

    minutes: float = Field(gt=0)
    seconds: dict[str, float] = Field(description="by phase, as estimated")
    epochs: dict[str, int] = Field(description="settings of train by name")
    epoch_images: int | None = Field(default=None, description="of an epoch, where less than one pass is made")
    budget_ms: list[float] = Field(default=[], description="of the first target")

    def applied(self, config: C) -> C:
        """Returns the settings with these epochs, as if the user had given them."""
        train = config.train.model_copy(update={**self.epochs, "epoch_images": self.epoch_images})
        return config.model_copy(update={"train": train, "budget_ms": self.budget_ms or config.budget_ms})


def scheduled(config: C, run: Run) -> C:
    """Returns the settings as the schedule of a run completes them, if it has one by now."""
    return run.read(SCHEDULE, Schedule).applied(config) if run.has(SCHEDULE) else config
