"""Which space to search: random networks of each under one budget grid, trained with one short recipe.

After the building-block comparison of Bonnaerens et al. (Applied Sciences 2022, arXiv 2208.12694): Pareto fronts of
random networks, not single networks. Budgets, sampling and recipe are ours; all learn from scratch, from labels alone.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from nas.arch import Arch
from nas.config.search import PLACES, Config
from nas.config.space import checked_space
from nas.config.training import Training
from nas.errors import UserError, setting
from nas.pipeline.budgets import budgets_of_target
from nas.pipeline.deliver import Wanted, deliver
from nas.pipeline.finetune import RandomWeights, train_picks
from nas.pipeline.inputs import Inputs, selection_problem
from nas.pipeline.search import refuse_settings
from nas.pipeline.setup import prepare_inputs
from nas.progress import Progress
from nas.report.comparison import draw_comparison
from nas.run import timeline
from nas.run.directory import Run
from nas.run.records import Card, ComparedSpace, Comparison, Spread
from nas.select.pareto import Point, front, hypervolume
from nas.select.problem import Problem, budgets, random_within
from nas.training.recipes import COMPARED, FineTuningRecipe
from nas.units import amount, unit

INSIDE = 1.2  # a budget at the very ends of the reachable range leaves a single network, and nothing to draw
CLOSE = 0.9  # share of a budget that a network drawn for it takes
TRIES = 50  # draws at a budget for each network that is new
RECIPE = ("batch", "finetune_lr", "weight_decay", "finetune_epochs", "augment", "policy", "erase", "mix",
          "finetune_ema", "label_smoothing", "accumulate", "amp")
FLAGS = ("space", "target", "width", "size", "budget_ms", "budgets", "data", "data_dir", "limit", "seed", "train_on",
         "threads")


@dataclass(frozen=True)
class ComparisonSettings:
    """Holds what a comparison depends on: settings for each space, equal but for that, and ``networks`` at a budget."""

    configs: tuple[Config, ...]
    networks: int

    @staticmethod
    def of(configs: Sequence[Config], networks: int) -> ComparisonSettings:
        """Raises UserError for spaces of one name, for fewer than two, and for settings without effect here."""
        names = [checked_space(config).name for config in configs]
        if len(names) < 2:
            raise UserError(f"{setting('spaces')}: give two or more, for example {setting('spaces', 'ghost')} "
                            f"{setting('spaces', 'mbconv')}")
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"{setting('spaces')}: two of them are called {twice}: change the name in one of the files")
        first = configs[0]
        _refuse_idle(first, Config(target=first.target), (*FLAGS, "train"), "")
        _refuse_idle(first.train, Training(), RECIPE, "train.")
        return ComparisonSettings(tuple(configs), networks)

    @property
    def shared(self) -> Config:
        """Returns the settings of the first space: what is not the space is the same for all."""
        return self.configs[0]

    def to_json(self) -> dict[str, Any]:
        """Returns what the run records."""
        value = self.shared.model_dump(mode="json", include={*FLAGS, "train"}, exclude={"space"})
        return {"spaces": [config.space for config in self.configs], "networks": self.networks, **value,
                "train": {key: value["train"][key] for key in RECIPE}}

    @property
    def run_dir(self) -> Path:
        """Returns ``runs/compare-SPACES-TARGET-HEX``, so that the same settings find the same directory."""
        value = {key: part for key, part in self.to_json().items() if key != "data_dir"}
        digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
        names = "+".join(Path(config.space).name.removesuffix(".yaml") for config in self.configs)[:80]
        return Path("runs") / f"compare-{names}-{Path(self.shared.target[0]).name.removesuffix('.json')}-{digest}"

    def refuse(self) -> None:
        """Raises UserError for a space or a target that cannot be used; quick, and writes nothing."""
        for config in self.configs:
            if config.sizes:
                raise UserError(f"size={config.sizes}: spaces are compared at one size")
            refuse_settings(config)


def compare(settings: ComparisonSettings, run: Run, progress: Progress) -> Comparison:
    """Trains and judges random networks of each space at each budget; continues where the run stands.

    Raises UserError for what the user has to mend.
    """
    shared, networks = settings.shared, settings.networks
    loaded = _load_each(settings.configs, run, progress)
    target = shared.target[0]
    problems = [selection_problem(inputs, inputs.layout, [target]) for inputs in loaded]
    grid = run.stage("budgets.json", lambda: _budget_grid(shared, loaded, problems))
    drawn = [[[Arch.from_json(value) for value in row]
              for row in inputs.run.stage("networks.json", partial(_draw_networks, inputs, problem, grid, networks))]
             for inputs, problem in zip(loaded, problems, strict=True)]
    if not any(row for rows in drawn for row in rows):
        raise UserError(f"{setting('budget_ms')}: no network of any of the spaces was found that takes "
                        f"{100 * CLOSE:.0f} to 100 % of {', '.join(f'{bound:.4g}' for bound in grid)} {unit(target)} "
                        f"on {target}: give others")
    how = FineTuningRecipe.from_config(shared, loaded[0].data, COMPARED)
    count = sum(len(set(itertools.chain(*rows))) for rows in drawn)
    progress.note(f"{count} networks of {len(loaded)} spaces, each trained for {how.epochs} epochs of "
                  f"{len(loaded[0].data.learn):,} images in batches of {how.batch}")
    parts = []
    for inputs, problem, archs in zip(loaded, problems, drawn, strict=True):
        if missing := networks * len(grid) - sum(map(len, archs)):
            progress.note(f"{inputs.layout.space}: {missing} networks fewer than asked: it has no more at these "
                          "budgets")
        with timeline.phase(run, inputs.layout.space):
            parts.append(_train_space(inputs, problem, grid, archs, how, progress))
    result = run.record("compare.json", Comparison, lambda: Comparison(
        target=[target], data=loaded[0].data.name, size=loaded[0].data.size, seed=shared.seed,
        recipe=how, budget_ms={target: grid}, networks=networks,
        spaces=_with_volumes(parts, target)))
    if not run.has("compare.png"):
        run.write("compare.png", lambda file: draw_comparison(result, file))
    return result.model_copy(update={"run": str(run.path), "seconds": timeline.finished(run)})


def _refuse_idle(given: BaseModel, usual: BaseModel, used: Collection[str], above: str) -> None:
    """Raises UserError for a setting that is given and is none of those that have an effect."""
    for key in type(given).model_fields:
        if key not in used and getattr(given, key) != getattr(usual, key):
            raise UserError(f"{above}{key}: has no effect on a comparison")


def _load_each(configs: Sequence[Config], run: Run, progress: Progress) -> list[Inputs]:
    """Loads the inputs of each space, in a run of its own inside the comparison's; they share the images."""
    loaded: list[Inputs] = []
    for config in configs:
        every_width = config.gates.model_copy(update={"granularity": "space"})  # spaces are compared, not searches
        whole = config.model_copy(update={"gates": every_width})
        opened = Run.open(run.file(f"spaces/{checked_space(config).name}"), whole.to_json(), places=PLACES)
        inputs = prepare_inputs(whole, opened, config.target, progress, introduce=not loaded, timed_in=run)
        loaded.append(replace(inputs, data=loaded[0].data) if loaded else inputs)
    return loaded


