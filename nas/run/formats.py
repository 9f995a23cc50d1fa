"""Says which file of a run holds what, and checks it where it is read, as it may be somebody else's, or edited."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from nas.exits.thresholds import Policy
from nas.run.records import Card, Comparison, DataRecord, Front, Genotype, Picks, first_mistake

Table = Annotated[str, Field(pattern=r"^tables/[^/\x00]+\.json$")]


class _Kept(BaseModel):
    """Checks the keys of a file that are read by name; further keys stand as they are."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class Splits(_Kept):
    """Holds ``splits.json``: the numbers of the images of each split."""

    train: list[int]
    gate: list[int]
    select: list[int]
    test: list[int]


class ExitPieces(_Kept):
    """Holds ``pieces.json`` of ``nas exits``: milliseconds of the parts of a network and of the heads between them."""

    trunk: Annotated[list[float], Field(min_length=1)]
    heads: Annotated[list[float], Field(min_length=1)]


_ARCH = r"(selections/[^/]+/)?archs/[^/]+/"
_FILES: tuple[tuple[str, Any], ...] = (
    (r"(selections/[^/]+/)?front\.json", Front), (r"(selections/[^/]+/)?picks\.json", Picks), (r"arch\.json", Genotype),
    (f"{_ARCH}arch\\.json", Genotype), (f"{_ARCH}card\\.json", Card),
    (f"{_ARCH}exits/card\\.json", Card | None),  # None: no exits keep within the limits
    (f"{_ARCH}exits/thresholds\\.json", Policy), (r"data\.json", DataRecord), (r"splits\.json", Splits),
    (r"pieces\.json", ExitPieces),
    (r"tables\.json", dict[str, Table]), (r"compare\.json", Comparison))
_KINDS = [(re.compile(pattern), TypeAdapter[Any](kind)) for pattern, kind in _FILES]


def mistake(name: str, value: Any) -> str | None:
    """Returns ``key: what is wrong`` in a JSON file of a run; None where nothing is, or the file is not known."""
    kind = next((kind for pattern, kind in _KINDS if pattern.fullmatch(name)), None)
    if kind is None:
        return None
    try:
        kind.validate_python(value)
    except ValidationError as error:
        return first_mistake(error)
    return None
