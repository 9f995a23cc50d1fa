"""What the files of a run hold, checked where they are read: a run may be somebody else's, edited, or an old one.

Only what is read by name is here; further keys stand as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from nas.arch import Arch

FORMAT = 2  # of a run directory, in its environment.json; a run that does not say it is of the first


class _Kept(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


def _genotype(value: dict[str, Any]) -> dict[str, Any]:
    Arch.from_json(value)
    return value


Share = Annotated[float, Field(ge=0, le=1)]
Id = Annotated[str, Field(pattern=r"^\w[\w.\-]*$", max_length=64)]
File = Annotated[str, Field(pattern=r"^(selections/[^/.\x00][^/\x00]*/)?archs/\w[\w.\-]*/(exits/)?\w[\w.\-]*\.onnx$")]
Table = Annotated[str, Field(pattern=r"^tables/[^/\x00]+\.json$")]
Genotype = Annotated[dict[str, Any], AfterValidator(_genotype)]
Text = Annotated[str, Field(min_length=1)]
Ms = Annotated[float, Field(gt=0)]
ByTarget = dict[Text, Ms]
Measured = dict[Text, Ms | None]  # None: that target is not the machine that measured


class Card(_Kept):
    """A network that is delivered."""

    id: Id
    of: Id | None = None
    arch: Genotype | None = None
    ms: ByTarget
    measured_ms: Measured
    select_accuracy: Share
    select_accuracy_se: Annotated[float, Field(ge=0)] = 0.0
    accuracy: Share
    accuracy_se: Annotated[float, Field(ge=0)]
    macs: int
    params: int
    fine_tuned: bool
    fits: bool = True
    exits: list[int]
    onnx: File
    int8_onnx: File | None = None

    @model_validator(mode="after")
    def _of_one(self) -> Card:
        if bool(self.exits) != ("/exits/" in self.onnx) or (self.exits and self.of is None):
            raise ValueError("exits, of and onnx do not go together")
        return self


class Large(Card):
    """A card whose network needs more memory than there is."""

    sram_kb: Measured
    flash_kb: Measured


class Budget(_Kept):
    """What was chosen for a budget, of one target or of several together."""

    budget_ms: ByTarget
    id: Id
    ms: ByTarget


class Front(_Kept):
    """``front.json``"""

    space: Text
    target: list[Text]
    front: list[Card]
    dominated: list[Card]
    too_large: list[Large] = []
    budgets: list[Budget]
    fronts: dict[str, list[Id]] = {}
    on_several: list[Id] = []

    @model_validator(mode="after")
    def _priced(self) -> Front:
        if self.fronts and "on_several" not in self.model_fields_set:
            raise ValueError("on_several: missing")
        for card in (*self.front, *self.dominated):
            for figures in (card.ms, card.measured_ms):
                if missing := [target for target in self.target if target not in figures]:
                    raise ValueError(f"{card.id} has no ms on {missing[0]}")
        return self


class Pick(Budget):
    arch: Genotype

    @model_validator(mode="after")
    def _itself(self) -> Pick:
        if Arch.from_json(self.arch).id != self.id:
            raise ValueError(f"id: {self.id} is not that of its arch")
        return self


class Picks(_Kept):
    """``picks.json``"""

    budgets: list[Pick]
    rank_agreement: dict[str, Any]


class Images(_Kept):
    """``data.json``"""

    name: Text
    classes: Annotated[list[str], Field(min_length=1)]
    size: Annotated[int, Field(ge=1, le=4096)]
    mean: Annotated[list[float], Field(min_length=3, max_length=3)]
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)]
    fingerprint: str
    augment: Text = "flip-crop"
    whites: dict[str, str] = {}  # of files of more than 8 bits


class Splits(_Kept):
    """``splits.json``: numbers of the images."""

    train: list[int]
    gate: list[int]
    select: list[int]
    test: list[int]


class Thresholds(_Kept):
    """One point of ``thresholds.json``; infinite ones are texts, which JSON has."""

    thresholds: list[float | Literal["inf", "-inf"]]
    shares: list[Share]
    mean_ms: float
    worst_ms: float
    accuracy: Share


class ExitPolicy(_Kept):
    """``thresholds.json``"""

    kind: Literal["max-softmax", "entropy", "patience"]
    temperatures: list[Ms]
    prefix_ms: Annotated[list[Ms], Field(min_length=1)]
    n: Annotated[int, Field(ge=1)]
    point: Thresholds
    points: list[Thresholds]

    @model_validator(mode="after")
    def _one_an_exit(self) -> ExitPolicy:
        lengths = {len(part) for point in (self.point, *self.points) for part in (point.thresholds, point.shares)}
        if {len(self.temperatures), len(self.prefix_ms), *lengths} != {len(self.prefix_ms)}:
            raise ValueError("temperatures, prefix_ms, thresholds and shares are not one an exit each")
        return self


def standing(front: Mapping[str, Any], id: str, target: str) -> str:
    """Where a pick stands on a target, the one rule of table, page and picture.

    ``front``: no other is better and faster in selection, by the images that choose; ``front, dominated on test``: one
    of them is on the test images; ``dominated``; ``too large``; ``not decided yet`` before all picks are delivered.
    """
    places = {card["id"]: place for place in ("front", "dominated", "too_large", "undecided")
              for card in front.get(place, [])}
    if places[id] == "front" and id not in front.get("fronts", {}).get(target, [id]):
        return "dominated"
    on_test = any(card["id"] == id and card.get("dominated_on_test") for card in front["front"])
    return {"too_large": "too large", "undecided": "not decided yet"}.get(places[id], places[id]) + (
        ", dominated on test" if on_test else "")


class ExitPieces(_Kept):
    """``pieces.json`` of ``nas exits``: milliseconds of the parts of a network and of the heads between them."""

    trunk: Annotated[list[float], Field(min_length=1)]
    heads: Annotated[list[float], Field(min_length=1)]


_ARCH = r"(selections/[^/]+/)?archs/[^/]+/"
_FILES: tuple[tuple[str, Any], ...] = (
    (r"(selections/[^/]+/)?front\.json", Front), (r"(selections/[^/]+/)?picks\.json", Picks), (r"arch\.json", Genotype),
    (f"{_ARCH}arch\\.json", Genotype), (f"{_ARCH}card\\.json", Card),
    (f"{_ARCH}exits/card\\.json", Card | None),  # None: no exits keep within the limits
    (f"{_ARCH}exits/thresholds\\.json", ExitPolicy), (r"data\.json", Images), (r"splits\.json", Splits),
    (r"pieces\.json", ExitPieces),
    (r"tables\.json", dict[str, Table]))
_KINDS = [(re.compile(pattern), TypeAdapter[Any](kind)) for pattern, kind in _FILES]


def mistake(name: str, value: Any) -> str | None:
    """``key: what is wrong`` in the JSON file ``name`` of a run; None where nothing is, or nothing is known of it."""
    kind = next((kind for pattern, kind in _KINDS if pattern.fullmatch(name)), None)
    if kind is None:
        return None
    try:
        kind.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        return " ".join(f"{key or 'file'}: {first['msg'].removeprefix('Value error, ')}".split())[:300]
    return None
