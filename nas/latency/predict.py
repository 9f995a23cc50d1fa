"""Predicts what an ONNX file costs on a target, operator by operator."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from nas.errors import UserError, setting
from nas.latency.base import Costs
from nas.latency.costs import load
from nas.latency.counts import Count
from nas.latency.devices import ethos_u
from nas.latency.devices.ethos_u import EthosU
from nas.latency.fusion import Group
from nas.latency.kernel_model import KernelModel
from nas.latency.onnx_counts import counts
from nas.latency.onnx_graph import Graph, read_graph
from nas.latency.onnx_trace import UNKNOWN, trace

NAMED = 5  # operators without a known cost that an error lists


@dataclass(frozen=True)
class OperatorCost:
    """Says what one operator costs: its name in the file, its kind, and milliseconds (of a count: millions)."""

    name: str
    op: str
    ms: float


@dataclass(frozen=True)
class LeftOut:
    """Names an operator whose cost is not known, and why, where there is more to say than that nothing knows it."""

    name: str
    op: str
    why: str


@dataclass(frozen=True)
class Prediction:
    """Says what a file is predicted to cost for a call with ``batch`` images, and each of its operators.

    For a count all ``ms`` are millions. On a kernel model an operator is one launch: a convolution with what is fused
    into it (``op`` such as ``Conv+Relu``). ``unknown`` are left out of ``ms``; ``notes`` say what the figures rest on
    beyond ``method``.
    """

    target: str
    ms: float
    method: str
    batch: int
    operators: tuple[OperatorCost, ...]
    unknown: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()


def predict_on(target: str, path: Path, size: int | None = None, allow_unknown: bool = False) -> Prediction:
    """Predicts as ``predict`` does, on a target by its name or the file of its costs, as which the result names it."""
    return replace(predict(path, load(target), size, allow_unknown), target=target)


def predict(path: Path, costs: Costs, size: int | None = None, allow_unknown: bool = False) -> Prediction:
    """Adds up what the operators of an ONNX file cost; an NPU's compiler is asked for the file itself, as int8.

    ``size`` (height and width) is for what the file leaves open. Raises UserError for a file that cannot be traced, for
    a target that has no costs for any graph, and for operators that nothing is known of, unless ``allow_unknown``.
    """
    if isinstance(costs, Count):
        return _counted(read_graph(path, size, weights=False), costs, allow_unknown)
    if npu := ethos_u.compiler_of_table(costs.meta):
        return _compiled(read_graph(path, size), costs.name, npu, allow_unknown)
    if isinstance(costs, KernelModel):
        return _traced(read_graph(path, size, weights=False), costs, allow_unknown)
    raise UserError(f"{path}: the table {costs.name} has rows for operators of search spaces, none for any ONNX "
                    f"graph; time the file on that device instead: nas measure {path}")


def kernels_ms(graph: Graph, costs: KernelModel) -> float:
    """Returns the milliseconds of a graph on a kernel model. Raises UserError where no kernel is known for a part."""
    groups = trace(graph)
    if missing := [group for group in groups if group.head.op == UNKNOWN]:
        raise UserError(f"no kernel is known for {_listed(missing)}")
    return float(costs.kernel_ms([group.kernel for group in groups]).sum())


def _traced(graph: Graph, costs: KernelModel, allow_unknown: bool) -> Prediction:
    """Predicts launch by launch with a kernel model."""
    groups = trace(graph)
    known, missing = ([g for g in groups if (g.head.op == UNKNOWN) is wanted] for wanted in (False, True))
    if missing and not allow_unknown:
        raise UserError(f"{graph.path}: no kernel is known for {_listed(missing)}; {setting('allow_unknown')} leaves "
                        "them out")
    prices = costs.kernel_ms([group.kernel for group in known]).tolist()
    return Prediction(costs.name, sum(prices), costs.meta.method, costs.meta.batch,
                      tuple(OperatorCost(group.head.name, _kinds(group), ms)
                            for group, ms in zip(known, prices, strict=True)),
                      tuple(LeftOut(group.head.name, _kinds(group), group.head.why) for group in missing),
                      tuple(_notes(graph, costs, known)))


def _compiled(graph: Graph, target: str, npu: EthosU, allow_unknown: bool) -> Prediction:
    """Predicts with an NPU's compiler."""
    graph, unknown = _for_npu(graph, target, allow_unknown)
    operators = tuple(OperatorCost(name, op, ms) for name, op, ms in npu.predict(graph))
    return Prediction(target, math.fsum(operator.ms for operator in operators), ethos_u.Compiled.method, 1, operators,
                      unknown)


def _counted(graph: Graph, costs: Count, allow_unknown: bool) -> Prediction:
    """Predicts a count, in millions, for one image."""
    operators = counts(graph, costs.name)
    missing = [operator for operator in operators if operator.millions is None]
    if missing and not allow_unknown:
        names = ", ".join(f"{operator.op} ({operator.name})" for operator in missing[:NAMED])
        raise UserError(f"{graph.path}: how much {names} multiplies is not known; {setting('allow_unknown')} leaves it "
                        "out")
    known = tuple(OperatorCost(operator.name, operator.op, operator.millions)
                  for operator in operators if operator.millions is not None)
    return Prediction(costs.name, math.fsum(operator.ms for operator in known), costs.method, 1, known,
                      tuple(LeftOut(operator.name, operator.op, "no rule counts it") for operator in missing))


def _for_npu(graph: Graph, target: str, allow_unknown: bool) -> tuple[Graph, tuple[LeftOut, ...]]:
    """Returns the graph to compile, and what of it is left out: a LogSoftmax at the end, which runs on the CPU."""
    end = graph.ending
    if end.op != "LogSoftmax":
        if allow_unknown:
            raise UserError(f"{setting('allow_unknown')}: {target} is an NPU, whose compiler takes a network as a "
                            f"whole: leave out {setting('allow_unknown')}")
        return graph, ()
    if not allow_unknown:
        raise UserError(f"{graph.path}: {end.op} ({end.node}) at its end would run on the CPU beside the NPU, whose "
                        f"time is not known; {setting('allow_unknown')} leaves it out")
    return graph.logits(), (LeftOut(str(end.node), end.op, "it runs on the CPU beside the NPU"),)


def _notes(graph: Graph, costs: KernelModel, known: list[Group]) -> Iterator[str]:
    batch = costs.meta.batch
    if graph.batch not in (None, batch):
        yield f"the file is fixed at batch {graph.batch}; the costs are those of {batch} images a call"
    grouped = sum(1 < group.head.groups < group.kernel.in_ch for group in known)
    if grouped:
        yield f"{grouped} grouped convolutions: no row has groups, they are priced between dense and depthwise"


def _listed(unknown: list[Group]) -> str:
    names = list(dict.fromkeys(
        f"{g.head.kind} ({g.head.name})" + (f" with {g.head.why}" if g.head.why else "") for g in unknown))
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _kinds(group: Group) -> str:
    return "+".join(node.kind for node in group.nodes)
