"""Defines what the files of a run hold: records that are made where they are computed, written as they are, read again.

A file may be somebody else's, or edited: it is checked where it is read. Milliseconds are keyed by target everywhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import (
    BeforeValidator,
    Field,
    InstanceOf,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from nas.arch import Arch
from nas.errors import UserError, setting
from nas.exits.files import Handover
from nas.record import Record
from nas.run.provenance import Provenance
from nas.training.image_source import ImageSource
from nas.training.recipes import FineTuningRecipe
from nas.units import amount_rounded_up

TOLERANCE = 0.03  # of a budget: a network that is loaded anew is measured up to 2 % faster or slower than before

Text = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Error = Annotated[float, Field(ge=0)]
Id = Annotated[str, Field(pattern=r"^\w[\w.\-]*$", max_length=64)]
File = Annotated[str, Field(pattern=r"^(selections/[^/.\x00][^/\x00]*/)?archs/\w[\w.\-]*/(exits/)?\w[\w.\-]*\.onnx$")]
Genotype = Annotated[InstanceOf[Arch], BeforeValidator(lambda value: value if isinstance(value, Arch) else
                                                       Arch.from_json(value)), PlainSerializer(Arch.to_json)]
Ms = Annotated[float, Field(gt=0)]
ByTarget = dict[Text, Ms]
Measured = dict[Text, Ms | None]  # None: that target is not the machine that measured
AnyRecord = TypeVar("AnyRecord", bound=Record)


class Excess(Record):
    """Says how far a network is measured above its budget on a target."""

    budget_ms: Ms
    measured_ms: Ms
    above: float = Field(description="share of the budget")


class Candidate(Record):
    """Describes a network that was chosen, by what is known before it is trained to the end and delivered."""

    id: Id
    arch: Genotype | None = Field(default=None, description="not in front.json: arch.json beside the network has it")
    size: int | None = Field(default=None, ge=1, description="side of the input in pixels")
    ms: ByTarget = Field(description="predicted; of a network with exits the mean over the images")
    macs: int | None = None
    params: int | None = None
    select_accuracy: Share | None = Field(default=None, description="on the split that networks are chosen by")
    select_accuracy_se: Error = Field(default=0.0, description="standard error")


class Card(Candidate):
    """Describes a delivered network, which has weights and files of its own, and is measured and tested."""

    of: Id | None = Field(default=None, description="of a network with exits: the same network without")
    known: Text | None = Field(default=None, description="of a known network beside the picks: its name")
    macs: int
    params: int
    fine_tuned: bool
    improving: bool | None = Field(default=None, description="whether a longer training would help")
    exits: list[int] = Field(description="slots that carry an early exit")

    worst_ms: ByTarget = Field(default={}, description="predicted, of an image that leaves last")
    measured_ms: Measured
    measured_worst_ms: Measured = {}
    drift: Measured = Field(default={}, description="time of the yardstick, in that of the table")
    over_budget: dict[str, Excess] = {}
    tables: dict[str, str] = Field(default={}, description="by target, how its table shows a busy machine")

    select_accuracy: Share
    select_loss: float | None = None
    accuracy: Share = Field(description="on the test split")
    accuracy_se: Error
    test_images: int | None = None

    onnx: File
    max_abs_diff: float | None = Field(default=None, description="of the outputs in ONNX Runtime from those in PyTorch")
    relative_diff: float | None = Field(default=None, description="the same in the largest output")
    int8_onnx: File | None = Field(default=None, description="the accuracies are this file's, where there is one")
    sqnr_db: float | None = Field(default=None, description="signal to quantisation noise of the int8 file's outputs")
    same_top1: Share | None = Field(default=None, description="images on which int8 and float file agree")
    float_accuracy: Share | None = None
    float_select_accuracy: Share | None = None

    sram_kb: Measured = {}
    flash_kb: Measured = {}
    fits: bool = Field(default=True, description="whether its trained weights keep to the limits of memory")

    method: str | None = Field(default=None, description="that trained the exits")
    shares: list[Share] = Field(default=[], description="of test images that leave at each exit")
    prefix_ms: dict[Text, list[Ms]] = Field(default={}, description="predicted, of leaving at each exit")
    test_mean_ms: ByTarget = Field(default={}, description="mean over the test images")
    cuts: list[Handover] = Field(default=[], description="what is handed over behind each exit")

    dominated_on_test: bool | None = Field(default=None, description="of a pick of the front: on the test split")
    within_error_of: Id | None = Field(default=None, description="a faster pick, worse by chance if at all")
    provenance: Provenance | None = Field(default=None, description="not in front.json")

    @model_validator(mode="after")
    def _exits_and_files_agree(self) -> Card:
        if bool(self.exits) != ("/exits/" in self.onnx) or (self.exits and self.of is None):
            raise ValueError("exits, of and onnx do not go together")
        return self

    def takes(self, target: str) -> float:
        """Returns the milliseconds that count for a budget: predicted or, where it is measured above that, measured."""
        return max(self.ms[target], (self.measured_ms[target] or 0.0) / (1 + TOLERANCE))

    def brief(self) -> Card:
        """Returns the card as a front has it, without what fills a page."""
        return self.model_copy(update={"arch": None, "provenance": None})


class Budget(Record):
    """Says which network was chosen for a budget, of one target or of several together."""

    budget_ms: ByTarget
    id: Id
    size: int | None = None
    ms: ByTarget = Field(description="predicted, of the network chosen")
    measured_ms: Measured = {}


class Pick(Budget):
    """Says which network was chosen for a budget, with the network itself."""

    arch: Genotype
    others: list[Genotype] = Field(default=[], description="that may prove better when both are fine-tuned a while")

    def budget(self) -> Budget:
        """Returns the pick without its network."""
        return Budget(budget_ms=self.budget_ms, id=self.id, size=self.size, ms=self.ms, measured_ms=self.measured_ms)

    @model_validator(mode="after")
    def _has_its_own_id(self) -> Pick:
        if self.arch.id != self.id:
            raise ValueError(f"id: {self.id} is not that of its arch")
        return self


class DataRecord(Record):
    """Holds ``data.json``: what the images of a run are, and how they are normalised for its networks."""

    name: Text
    classes: list[str] = Field(min_length=1)
    size: int = Field(ge=1, le=4096, description="side in pixels; the largest of several")
    mean: list[float] = Field(min_length=3, max_length=3)
    std: list[Annotated[float, Field(gt=0)]] = Field(min_length=3, max_length=3)
    augment: Text
    whites: dict[str, str] = Field(default={}, description="of files of more than 8 bits")
    source: ImageSource


class HeldOut(Record):
    """Holds Kendall's tau of scores with loss and accuracy of ``n`` networks that the scores were made without."""

    n: int
    loss: float
    accuracy: float


