"""Picks of a trained supernet: the selector is asked, target by target, and judges by inherited loss."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from nas.arch import Arch
from nas.errors import UserError
from nas.footprint import within
from nas.progress import Progress
from nas.scene import Scene, memory_bounds, problem
from nas.select import get as selector
from nas.select import scores as fits
from nas.select.problem import Limits, Problem, Scores
from nas.supernet.gates import RELAXATIONS, position
from nas.train import loop, search_loop

JUDGED_ON = 500  # held-out images a network is ranked on, by loss: a quarter of what accuracy needs (gates trial 2)
USED = 0.9  # share of a budget that its pick takes: inherited loss favours the smallest network, fine-tuning does not
CALIBRATED_ON = 256  # training images for its batch norm statistics


def choose(scene: Scene, training: search_loop.SupernetTraining, limits: dict[str, list[float]], place: str,
           progress: Progress) -> dict[str, Any]:
    """Asks the selector, target by target; every network judged stays in the log and is never judged again."""
    config, kept = scene.config, within(training.supernet.layout, scene.footprints)
    budgets: list[dict[str, Any]] = []
    agreement: dict[str, Any] = {}
    for target, bounds in limits.items():
        one = problem(scene, kept, [target])
        with progress.task(f"select for {target}", config.evaluations) as task:
            judge = Judge(scene, training, task)
            ask, scores = selector(config.selector), gate_scores(training, one, target, scene)
            limited = [{target: b, **memory_bounds(scene, target)} for b in bounds]
            ranked = ask(one, limited, scores, judge, config.evaluations,
                            random.Random(scene.seed))
        for bound, archs in zip(bounds, ranked, strict=True):
            if target in scene.footprints and not archs:
                raise UserError(scene.footprints[target].nothing(f" within {bound:.6g} ms"))
            if archs:
                best = next((arch for arch in archs if one.cost(arch, target) >= USED * bound), archs[0])
                budgets.append({"target": target, "budget_ms": bound, "id": best.id, "arch": best.to_json(),
                                "ms": one.cost(best, target)})
        agreement[target] = judge.agreement(one, training, target, bounds, scene)
    scene.run.log("selection", place=place, rank_agreement=agreement)
    return {"budgets": budgets, "rank_agreement": agreement, "selector": config.selector}


def gate_scores(training: search_loop.SupernetTraining, problem: Problem, target: str, scene: Scene) -> Any:
    """The gates' log-probabilities at a budget; a target that the gates do not know is asked at its own range."""
    seen = list(scene.config.target)
    index = seen.index(target) if target in seen else 0

    def scores_for(limits: Limits) -> Scores:
        if training.recipe.relaxation not in RELAXATIONS:
            return tuple(np.zeros(len(ops)) for ops in problem.allowed)
        ends = training.gates.ranges[index] if target in seen else (problem.costs[0].smallest, problem.costs[0].largest)
        table = training.gates.log_scores(position(limits[target], *ends), index)
        return tuple(np.array([max(row[op], -50.0) for op in ops])
                     for row, ops in zip(table, problem.allowed, strict=True))

    return scores_for


class Judge:
    """Held-out loss of networks with inherited weights; remembers in the run's log what was judged."""

    def __init__(self, scene: Scene, training: search_loop.SupernetTraining, task: Any) -> None:
        self.scene, self.training, self.task = scene, training, task
        self.split = loop.part_of(scene.data.select, JUDGED_ON, scene.seed, "judge")
        self.known = {e["id"]: float(e["loss"]) for e in scene.run.events("judged")}
        self.asked: dict[Arch, float] = {}

    def __call__(self, archs: Sequence[Arch]) -> list[float]:
        return [self._loss(arch) for arch in archs]

    def _loss(self, arch: Arch) -> float:
        if arch.id not in self.known:
            judged = self.training.judge(arch, self.split, CALIBRATED_ON)
            self.scene.run.log("judged", id=arch.id, arch=arch.to_json(), loss=judged.loss, accuracy=judged.accuracy)
            self.known[arch.id] = judged.loss
        self.asked[arch] = self.known[arch.id]
        self.task.advance(1, loss=self.known[arch.id])
        return self.known[arch.id]

    def agreement(self, problem: Problem, training: search_loop.SupernetTraining, target: str, bounds: Sequence[float],
                  scene: Scene) -> float | None:
        """Mean over the budgets of Kendall's tau between the gates' scores and the losses of networks near them."""
        taus, scores_for = [], gate_scores(training, problem, target, scene)
        for bound in bounds:
            near = [arch for arch in self.asked if 0.8 * bound <= problem.cost(arch, target) <= bound]
            if len(near) >= 4:
                losses = [self.asked[arch] for arch in near]
                taus.append(fits.rank_agreement(scores_for({target: bound}), problem, near, losses))
        finite = [tau for tau in taus if np.isfinite(tau)]
        return round(float(np.mean(finite)), 4) if finite else None
