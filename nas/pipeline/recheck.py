"""Measures picks before they are fine-tuned, and selects again for budgets that they do not keep.

A table may be off, above all one that was made on a busy machine. Latency does not depend on the weights, so that the
picks can be measured as soon as they are chosen. Where one takes longer than its budget, the table's correction
(``nas.latency.correction``) is fitted to what all of them took, selection is repeated for the budgets that were missed,
and the new picks are measured, too. What was measured stays in the run's log and is never measured again.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nas.arch import Arch
from nas.decision import Prices
from nas.errors import UserError
from nas.latency.correction import fit
from nas.pipeline import deliver
from nas.pipeline.budgets import Bounds, reachable_budgets
from nas.pipeline.inputs import Inputs
from nas.pipeline.measuring import Network, is_measured_here, measure, parts
from nas.pipeline.npu_memory import fitting_layout
from nas.pipeline.overrun import excesses
from nas.pipeline.selection import Judge, logged_name
from nas.plan import Layout, plan
from nas.progress import Progress
from nas.run import events
from nas.run.records import Pick, Picks, TableCorrection
from nas.training.supernet_training import SupernetTraining
from nas.units import amount

REPEATS = 2  # of the selection, at most
AFFINE = 4  # networks that a factor and a cost per operator are fitted to; of fewer, a factor alone
ROUNDING = 1e-9  # of sums of milliseconds
Select = Callable[[Inputs, dict[str, list[float]], Bounds], Picks]


@dataclass(frozen=True)
class Correction:
    """Raises the milliseconds of operators in a table to ``scale * ms + per_op_ms``, and never lowers them."""

    scale: float
    per_op_ms: float
    n: int  # networks that it was fitted to

    @staticmethod
    def fitted(predicted: Sequence[float], operators: Sequence[int], measured: Sequence[float],
               smallest_ms: float) -> Correction:
        """Fits a correction to the predicted and measured ms of networks, so that it predicts none of them too low.

        ``operators`` are how many operators each has, ``smallest_ms`` is the fastest operator of the table.
        """
        sums, counts, ms = (np.array(values, float) for values in (predicted, operators, measured))
        scale, per_op_ms = float(np.median(ms / sums)), 0.0
        if len(ms) >= AFFINE:
            scale, per_op_ms = fit(sums, counts, ms, smallest_ms=smallest_ms)
        short = float((ms / (scale * sums + per_op_ms * counts)).max())
        return Correction(scale * short, per_op_ms * short, len(ms))

    def applied(self, prices: Prices, layout: Layout) -> Prices:
        """Returns the corrected prices of a layout's operators."""
        rows = tuple({op: self._ms(ms, 1) if slot.key(op) else ms for op, ms in row.items()}
                     for slot, row in zip(layout.slots, prices.ms, strict=True))
        return Prices(self._ms(prices.fixed, len(layout.fixed)), rows)

    def _ms(self, ms: float, operators: int) -> float:
        """Returns the corrected ms of so many operators together."""
        return max(ms, self.scale * ms + self.per_op_ms * operators)


