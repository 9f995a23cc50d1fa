"""Cards and fronts by hand, with every field that a record must have."""

from collections.abc import Mapping, Sequence
from typing import Any

from nas.run.records import Card, Front

TIMES = ("ms", "worst_ms", "measured_ms")


def card(id: str = "0123456789ab", ms: Mapping[str, float] | None = None, **more: Any) -> Card:
    """A network that takes ``ms`` (default: 0.5 on cpu), and is measured nowhere."""
    times = dict(ms) if ms is not None else {"cpu": 0.5}
    known: dict[str, Any] = {
        "id": id, "size": 16, "ms": times, "worst_ms": times, "measured_ms": dict.fromkeys(times), "macs": 12_340_000,
        "params": 560_000, "fine_tuned": True, "exits": [], "select_accuracy": 0.91, "accuracy": 0.9,
        "accuracy_se": 0.0123, "onnx": f"archs/{id}/model.onnx"}
    return Card(**{**known, **more})


def front(cards: Sequence[Card], **more: Any) -> Front:
    """A front of these cards, for the targets of the first."""
    known: dict[str, Any] = {"run": "runs/x", "space": "ghost", "target": list(cards[0].ms), "front": list(cards)}
    return Front(**{**known, **more})
