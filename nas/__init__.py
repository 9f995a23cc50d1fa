"""nas: efficient vision backbones for a given device (profile, search, select, export).

What is listed in ``__all__`` is loaded when it is asked for, so that ``import nas`` needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

_HOMES = {
    "nas.api": ("Evaluation", "Measured", "Prediction", "create_model", "evaluate", "list_models", "list_spaces",
                "list_targets", "load_run", "measure", "predict", "profile", "search", "train"),
    "nas.picks": ("Front", "Pick", "SearchRun"),
    "nas.errors": ("UserError",),
    "nas.progress": ("NoProgress", "Progress"),
}

if TYPE_CHECKING:
    from nas.api import (
        Evaluation,
        Measured,
        Prediction,
        create_model,
        evaluate,
        list_models,
        list_spaces,
        list_targets,
        load_run,
        measure,
        predict,
        profile,
        search,
        train,
    )
    from nas.errors import UserError
    from nas.picks import Front, Pick, SearchRun
    from nas.progress import NoProgress, Progress

__all__ = ["Evaluation", "Front", "Measured", "NoProgress", "Pick", "Prediction", "Progress", "SearchRun", "UserError",
           "create_model", "evaluate", "list_models", "list_spaces", "list_targets", "load_run", "measure", "predict",
           "profile", "search", "train"]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'nas' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