def _budget_grid(config: Config, loaded: Sequence[Inputs], problems: Sequence[Problem]) -> list[float]:
    """Returns the budgets given, or ``budgets`` in geometric steps over the range that every space has networks for."""
    target = config.target[0]
    for inputs in loaded if config.budget_ms else ():
        budgets_of_target(inputs, inputs.layout, target, config.budget_ms, 1)  # refuses what a space cannot reach
    if config.budget_ms:
        most = max(problem.costs[0].largest for problem in problems)
        if idle := next((budget for budget in config.budget_ms if CLOSE * budget > most), None):
            raise UserError(f"{setting('budget_ms', f'{idle:g}')}: no network of these spaces takes more than "
                            f"{amount(most, target)}, and one drawn for a budget takes {100 * CLOSE:.0f} % of it at "
                            "least: lower it")
        return config.budget_ms
    low = max(problem.costs[0].smallest for problem in problems) * INSIDE
    high = min(problem.costs[0].largest for problem in problems) / INSIDE
    if low >= high:
        ranges = ", ".join(f"{inputs.layout.space} {problem.costs[0].smallest:.4g} .. {problem.costs[0].largest:.4g} "
                           f"{unit(target)}" for inputs, problem in zip(loaded, problems, strict=True))
        raise UserError(f"{setting('spaces')}: no budget on {target} that all of them reach ({ranges}): scale one "
                        "(NAME@0.5)")
    return budgets(problems[0], config.budgets, (low, high))