class Stopwatch:
    """Measures networks on the targets that are this machine; remembers in the run's log what was measured."""

    def __init__(self, inputs: Inputs, training: SupernetTraining, progress: Progress) -> None:
        self.inputs, self.training, self._progress = inputs, training, progress
        self.targets = [target for target in inputs.costs if is_measured_here(inputs, target)]
        self._state = {target: _table_digest(inputs, target) for target in self.targets}
        self.measured: dict[str, dict[Arch, float]] = {target: {} for target in self.targets}
        self._known = {(event.target, event.costs, event.id): event.ms for event in inputs.run.events(events.Timed)}

    def time(self, picks: Sequence[Pick]) -> None:
        """Measures the picks that were not measured yet."""
        archs = list(dict.fromkeys(pick.arch for pick in picks))
        left = {target: [arch for arch in archs if arch not in self.measured[target]] for target in self.targets}
        with self._progress.task("measure picks", sum(map(len, left.values()))) as task:
            for target, some in ((target, some) for target, networks in left.items() for some in parts(networks)):
                self.measured[target] |= self._time(some, target)
                task.advance(len(some))

    def ms_of(self, budget: Pick) -> dict[str, float | None]:
        """Returns what the pick of a budget takes on each of its targets, None where that is not measured here."""
        return {target: self.measured[target][budget.arch] if target in self.targets else None
                for target in budget.budget_ms}

    def keeps(self, budget: Pick) -> bool:
        """Tells whether the pick of a budget is within it on every target on which it is measured."""
        return not excesses(self.ms_of(budget), budget.budget_ms)

    def _time(self, archs: Sequence[Arch], target: str) -> dict[Arch, float]:
        """Returns what networks take on a target, from the log where they were measured by an earlier call."""
        keys = {arch: (target, self._state[target], arch.id) for arch in archs}
        with tempfile.TemporaryDirectory() as folder:
            networks = {arch: self._network(arch, target, Path(folder) / arch.id)
                        for arch, key in keys.items() if key not in self._known}
            for arch, (ms, drift) in measure(self.inputs, target, networks).items():
                assert ms is not None  # the target is this machine
                self.inputs.run.log(events.Timed(id=arch.id, target=target, costs=self._state[target], ms=ms,
                                                 drift=drift))
                self._known[keys[arch]] = ms
        return {arch: self._known[key] for arch, key in keys.items()}

    def _network(self, arch: Arch, target: str, folder: Path) -> Network:
        """Writes a network with inherited weights into a new folder, to be timed."""
        folder.mkdir()
        model = self.training.inherit(arch).eval().cpu()
        return deliver.to_time(self.inputs.at(arch.size), arch, model, target, folder)


def select_measured(inputs: Inputs, training: SupernetTraining, limits: dict[str, list[float]], asked: Bounds,
                    given: Mapping[str, bool], select: Select, progress: Progress) -> Picks:
    """Selects picks by calling ``select``, measures them, and selects again for budgets that they do not keep.

    ``given`` says of which targets the user named the budgets: those of others are steps from the fastest network on.
    A budget that no network keeps gets the fastest one known, and the user is told.
    """
    picks, watch = select(inputs, limits, asked), Stopwatch(inputs, training, progress)
    if not watch.targets:
        return picks
    watch.time(picks.budgets)
    corrections: dict[str, Correction] = {}
    for _ in range(REPEATS):
        missed = [budget for budget in picks.budgets if not watch.keeps(budget)]
        if not missed:
            break
        corrections = {target: _fit_correction(inputs, target, watch) for target in watch.targets}
        progress.note(_repeat_note(missed, watch, corrections))
        again = _with_those_beside(inputs, picks.budgets, missed)
        chosen = _select_again(_with_corrections(inputs, corrections), training, again, asked, given, select, progress)
        watch.time([pick for _, pick in chosen])
        picks = picks.model_copy(update={"budgets": _replace_picks(picks.budgets, chosen)})
    budgets = [_with_finalists(inputs, budget, watch) for budget in _best_measured(inputs, picks.budgets, watch)]
    for budget in budgets:
        if not watch.keeps(budget):
            progress.note(_out_of_reach_note(budget, watch))
    return picks.model_copy(update={"budgets": budgets, "corrections": {
        target: TableCorrection(**vars(correction)) for target, correction in corrections.items()}})


def _with_those_beside(inputs: Inputs, budgets: Sequence[Pick], missed: Sequence[Pick]) -> list[Pick]:
    """Returns the budgets to select again for: those that were missed, and where picks grow those of the same targets.

    Each then keeps what the new pick of the next smaller one has.
    """
    targets = {tuple(budget.budget_ms) for budget in missed}
    return [budget for budget in budgets if budget in missed or (inputs.grows and tuple(budget.budget_ms) in targets)]


