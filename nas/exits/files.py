"""Defines what is said of the files of a network with exits."""

from __future__ import annotations

from pydantic import Field

from nas.record import Record


class Handover(Record):
    """Says what a segment hands on for one image, if the next one runs on another machine: shapes, and their bytes."""

    map: list[int]
    state: list[int] | None = Field(default=None, description="of what exits tell each other, where they do")
    bytes: int


class ExitFiles(Record):
    """Names the files of a network with exits: one with ``If`` for single images, and one a segment for batches."""

    onnx: str
    segments: list[str]
    runtime: str = Field(description="the Python file that runs either")
    cuts: list[Handover] = Field(description="behind each exit, what is handed over there")