def _draw_networks(inputs: Inputs, problem: Problem, grid: Sequence[float],
                   networks: int) -> list[list[dict[str, Any]]]:
    """Draws, for each budget, different random networks that take 90 % to 100 % of it."""
    rows = []
    for index, bound in enumerate(grid):
        rng, archs = random.Random(f"compare {inputs.seed} {inputs.layout.space} {index}"), dict[Arch, None]()
        for _ in range(TRIES * networks):
            indices = random_within(problem, {problem.costs[0].name: bound}, rng) if len(archs) < networks else None
            if indices is not None and problem.costs[0].of(indices) >= CLOSE * bound:
                archs[problem.arch(indices)] = None
        rows.append([arch.to_json() for arch in archs])
    return rows


def _train_space(inputs: Inputs, problem: Problem, grid: Sequence[float], archs: list[list[Arch]],
                 recipe: FineTuningRecipe, progress: Progress) -> ComparedSpace:
    """Trains and judges the networks of one space: its spread at each budget, and its front."""
    different = list(dict.fromkeys(arch for row in archs for arch in row))
    progress.note(f"{inputs.layout.space}: {len(different)} networks")
    train_picks(inputs, RandomWeights(inputs, "scratch"), different, "", recipe, progress)
    cards = deliver(inputs, [Wanted(arch, fine_tuned=True) for arch in different], "", progress)
    target = inputs.config.target[0]
    best = front(Point(card.id, card.ms[target], card.select_accuracy) for card in cards.values())
    known, kept = {card.id: card.brief() for card in cards.values()}, [point.id for point in best]
    return ComparedSpace(
        space=inputs.layout.space, reach_ms={target: [problem.costs[0].smallest, problem.costs[0].largest]},
        budgets=[_spread({target: bound}, [cards[arch] for arch in row])
                 for bound, row in zip(grid, archs, strict=True)],
        front=[known[id] for id in kept],
        dominated=sorted((card for id, card in known.items() if id not in kept), key=lambda card: card.ms[target]))


def _spread(bound: dict[str, float], cards: Sequence[Card]) -> Spread:
    values = [card.accuracy for card in cards]
    return Spread(budget_ms=bound, n=len(values), mean=statistics.fmean(values) if values else None,
                  sd=statistics.stdev(values) if len(values) > 1 else None,
                  best=max(cards, key=lambda card: card.select_accuracy).accuracy if values else None)


def _with_volumes(parts: Sequence[ComparedSpace], target: str) -> list[ComparedSpace]:
    """Returns the spaces with the hypervolume of each front, by test accuracy.

    Its reference point has the ms of the slowest and the accuracy of the worst network of all spaces.
    """
    every = [card for part in parts for card in part.cards]
    slowest, worst = max(card.ms[target] for card in every), min(card.accuracy for card in every)

    def volume(cards: Sequence[Card]) -> float:
        return hypervolume((Point(card.id, card.ms[target], card.accuracy) for card in cards), slowest, worst)

    return [part.model_copy(update={"hypervolume": volume(part.front)}) for part in parts]
