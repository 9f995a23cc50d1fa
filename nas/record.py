"""Defines the base class of records: what a file or a result says, checked where it is read, and written as JSON."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Holds what a file, or a part of it, says; fields that are None are not written."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    def to_json(self) -> dict[str, Any]:
        """Returns the fields that are not None as plain values for JSON."""
        return self.model_dump(mode="json", exclude_none=True)
