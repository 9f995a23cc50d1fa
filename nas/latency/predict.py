"""What an ONNX file costs on a target, operator by operator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nas.errors import UserError
from nas.latency.costs import Costs
from nas.latency.fusion import Group
from nas.latency.kernel_model import KernelModel
from nas.latency.onnx_trace import UNKNOWN, trace


def predict(path: Path, costs: Costs, size: int | None = None, allow_unknown: bool = False) -> dict[str, Any]:
    """``ms`` of a call with the target's ``batch``, ``method``, and ``operators`` with ``name``, ``op`` and ``ms``.

    An operator is one launch: a convolution with what is fused into it (``op`` such as ``Conv+Relu``). Raises UserError
    for a file that cannot be traced, for a target without a kernel model, and for operators that no kernel is known
    for; with ``allow_unknown`` they are left out of ``ms`` and listed as ``unknown``.
    """
    if not isinstance(costs, KernelModel):
        raise UserError(f"{path}: the table {costs.name} has rows for operators of search spaces, none for any ONNX "
                        f"graph; time the file on that device instead: nas measure {path}")
    groups = trace(path, size)
    known, unknown = ([g for g in groups if (g.head.op == UNKNOWN) is wanted] for wanted in (False, True))
    if unknown and not allow_unknown:
        names = ", ".join(dict.fromkeys(f"{g.head.kind} ({g.head.name})" for g in unknown))
        raise UserError(f"{path}: no kernel is known for {names}; --allow-unknown leaves them out")
    prices = costs.kernel_ms([group.kernel for group in known]).tolist()
    return {"ms": sum(prices), "method": costs.meta["method"], "batch": costs.meta["batch"],
            "operators": [{**_named(group), "ms": ms} for group, ms in zip(known, prices, strict=True)],
            "unknown": [_named(group) for group in unknown]}


def _named(group: Group) -> dict[str, str]:
    return {"name": group.head.name, "op": "+".join(node.kind for node in group.nodes)}
