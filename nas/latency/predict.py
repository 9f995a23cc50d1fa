"""What an ONNX file costs on a target, operator by operator."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from nas.errors import UserError
from nas.latency.costs import Costs
from nas.latency.devices import ethos_u
from nas.latency.fusion import Group
from nas.latency.kernel_model import KernelModel
from nas.latency.onnx_trace import UNKNOWN, trace


def predict(path: Path, costs: Costs, size: int | None = None, allow_unknown: bool = False) -> dict[str, Any]:
    """``ms`` of a call with the target's ``batch``, ``method``, and ``operators`` with ``name``, ``op`` and ``ms``.

    On a kernel model an operator is one launch: a convolution with what is fused into it (``op`` such as
    ``Conv+Relu``). An NPU's compiler is asked for the file itself, as int8. Raises UserError for a file that cannot be
    traced, for a target that has neither, and for operators that nothing is known of; with ``allow_unknown`` a kernel
    model leaves them out of ``ms`` and lists them as ``unknown``.
    """
    if npu := ethos_u.of_table(costs.meta):
        operators = npu.predict(path, size)
        return {"ms": math.fsum(ms for _, _, ms in operators), "method": ethos_u.Compiled.method, "batch": 1,
                "operators": [{"name": name, "op": op, "ms": ms} for name, op, ms in operators], "unknown": []}
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
