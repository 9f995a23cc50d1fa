"""Predicts what an ONNX file costs on a target, operator by operator."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nas.errors import UserError, setting
from nas.latency.base import Costs
from nas.latency.counts import Count
from nas.latency.devices import ethos_u
from nas.latency.fusion import Group
from nas.latency.kernel_model import KernelModel
from nas.latency.onnx_counts import counts
from nas.latency.onnx_graph import Graph, read
from nas.latency.onnx_trace import UNKNOWN, trace

NAMED = 5  # operators without a known cost that an error lists


def predict(path: Path, costs: Costs, size: int | None = None, allow_unknown: bool = False) -> dict[str, Any]:
    """Predicts ``ms`` of an ONNX file for a call with the target's ``batch``, and of each of its ``operators``.

    For a count all ``ms`` are millions. On a kernel model an operator is one launch: a convolution with what is fused
    into it (``op`` such as ``Conv+Relu``). An NPU's compiler is asked for the file itself, as int8. ``notes`` say what
    the figures rest on beyond that. Raises UserError for a file that cannot be traced, for a target that has none of
    these, and for operators that nothing is known of; with ``allow_unknown`` they are left out of ``ms`` and listed as
    ``unknown``, with ``why``.
    """
    if isinstance(costs, Count):
        return _counted(read(path, size, weights=False), costs, allow_unknown)
    if npu := ethos_u.of_table(costs.meta):
        graph, unknown = _for_npu(read(path, size), costs.name, allow_unknown)
        operators = npu.predict(graph)
        return {"ms": math.fsum(ms for _, _, ms in operators), "method": ethos_u.Compiled.method, "batch": 1,
                "operators": [{"name": name, "op": op, "ms": ms} for name, op, ms in operators], "unknown": unknown,
                "notes": []}
    if not isinstance(costs, KernelModel):
        raise UserError(f"{path}: the table {costs.name} has rows for operators of search spaces, none for any ONNX "
                        f"graph; time the file on that device instead: nas measure {path}")
    graph = read(path, size, weights=False)
    groups = trace(graph)
    known, missing = ([g for g in groups if (g.head.op == UNKNOWN) is wanted] for wanted in (False, True))
    if missing and not allow_unknown:
        raise UserError(f"{path}: no kernel is known for {_listed(missing)}; {setting('allow_unknown')} leaves them "
                        "out")
    prices = costs.kernel_ms([group.kernel for group in known]).tolist()
    return {"ms": sum(prices), "method": costs.meta["method"], "batch": costs.meta["batch"],
            "operators": [{**_named(group), "ms": ms} for group, ms in zip(known, prices, strict=True)],
            "unknown": [{**_named(group), "why": group.head.why} for group in missing],
            "notes": list(_notes(graph, costs, known))}


def kernels_ms(graph: Graph, costs: KernelModel) -> float:
    """Returns the milliseconds of a graph on a kernel model. Raises UserError where no kernel is known for a part."""
    groups = trace(graph)
    if missing := [group for group in groups if group.head.op == UNKNOWN]:
        raise UserError(f"no kernel is known for {_listed(missing)}")
    return float(costs.kernel_ms([group.kernel for group in groups]).sum())


def _counted(graph: Graph, costs: Count, allow_unknown: bool) -> dict[str, Any]:
    """Predicts a count, in millions, for one image."""
    operators = counts(graph, costs.name)
    missing = [operator for operator in operators if operator.millions is None]
    if missing and not allow_unknown:
        names = ", ".join(f"{operator.op} ({operator.name})" for operator in missing[:NAMED])
        raise UserError(f"{graph.path}: how much {names} multiplies is not known; {setting('allow_unknown')} leaves it "
                        "out")
    known = [(operator, operator.millions) for operator in operators if operator.millions is not None]
    return {"ms": math.fsum(millions for _, millions in known), "method": costs.meta["method"], "batch": 1,
            "operators": [{"name": counted.name, "op": counted.op, "ms": millions} for counted, millions in known],
            "unknown": [{"name": operator.name, "op": operator.op, "why": "no rule counts it"}
                        for operator in missing], "notes": []}


def _for_npu(graph: Graph, target: str, allow_unknown: bool) -> tuple[Graph, list[dict[str, str]]]:
    """Returns the graph to compile, and what of it is left out: a LogSoftmax at the end, which runs on the CPU."""
    end = graph.ending
    if end.op != "LogSoftmax":
        if allow_unknown:
            raise UserError(f"{setting('allow_unknown')}: {target} is an NPU, whose compiler takes a network as a "
                            f"whole: leave out {setting('allow_unknown')}")
        return graph, []
    if not allow_unknown:
        raise UserError(f"{graph.path}: {end.op} ({end.node}) at its end would run on the CPU beside the NPU, whose "
                        f"time is not known; {setting('allow_unknown')} leaves it out")
    return graph.logits(), [{"name": str(end.node), "op": end.op, "why": "it runs on the CPU beside the NPU"}]


def _notes(graph: Graph, costs: KernelModel, known: list[Group]) -> Iterator[str]:
    batch = costs.meta["batch"]
    if graph.batch not in (None, batch):
        yield f"the file is fixed at batch {graph.batch}; the costs are those of {batch} images a call"
    grouped = sum(1 < group.head.groups < group.kernel.in_ch for group in known)
    if grouped:
        yield f"{grouped} grouped convolutions: no row has groups, they are priced between dense and depthwise"


def _listed(unknown: list[Group]) -> str:
    names = list(dict.fromkeys(
        f"{g.head.kind} ({g.head.name})" + (f" with {g.head.why}" if g.head.why else "") for g in unknown))
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _named(group: Group) -> dict[str, str]:
    return {"name": group.head.name, "op": "+".join(node.kind for node in group.nodes)}