class TableCorrection(Record):
    """Holds how a table's milliseconds were corrected by ``n`` measured networks: scale * ms + per_op_ms."""

    scale: float
    per_op_ms: float
    n: int


class Picks(Record):
    """Holds ``picks.json``: the answers of the selection."""

    budgets: list[Pick]
    rank_agreement: dict[str, float | None] = Field(description="Kendall's tau of the gates' scores with the losses")
    held_out: dict[str, dict[str, HeldOut]] = {}
    selector: str | None = None
    corrections: dict[str, TableCorrection] | None = Field(default=None, description="by target, where one is measured")


class Stopped(Record):
    """Describes a search that was told to stop after a stage: its networks are judged with the supernet's weights."""

    run: str
    space: Text
    until: str = Field(description="the stage")
    target: list[Text]
    sizes: list[int] = []
    front: list[Candidate] = []
    dominated: list[Candidate] = []
    budgets: list[Budget] = []
    seconds: dict[str, float]


class Front(Record):
    """Holds ``front.json``: the networks that no other dominates by the images that choose, the others, and the
    budgets.
    """

    run: str | None = Field(default=None, description="the run directory, for who asked; not in the file")
    space: Text
    target: list[Text] = Field(description="the first is that of plain budgets")
    sizes: list[int] = Field(default=[], description="sides of the input, where several were searched")
    front: list[Card] = Field(description="fastest first")
    dominated: list[Card] = []
    too_large: list[Card] = Field(default=[], description="over a limit of memory with their trained weights")
    budgets: list[Budget] = []
    fronts: dict[str, list[Id]] = Field(default={}, description="by target, where there are several: its own front")
    on_several: list[Id] = []
    share_of_slots: dict[str, Share] = Field(default={}, description="by operator, over all picks")
    rank_agreement: dict[str, float | None] = {}
    held_out: dict[str, dict[str, HeldOut]] = {}
    seconds: dict[str, float] | None = Field(default=None, description="by phase, for who asked; not in the file")

    @model_validator(mode="after")
    def _is_whole(self) -> Front:
        known = {card.id for card in self.cards}
        if unknown := [id for ids in (*self.fronts.values(), self.on_several) for id in ids if id not in known]:
            raise ValueError(f"fronts: {unknown[0]} is no pick")
        for card in (*self.cards, *self.too_large):
            for figures in (card.ms, card.measured_ms):
                if missing := [target for target in self.target if target not in figures]:
                    raise ValueError(f"target: {card.id} has no ms on {missing[0]}")
        return self

    def asked_of(self, run: Path, seconds: dict[str, float]) -> Front:
        """Returns the front with the run directory and the seconds of each phase, for whoever asked for it."""
        return self.model_copy(update={"run": str(run), "seconds": seconds})

    @property
    def cards(self) -> list[Card]:
        """Returns the picks, those of the front first."""
        return [*self.front, *self.dominated]

    def card(self, id: str) -> Card:
        """Returns the pick of an id. Raises KeyError where there is none."""
        for card in self.cards:
            if card.id == id:
                return card
        raise KeyError(id)

    def of(self, target: str) -> list[Card]:
        """Returns the picks that no other dominates on a target, fastest first."""
        return [self.card(id) for id in self.fronts[target]] if target in self.fronts else self.front

    def best(self, ms: float, target: str | None = None) -> Card:
        """Returns the most accurate pick of the front, by the images that choose, that ``takes`` at most ``ms`` on a
        target (default: the first). Raises UserError where there is none, with the least that one takes.
        """
        if not self.target:
            raise UserError(f"{setting('budget_ms')}: this run has no target, so no latency is known; give "
                            f"{setting('arch')}")
        if not self.cards:
            raise UserError(f"{setting('budget_ms')}: this run has no pick that fits")
        on = target or self.target[0]
        within = [card for card in self.front if card.takes(on) <= ms]
        if not within:
            cheapest = min(card.takes(on) for card in self.front)
            raise UserError(f"{setting('budget_ms', f'{ms:g}')}: the cheapest pick of this run takes "
                            f"{amount_rounded_up(cheapest, on)}; nas select finds others")
        return max(within, key=lambda card: (card.select_accuracy, -card.ms[on]))

    def standing(self, id: str, target: str) -> str:
        """Returns where a pick stands on a target, the one rule of table, page and picture.

        ``front``: no other is better and faster in selection, by the images that choose; ``front, dominated on test``:
        one of them is on the test images; ``dominated``; ``too large``.
        """
        if any(card.id == id for card in self.too_large):
            return "too large"
        card = self.card(id)
        on_its_front = card in self.front and id in self.fronts.get(target, [id])
        return ("front" if on_its_front else "dominated") + (", dominated on test" if card.dominated_on_test else "")


