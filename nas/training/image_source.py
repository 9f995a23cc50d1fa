"""Defines what is known of where a data set's images came from; needs no PyTorch, as whoever reads a run does."""

from __future__ import annotations

from pydantic import Field

from nas.record import Record


class ImageSource(Record):
    """Says where images came from and how they were divided; keys of dictionaries are splits, where nothing else is
    said.
    """

    origin: str = Field(description="folder or name of the collection")
    fingerprint: str = Field(default="", description="digest of images, labels and class names")
    available: int = Field(default=0, description="images before a limit")
    limit: int | None = None
    seed: int = Field(default=0, description="of the splits")
    sizes: dict[str, int] = {}
    classes: list[str] = Field(default=[], description="in the order of the counts; a network may have others, too")
    class_counts: dict[str, list[int]] = {}
    splits: dict[str, str] = Field(default={}, description="where the images of each come from, in words")
    needed: str = Field(default="", description="advice: how many images a class needs to be in every split")
    pixels: str = Field(default="", description="how they became square and RGB")
    ignored: list[str] = Field(default=[], description="folders beside those of the splits")
    skipped: dict[str, int] = Field(default={}, description="by kind, what a folder has beside images")
    reach: list[int] = Field(default=[], description="levels, of 255, with 0.1 % of the pixels beyond")
    cut: dict[str, int] = Field(default={}, description="by pool, images with values above white")
