"""Defines the card of exits that were added to a network: ``card.json`` of ``nas exits``, and the parts it is made of.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, InstanceOf, PlainSerializer, TypeAdapter

from nas.exits.files import ExitFiles
from nas.record import Record
from nas.run.records import Excess
from nas.training.preprocessing import Preprocessing


class Reading(Record):
    """Says how a network that was trained elsewhere reads images."""

    preprocessing: Annotated[InstanceOf[Preprocessing], BeforeValidator(TypeAdapter(Preprocessing).validate_python),
                             PlainSerializer(vars)]
    classes_by: str | None = Field(description="how its outputs were matched with classes, where there are labels")
    weights_at: str | None = Field(description="key of its weights in their file, where they lie under one")
    ends_in: str = Field(description="what it gives, such as logits")


class CheckedFiles(Record):
    """Says how far files with exits are from PyTorch, on so many images."""

    relative_diff: float = Field(description="largest difference of a logit, in the largest logit")
    compared: int = Field(description="images")
    at_threshold: int = Field(description="of these: within rounding of a threshold")


class Figures(Record):
    """Holds accuracy and predicted milliseconds of a network with and without its exits."""

    kept: list[int] = Field(description="of the places where an exit could be")
    select_accuracy: float = Field(description="of each half of the split with thresholds from the other")
    select_accuracy_without: float
    accuracy: float = Field(description="on the test split")
    accuracy_se: float
    accuracy_without: float
    n: int = Field(description="test images, which accuracy, shares and mean_ms are of")
    shares: list[float] = Field(description="of these images that leave at each exit")
    mean_ms: float
    calibrated_ms: float = Field(description="mean over the images that the thresholds were set on")
    worst_ms: float
    prefix_ms: list[float] = Field(description="of leaving at each exit")
    confidence: str = Field(description="what it is made of")


class Delivered(Figures, CheckedFiles, ExitFiles):
    """Describes a folder with the files of a network with exits."""


class Times(Record):
    """Holds what the file was measured to take; None where the target is not this machine."""

    measured_ms: float | None
    measured_worst_ms: float | None
    measured_prefix_ms: list[float] | None
    drift: float | None


UNMEASURED = Times(measured_ms=None, measured_worst_ms=None, measured_prefix_ms=None, drift=None)


class ExitsCard(Times, Delivered, Reading):
    """Describes exits that were added to a network: what they were made of, where they are, what they bring."""

    id: str
    method: str
    epochs: int
    target: str
    labels: str = Field(description="whose answers accuracies are shares of")
    candidates: int = Field(description="places where an exit could be")
    thresholds: str = Field(description="name of their file")
    over_budget: dict[str, Excess] = Field(default={}, description="by target, where it is measured above a wish")
    seconds: dict[str, float]
    folder: str | None = Field(default=None, description="the folder, for who asked; not in the file")

    def to_json(self) -> dict[str, Any]:
        """Returns the fields for JSON: all of them but the last ones where nothing is to be said."""
        return self.model_dump(mode="json", exclude_defaults=True)