class FeatureMap(Record):
    """Describes one output of a network that was exported without its head."""

    name: str
    channels: int
    stride: int


class ExportedFile(Record):
    """Describes a file of a pick in the format that was asked for."""

    id: Id
    predicted_ms: ByTarget
    onnx: str | None = None
    tflite: str | None = None
    features: list[FeatureMap] | None = None
    max_abs_diff: float | None = Field(default=None, description="of the outputs from those in PyTorch")
    relative_diff: float | None = Field(default=None, description="the same in the largest output")
    compared: int | None = Field(default=None, description="images on which a file with exits was compared")
    at_threshold: int | None = Field(default=None, description="of these: within rounding of a threshold")
    sqnr_db: float | None = Field(default=None, description="signal to quantisation noise of an int8 file's outputs")
    same_top1: Share | None = None
    measured_ms: Measured = {}
    drift: Measured = {}
    over_budget: dict[str, Excess] = {}


class Exported(Record):
    """Holds the result of ``nas export``: the files that it wrote."""

    files: list[ExportedFile]
    target: list[Text]


class JudgedNetwork(Record):
    """Describes how a network does with the supernet's weights on the selection split."""

    id: Id
    size: int
    loss: float | None = Field(default=None, description="None where it is no number")
    accuracy: Share
    accuracy_se: Error
    ms: ByTarget
    macs: int
    params: int


class JudgedNetworks(Record):
    """Holds the result of ``nas judge`` for a file of networks, in its order."""

    run: str
    split: str
    images: int
    networks: list[JudgedNetwork]


class Spread(Record):
    """Summarises test accuracy of the ``n`` networks of a space at a budget: mean, standard deviation, and that of the
    best by the images that choose. None where they are too few.
    """

    budget_ms: ByTarget
    n: int
    mean: Share | None = None
    sd: Error | None = None
    best: Share | None = None


class ComparedSpace(Record):
    """Holds the random networks of one space, trained and tested."""

    space: Text
    reach_ms: dict[Text, list[Ms]] = Field(description="of the smallest and of the largest network, predicted")
    budgets: list[Spread]
    front: list[Card]
    dominated: list[Card]
    hypervolume: float | None = Field(default=None, description="of the front, below the slowest and the worst of all")

    @property
    def cards(self) -> list[Card]:
        """Returns every network, those of the front first."""
        return [*self.front, *self.dominated]


class Comparison(Record):
    """Holds ``compare.json``: spaces beside each other, of equal budgets, images and training."""

    run: str | None = Field(default=None, description="the run directory, for who asked; not in the file")
    target: list[Text] = Field(min_length=1, max_length=1)
    data: Text
    size: int
    seed: int
    recipe: FineTuningRecipe
    budget_ms: dict[Text, list[Ms]]
    networks: int = Field(description="of each space at each budget")
    spaces: list[ComparedSpace]
    seconds: dict[str, float] | None = Field(default=None, description="by phase, for who asked; not in the file")


def first_mistake(error: ValidationError) -> str:
    """Returns ``key: what is wrong`` of the first mistake."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    return " ".join(f"{key or 'file'}: {first['msg'].removeprefix('Value error, ')}".split())[:300]
