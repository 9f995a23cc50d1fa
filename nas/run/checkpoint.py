"""Saves what is trained in a run, and continues it: tensors and plain values, read without unpickling anything else."""

from __future__ import annotations

import io
from typing import IO, Any, BinaryIO, Protocol, cast

import torch

from nas.errors import UserError
from nas.run.directory import Run


class Resumable(Protocol):
    """Is trained epoch by epoch; its state is a dictionary as PyTorch's modules and optimizers have, with ``done``."""

    done: int  # epochs

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def save(run: Run, name: str, training: Resumable) -> None:
    """Writes where a training stands, atomically and without a copy in memory. Raises UserError for a full disk."""
    run.write(name, lambda file: _Streamed(file).take(training.state_dict()))


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


def resume(run: Run, name: str, training: Resumable) -> None:
    """Continues a training, built anew, from where it was saved.

    Raises UserError where that was another training, as for a file that is broken.
    """
    state = load(run, name)
    try:
        training.load_state_dict(state)
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
