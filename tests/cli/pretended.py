"""Modules that a command calls, with other functions in them."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest

import nas

Call = Callable[..., tuple[int, str, str]]


def pretend(monkeypatch: pytest.MonkeyPatch, name: str, **functions: Any) -> None:
    """Stands in for a module that a verb imports."""
    module = types.ModuleType(name)
    for key, value in functions.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)
    parent, _, last = name.rpartition(".")
    monkeypatch.setattr(sys.modules.get(parent, nas), last, module, raising=False)
