"""Defines ``Kind``, by which each file of this folder lists the devices that it opens and their names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nas.latency.bench import Estimator
from nas.latency.timing import Device

Open = Callable[[str, int, int, str | None], Device | Estimator]


@dataclass(frozen=True)
class Kind:
    """Describes devices that are opened alike: ``open(name, threads, batch, precision)``; None: the usual precision.

    ``open`` raises UserError for what is not possible there, and for what is not here. In ``precisions`` the devices
    time this machine; without any nothing runs here, as where a compiler counts.
    """

    open: Open
    names: tuple[str, ...]
    precisions: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()  # names that stand for one of ``names``
    suffix: str | None = None  # of files that each describe a device

    def opens(self, name: str) -> bool:
        return name in (*self.aliases, *self.names) or (self.suffix is not None and name.endswith(self.suffix))