def _select_again(inputs: Inputs, training: SupernetTraining, missed: Sequence[Pick], asked: Bounds,
                  given: Mapping[str, bool], select: Select, progress: Progress) -> list[tuple[Pick, Pick]]:
    """Selects again for budgets of which some were ``missed``, by the corrected prices of ``inputs``.

    Returns the old and the new pick of each budget, but for budgets that no network keeps by these prices.
    """
    layout, asked_alone = fitting_layout(training.supernet.layout, inputs.footprints), replace(asked, together={})
    alone = [budget for budget in missed if len(budget.budget_ms) == 1]
    least = {target: ms for target in dict.fromkeys(target for budget in alone for target in budget.budget_ms)
             if (ms := _fastest_ms(inputs, layout, target, asked_alone, progress)) is not None}
    at = [(budget, target, max(bound, least[target]))
          for budget in alone for target, bound in budget.budget_ms.items() if target in least]
    limits = {target: sorted({ms for _, other, ms in at if other == target}) for target in least}
    answers = [(answer, answer.budget_ms) for answer in (select(inputs, limits, asked_alone).budgets if limits
                                                            else ())]
    chosen = [(budget, answer.model_copy(update={"budget_ms": budget.budget_ms if given.get(target) else bound}))
              for budget, target, ms in at for answer, bound in answers if bound == {target: ms}]
    for budget in missed:
        if len(budget.budget_ms) > 1:
            chosen += _select_together(inputs, budget, asked, select, progress)
    return chosen


def _fastest_ms(inputs: Inputs, layout: Layout, target: str, asked: Bounds, progress: Progress) -> float | None:
    """Returns the ms of the fastest network; None, which the user is told, where that is above the search's ``max_ms``.
    """
    try:
        return reachable_budgets(inputs, layout, target, [], 2, asked)[0]
    except UserError as error:
        progress.note(f"{error}, as measured")
        return None


def _select_together(inputs: Inputs, budget: Pick, asked: Bounds, select: Select,
                     progress: Progress) -> list[tuple[Pick, Pick]]:
    """Selects again for a budget on several targets together; returns nothing where no network keeps it on all of them.
    """
    try:
        answers = select(inputs, {}, replace(asked, together=budget.budget_ms)).budgets
    except UserError as error:
        progress.note(f"{error}, as measured")
        return []
    return [(budget, answer) for answer in answers]


def _replace_picks(budgets: Sequence[Pick], chosen: Sequence[tuple[Pick, Pick]]) -> list[Pick]:
    """Returns the budgets with their new picks, each budget once."""
    new = [next((other for old, other in chosen if old is budget), budget) for budget in budgets]
    return list({json.dumps(budget.budget_ms): budget for budget in new}.values())


def _best_measured(inputs: Inputs, budgets: Sequence[Pick], watch: Stopwatch) -> list[Pick]:
    """Returns the budgets with measured ms; one that its pick does not keep gets another measured network that does.

    Of several that do, that is the one of the lowest judged loss; where none does, it is the fastest.
    """
    losses = {name: loss for name, (loss, _) in Judge.read_log(inputs.run, logged_name(inputs)).items()}
    chosen = []
    for budget in budgets:
        best = _with_pick(inputs, budget, budget)
        if not watch.keeps(best):
            others = [best, *(other for other in (_with_pick(inputs, budget, other) for other in budgets)
                              if _predicted_within(other, watch))]
            keeping = [other for other in others if watch.keeps(other)]
            best = min(keeping, key=lambda other: losses.get(other.id, math.inf)) if keeping else (
                min(others, key=lambda other: _excess(other, watch)))
        chosen.append(best.model_copy(update={"measured_ms": watch.ms_of(best)}))
    return chosen


