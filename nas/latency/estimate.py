"""Estimates how long it will take to fill a table on an otherwise idle machine, within a factor of 2.

Each graph is measured for a fixed time, except small ones, whose rounds are over earlier.
"""

from __future__ import annotations

from nas.latency import context
from nas.latency.bench import SECONDS_A_GRAPH, SECONDS_A_NETWORK, WARM_NETWORK, context_of
from nas.latency.timing import COUNTED, WARM
from nas.plan import Layout, OpKey, macs

CHUNK = 48  # rows whose sessions are in memory at once
ROUNDS = 100  # at most, for a graph
PREPARED_S = 0.05  # to convert a graph and load it
COMPILED_S = 0.15  # to compile a graph with a vendor's compiler
MACS_A_MS = 1e7  # that one core computes
CALL_MS = 0.005


def rows_s(layout: Layout, keys: list[OpKey]) -> float:
    """Estimates the seconds that measuring rows takes, and the convolutions around them, which are timed alone, too."""
    contexts = [context_of(layout, key) for key in keys]
    chunks = -(-len(keys) // CHUNK)
    pairs = min(chunks * len(context.maps(contexts)), 2 * len(keys))
    alone = [min(SECONDS_A_GRAPH, _rounds_s(macs(key), WARM)) for key in keys]
    return sum(alone) * (1 + pairs / max(1, len(keys))) + PREPARED_S * (len(keys) + pairs)


def networks_s(layout: Layout, count: int) -> float:
    """Estimates the seconds that measuring ``count`` random networks takes, each twice."""
    middle = [sorted(macs(key) for op in slot.ops if (key := slot.key(op))) for slot in layout.slots]
    work = sum(slot[len(slot) // 2] for slot in middle if slot) + sum(map(macs, layout.fixed))
    return 2 * count * (min(SECONDS_A_NETWORK, _rounds_s(work, WARM_NETWORK)) + PREPARED_S)


def _rounds_s(multiply_adds: int, warm: int) -> float:
    return ROUNDS * (warm + COUNTED) * (CALL_MS + multiply_adds / MACS_A_MS) / 1e3
