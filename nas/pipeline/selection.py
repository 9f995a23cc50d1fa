"""Chooses the picks of a trained supernet: asks the selector for each target, and judges networks by inherited loss."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nas.arch import Arch
from nas.errors import UserError
from nas.pipeline.budgets import NOTHING, Bounds, SizeRequest, bounded_problem, other_limits, requests_by_size
from nas.pipeline.inputs import Inputs
from nas.pipeline.npu_memory import fitting_layout
from nas.pipeline.supernet import SUPERNET
from nas.pipeline.workers import Crew, study_name
from nas.pipeline.workers import serve_evaluations as serve_evaluations
from nas.plan import resized
from nas.progress import Progress
from nas.run import events
from nas.run.directory import Run
from nas.run.records import HeldOut, Pick, Picks
from nas.select import get as selector
from nas.select import scores as fits
from nas.select.evaluation import Evaluation, by_loss
from nas.select.problem import Limits, Problem, Scores, ScoresFor, uses
from nas.select.score_models import GATES, agreements, candidates
from nas.supernet.gates import RELAXATIONS, position
from nas.training import evaluation
from nas.training.supernet_training import SupernetTraining
from nas.units import amount

CALIBRATED_ON = 256  # training images for its batch norm statistics


def choose_picks(inputs: Inputs, training: SupernetTraining, limits: dict[str, list[float]], place: str,
                 progress: Progress, asked: Bounds = NOTHING, crew: Crew | None = None) -> Picks:
    """Chooses a pick for each budget: asks the selector target by target, then for the budgets of ``asked`` together.

    Where input size is searched, each size has a selection of its own (one ILP a size), and a budget's pick is the best
    of them all. Every network judged, by this process or by the workers of ``crew``, stays in the log and is never
    judged again.
    """
    config, kept = inputs.config, fitting_layout(training.supernet.layout, inputs.footprints)
    parts = [([target], [{target: bound} for bound in bounds]) for target, bounds in limits.items()]
    if len(asked.together) > 1:
        together = dict(asked.together)
        if config.max_ms is not None and (first := config.target[0]) in together:
            together[first] = min(together[first], config.max_ms)
        parts.append((list(together), [together]))
    budgets: list[Pick] = []
    agreement: dict[str, float | None] = {}
    held_out: dict[str, dict[str, HeldOut]] = {}
    for targets, of_ms in parts:
        problems = {at.size: bounded_problem(at, resized(kept, at.size), targets, asked) for at in inputs.every}
        limited = [{**ms, **other_limits(inputs, targets, asked)} for ms in of_ms]
        ranked: list[list[Arch]] = [[] for _ in of_ms]
        losses: dict[Arch, float] = {}
        for asking in requests_by_size(list(problems.values()), limited):
            name = " and ".join(targets) + (f" at {asking.problem.layout.task.size} pixels" if inputs.others else "")
            answers, judge, scores = _ask_selector(inputs, training, asking, targets, name, progress, crew)
            losses |= judge.asked
            for indices, archs in zip(asking.budgets, answers, strict=True):
                for index in indices:
                    ranked[index] += archs
            if len(targets) == 1:
                bounds = [limits_of_one[targets[0]] for limits_of_one in asking.limits]
                agreement[name] = judge.agreement(asking.problem, training, targets[0], bounds, inputs)
                held_out[name] = judge.held_out(asking.problem, scores(asking.limits[-1]))
        for ms, archs in zip(of_ms, ranked, strict=True):
            if not archs and inputs.footprints:
                raise UserError(inputs.footprints[targets[0]].no_network_fits(f" within {_write_budgets(ms)}"))
            if inputs.others:  # of several sizes, by loss; what is not a number comes last
                archs = by_loss(archs, losses)
            if archs:
                budgets.append(_pick(problems, ms, archs, losses, config.finalists))
    picks = Picks(budgets=budgets, rank_agreement=agreement, held_out=held_out, selector=config.selector)
    inputs.run.log(events.Selected(place=place, rank_agreement=agreement, held_out=held_out))
    return picks


def _ask_selector(inputs: Inputs, training: SupernetTraining, asking: SizeRequest, targets: Sequence[str], name: str,
                  progress: Progress, crew: Crew | None) -> tuple[list[list[Arch]], Judge, ScoresFor]:
    """Asks the selector for networks within each of the limits; returns these, the judge, and the scores of the gates.
    """
    config, scores = inputs.config, gate_scores(training, asking.problem, targets, inputs)
    with progress.task(f"select for {name}", config.evaluations) as task:
        judge = Judge(inputs, training, task, crew)
        ask = selector(config.selector, config.objective, config.shrink)
        answers = ask(asking.problem, asking.limits, scores, judge, config.evaluations, random.Random(inputs.seed))
    return answers, judge, scores


def _pick(problems: Mapping[int, Problem], ms: dict[str, float], archs: Sequence[Arch],
          losses: Mapping[Arch, float], finalists: int = 1) -> Pick:
    """Picks, of networks from best to worst, the first that takes the share ``USED`` of some budget, else the first.

    One whose loss is not a number is not picked for its share: it is last in the order. With several ``finalists`` the
    next ones, by the same order, are the pick's ``others``.
    """
    def claims(arch: Arch) -> bool:
        return bool(np.isfinite(losses.get(arch, 0.0))) and uses(problems[arch.size], arch, ms)

    best, *others = sorted(dict.fromkeys(archs), key=claims, reverse=True)[:finalists]  # stable
    return Pick(budget_ms=ms, id=best.id, size=best.size, arch=best, others=others,
                ms={target: problems[best.size].cost(best, target) for target in ms})


def _write_budgets(ms: dict[str, float]) -> str:
    """Writes budgets with their units: ``0.8 ms on cpu and 30 M multiply-adds``."""
    return " and ".join(amount(bound, target) for target, bound in ms.items())


def gate_scores(training: SupernetTraining, problem: Problem, targets: Sequence[str], inputs: Inputs) -> Any:
    """Returns a function that gives, for limits, the gates' log-probability of each choice: the scores of an ILP.

    With several targets they are the mean. For a target that the supernet was not trained for, a limit stands for the
    same place in that target's range of costs.
    """
    seen = list(inputs.config.target)

    def scores_for(limits: Limits) -> Scores:
        if training.recipe.relaxation not in RELAXATIONS:
            return tuple(np.zeros(len(ops)) for ops in problem.allowed)
        tables = []
        for target in targets:
            columns, cost = training.columns(problem.layout.task.size), problem.named(target)
            index = columns[seen.index(target) if target in seen else 0]
            ends = training.gates.ranges[index] if target in seen else (cost.smallest, cost.largest)
            tables.append(training.gates.log_scores(position(limits[target], *ends), index))
        return tuple(np.mean([[max(row[op], -50.0) for op in ops] for row in rows], axis=0)
                     for ops, *rows in zip(problem.allowed, *tables, strict=True))

    return scores_for


def evaluations_name(inputs: Inputs) -> str:
    """Returns the name under which evaluations by this supernet on these images are stored and logged."""
    return study_name(inputs.run, SUPERNET, inputs.config.judge_images, CALIBRATED_ON, inputs.seed,
                      inputs.data.source.fingerprint)


def logged_name(inputs: Inputs) -> str:
    """Returns ``evaluations_name`` of the inputs, or "" where no epoch was asked for, so no supernet is there."""
    return evaluations_name(inputs) if inputs.run.has(SUPERNET) else ""


def judge_for_others(inputs: Inputs, training: SupernetTraining, storage: str, parent: int | None) -> None:
    """Judges the networks that wait in a storage."""
    serve_evaluations(storage, evaluations_name(inputs), Judge(inputs, training, None).evaluate, parent)


class Judge:
    """Judges networks: computes their held-out loss with inherited weights, and keeps it in the run's log."""

    def __init__(self, inputs: Inputs, training: SupernetTraining, task: Any,
                 crew: Crew | None = None) -> None:
        self.inputs, self.training, self.task, self.crew = inputs, training, task, crew
        self.split = evaluation.part_of(inputs.data.select, inputs.config.judge_images, inputs.seed, "judge")
        self.state = logged_name(inputs)
        before = self.read_log(inputs.run, self.state)
        self.known = {id: loss for id, (loss, _) in before.items()}
        self.accuracies = {id: accuracy for id, (_, accuracy) in before.items()}
        self.asked: dict[Arch, float] = {}
        self.reused = 0  # of those asked for, judged by an earlier call

    @staticmethod
    def read_log(run: Run, state: str | None = None) -> dict[str, tuple[float, float]]:
        """Reads from the run's log (loss, accuracy) of the networks that were judged before, by id.

        With ``state`` (``evaluations_name`` of the inputs) only what was judged by this supernet on these images.
        Lines that cannot be read are passed over.
        """
        return {event.id: (event.loss, event.accuracy) for event in run.events(events.Judged)
                if state in (None, event.state)}

    def __call__(self, archs: Sequence[Arch]) -> list[float]:
        """Returns the held-out loss of each network; judges those that were not judged before."""
        new = [arch for arch in archs if arch.id not in self.known]
        evaluated = self.crew.evaluated(new) if self.crew else ((arch, self.evaluate(arch)) for arch in new)
        for arch, judged in evaluated:
            self.known[arch.id], self.accuracies[arch.id] = judged.loss, judged.accuracy
            self.inputs.run.log(events.Judged(id=arch.id, arch=arch, state=self.state, **vars(judged)))
            self._count(arch)
        for arch in archs:
            if arch not in self.asked:
                self._count(arch, known=True)
        return [self.known[arch.id] for arch in archs]

    def evaluate(self, arch: Arch) -> Evaluation:
        """Computes loss and accuracy of a network on the images that networks are judged on."""
        judged = self.training.judge(arch, self.split, CALIBRATED_ON)
        return Evaluation(judged.loss, judged.accuracy, judged.accuracy_se)

    def _count(self, arch: Arch, known: bool = False) -> None:
        """Counts a network that the selector has asked for, on the progress bar, too; ``known``: it was judged before.
        """
        self.asked[arch] = self.known[arch.id]
        self.reused += known
        self.task.advance(1, known=known, loss=self.known[arch.id],
                          **({"judged before": self.reused} if self.reused else {}))

    def agreement(self, problem: Problem, training: SupernetTraining, target: str, bounds: Sequence[float],
                  inputs: Inputs) -> float | None:
        """Returns how well the gates rank networks: the mean over budgets of Kendall's tau of their scores with losses.

        Networks near a budget count for it; None where no budget has four.
        """
        taus, scores_for = [], gate_scores(training, problem, [target], inputs)
        for bound in bounds:
            near = [arch for arch in self.asked if 0.8 * bound <= problem.cost(arch, target) <= bound]
            if len(near) >= 4:
                losses = [self.asked[arch] for arch in near]
                taus.append(fits.rank_agreement(scores_for({target: bound}), problem, near, losses))
        finite = [tau for tau in taus if np.isfinite(tau)]
        return round(float(np.mean(finite)), 4) if finite else None

    def held_out(self, problem: Problem, gates: Scores) -> dict[str, HeldOut]:
        """Returns, by kind of scores, how well they rank networks that they were not fitted to: Kendall's tau.

        That is with the losses and with the accuracies. Gates are asked at the largest budget. Empty where too few
        networks were judged.
        """
        finite = (arch for arch, loss in self.asked.items() if np.isfinite(loss))
        archs = sorted(finite, key=lambda arch: arch.id)  # the parts are then those of an uninterrupted call
        losses, fits = [self.asked[arch] for arch in archs], candidates(problem, {GATES: gates})
        by_loss = agreements(problem, fits, archs, losses)
        by_accuracy = agreements(problem, fits, archs, losses, [self.accuracies[arch.id] for arch in archs])
        return {name: HeldOut(n=len(archs), loss=round(by_loss[name], 4), accuracy=round(by_accuracy[name], 4))
                for name in by_loss}
