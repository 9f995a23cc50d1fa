"""Defines the exception for what a user wrote wrong, and names the settings and calls that its message is made of.

A message is made with ``setting("budget_ms")`` and ``call("profile", device="cpu")``, never with a flag. A Python
program reads ``budget_ms`` and ``profile(device='cpu')``; the command line puts names of its own in place, its flags
and commands. A message is never searched for names afterwards, so nothing that a user typed is taken for one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class UserError(ValueError):
    """Says in one line what the user has to change: it names the file, key and value, and what to do."""


class Names:
    """Names settings and calls as a Python program writes them."""

    def setting(self, key: str, value: object = None) -> str:
        """Returns the name of a setting, ``max_ms`` or ``train.augment``; with a value ``max_ms=3``."""
        return key if value is None else f"{key}={value}"

    def call(self, function: str, **arguments: object) -> str:
        """Returns a call as Python writes it: ``export(run='RUN', format='tflite')``."""
        return f"{function}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"


_names = Names()


@contextlib.contextmanager
def named_by(names: Names) -> Iterator[None]:
    """Lets ``names`` name settings and calls in all messages that are made meanwhile."""
    global _names
    before, _names = _names, names
    try:
        yield
    finally:
        _names = before


def setting(key: str, value: object = None) -> str:
    """Names a setting or an argument, with a value where one is given, as the reader of the message writes it."""
    return _names.setting(key, value)


def call(function: str, **arguments: object) -> str:
    """Writes a call as the reader of the message would, without the arguments that are None.

    Capitals stand for what the reader fills in: ``call("export", run="RUN")``.
    """
    return _names.call(function, **{name: value for name, value in arguments.items() if value is not None})
