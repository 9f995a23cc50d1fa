"""Training states in a run: tensors and plain values, read without unpickling anything else."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch

from nas.errors import UserError
from nas.run import Run


def save(run: Run, name: str, state: dict[str, Any]) -> None:
    buffer = io.BytesIO()  # torch.save into a file turns a full disk into an error of its own
    torch.save(state, buffer)
    run.write(name, lambda file: file.write(buffer.getbuffer()))


def load(run: Run, name: str) -> dict[str, Any]:
    """Tensors and plain values only; raises UserError for a file that is truncated or not ours."""
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
    """``load_into(state)``; raises UserError where that has no use for the state, as for a file that is broken."""
    state = load(run, name)
    try:
        load_into(state)
    except Exception as error:  # of whatever kind a part of another type or shape makes
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{run.file(name)}: not of this search ({type(error).__name__}: {reason}); delete it and give "
                        "the same command: that stage starts again") from error
