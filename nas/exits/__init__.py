"""Adds early exits to networks: training them (``methods``), running (``net``), controlling (``policy``), serving."""

from nas.exits.runtime import Runtime

__all__ = ["Runtime"]