def _with_finalists(inputs: Inputs, budget: Pick, watch: Stopwatch) -> Pick:
    """Returns a budget with those of its other finalists that keep it, too, when they are measured."""
    others = [budget.model_copy(update=figures_of(inputs, budget, arch))
              for arch in budget.others if arch != budget.arch]
    watch.time(others)
    return budget.model_copy(update={"others": [other.arch for other in others if watch.keeps(other)]})


def _predicted_within(budget: Pick, watch: Stopwatch) -> bool:
    """Tells whether the pick of a budget keeps it by the tables of the targets that are not measured here."""
    return all(budget.ms[target] <= budget.budget_ms[target] * (1 + ROUNDING)
               for target, measured in watch.ms_of(budget).items() if measured is None)


def _excess(budget: Pick, watch: Stopwatch) -> float:
    """Returns the measured ms of a pick as a share of its budget, on the target where that is largest."""
    return max(ms / budget.budget_ms[target] for target, ms in watch.ms_of(budget).items() if ms is not None)


def _with_pick(inputs: Inputs, budget: Pick, other: Pick) -> Pick:
    """Returns a budget with the network that was picked for another one, and that network's predicted ms."""
    return budget.model_copy(update=figures_of(inputs, budget, other.arch))


def figures_of(inputs: Inputs, budget: Pick, arch: Arch) -> dict[str, Any]:
    """Returns the fields of a budget's pick that depend on the network, for another network."""
    ms = deliver.predicted_ms(inputs.at(arch.size), arch)
    return {"id": arch.id, "size": arch.size, "arch": arch, "ms": {target: ms[target] for target in budget.budget_ms}}


def _fit_correction(inputs: Inputs, target: str, watch: Stopwatch) -> Correction:
    """Fits the correction of a target's table to all networks that were measured on it."""
    measured = watch.measured[target]
    predicted = [deliver.predicted_ms(inputs.at(arch.size), arch)[target] for arch in measured]
    operators = [len(plan(inputs.at(arch.size).layout, arch)) for arch in measured]
    smallest = min(ms for at in inputs.every for row in at.prices[target].ms for ms in row.values() if ms > 0)
    return Correction.fitted(predicted, operators, list(measured.values()), smallest)


def _with_corrections(inputs: Inputs, corrections: Mapping[str, Correction]) -> Inputs:
    """Returns the inputs with corrected prices, at all input sizes."""
    def priced(at: Inputs) -> Inputs:
        return replace(at, prices={**at.prices, **{target: correction.applied(at.prices[target], at.layout)
                                                   for target, correction in corrections.items()}})

    return replace(priced(inputs), others={size: priced(at) for size, at in inputs.others.items()})


def _repeat_note(missed: Sequence[Pick], watch: Stopwatch, corrections: Mapping[str, Correction]) -> str:
    """Writes the line that tells the user why the selection is repeated."""
    worst = max(missed, key=lambda budget: _excess(budget, watch))
    factors = ", ".join(f"{target}: {correction.scale:.3g} times its ms and {correction.per_op_ms:.3g} ms an operator"
                        for target, correction in corrections.items())
    return (f"{len(missed)} of the picks take longer than their budgets when measured, by up to "
            f"{100 * (_excess(worst, watch) - 1):.0f} %: selecting again with costs as measured ({factors})")


def _out_of_reach_note(budget: Pick, watch: Stopwatch) -> str:
    """Writes the line that tells the user that no measured network keeps a budget."""
    asked = ", ".join(amount(bound, target) for target, bound in budget.budget_ms.items())
    takes = ", ".join(amount(ms, target) for target, ms in watch.ms_of(budget).items() if ms is not None)
    return f"no network that was measured keeps {asked}: the fastest known, {budget.id}, takes {takes}"


def _table_digest(inputs: Inputs, target: str) -> str:
    """Returns a digest of the conditions of a target's table: what was measured under others does not count."""
    return hashlib.sha256(json.dumps(inputs.costs[target].meta.to_json(), sort_keys=True).encode()).hexdigest()[:12]
