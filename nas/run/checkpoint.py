"""Stores training states in a run: tensors and plain values, read without unpickling anything else."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import IO, Any, BinaryIO, cast

import torch

from nas.errors import UserError
from nas.run.directory import Run


def save(run: Run, name: str, state: dict[str, Any]) -> None:
    """Writes a state atomically, without a copy of it in memory. Raises UserError for a disk that is full."""
    run.write(name, lambda file: _Streamed(file).take(state))


def load(run: Run, name: str) -> dict[str, Any]:
    """Reads a state: tensors and plain values only. Raises UserError for a file that is truncated or not ours."""
    path = run.file(name)
    try:
        state = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or type(state.get("done")) is not int or state["done"] < 0:
            raise ValueError("no checkpoint of ours")
    except Exception as error:  # torch raises many kinds for a broken file
        reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
        raise UserError(f"{path}: truncated or not a checkpoint ({reason}); delete it and give the same command: that "
                        "stage starts again") from None
    return state


def resume(run: Run, name: str, load_into: Callable[[dict[str, Any]], None]) -> None:
    """Reads a state and passes it to ``load_into``.

    Raises UserError where that has no use for the state, as for a file that is broken.
    """
    state = load(run, name)
    try:
        load_into(state)
    except Exception as error:  # of whatever kind a part of another type or shape makes
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{run.file(name)}: not of this search ({type(error).__name__}: {reason}); delete it and give "
                        "the same command: that stage starts again") from error


class _Streamed:
    """Wraps a file for ``torch.save``, which hides a full disk behind an error of its own: this raises the disk's."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.refused: OSError | None = None

    def take(self, state: dict[str, Any]) -> None:
        try:
            torch.save(state, cast(IO[bytes], self))
        except RuntimeError:
            if self.refused is not None:
                raise self.refused from None
            raise

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.refused = error
            raise

    def flush(self) -> None:
        self.file.flush()
