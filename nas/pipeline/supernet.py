"""Trains the supernet of a run, from its settings or from its last checkpoint on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from nas.config.search import Config
from nas.errors import UserError, setting
from nas.pipeline.budgets import budgets_of_target
from nas.pipeline.inputs import Inputs, selection_problem
from nas.pipeline.pace import Pace
from nas.pipeline.setup import prepare_inputs
from nas.progress import Progress, Task
from nas.run import checkpoint, events, timeline
from nas.run.directory import Run
from nas.run.images import DATA
from nas.run.records import DataRecord
from nas.run.settings import searched
from nas.select.problem import Cost
from nas.supernet.drop import Drop
from nas.supernet.gates import position
from nas.training import followers
from nas.training.epochs import EntryTest
from nas.training.ranks import ALONE, Ranks
from nas.training.recipes import SupernetRecipe
from nas.training.supernet_training import PHASES, SupernetTraining
from nas.units import amount

SUPERNET = "supernet.pt"
CHECKPOINT_EVERY_S = 15.0  # at epoch ends: short epochs would otherwise spend their time on writing


def train_supernet(inputs: Inputs, limits: dict[str, list[float]], group: Ranks, progress: Progress,
                   pace: Pace | None = None) -> SupernetTraining:
    """Trains the run's supernet to its end, or what an earlier call has left; ``pace`` hears how far it is."""
    pace = pace or Pace({}, progress)
    training, run = make_training(inputs, limits, group), inputs.run
    if run.has(SUPERNET):
        checkpoint.resume(run, SUPERNET, training)
    elif inputs.config.init:
        _copy_weights(Run.existing(inputs.config.init), inputs, training, progress)
    followers.begin(inputs.config, training, progress)
    for phase in PHASES:
        if any(name == phase for name, _ in training.schedule[training.done:]):
            with timeline.phase(run, f"supernet {phase}"):
                _train_phase(run, training, phase, pace, progress)
        pace.end(f"supernet {phase}")
    return training


def _train_phase(run: Run, training: SupernetTraining, phase: str, pace: Pace, progress: Progress) -> None:
    """Trains one phase epoch by epoch, with checkpoints; says in one line at its end what it has pruned."""
    total, index, saved = training.recipe.epochs[phase], training.schedule[training.done][1], time.monotonic()
    pruned: list[Drop] = []
    with progress.task(f"supernet {phase}", total, index) as task:
        pace.reach(f"supernet {phase}", index / total)
        while not training.finished and training.schedule[training.done][0] == phase:
            began = time.monotonic()
            epoch = training.epoch(_step_reporter(task, training.schedule[training.done][1], total, pace, phase))
            run.log(events.Epoch(**vars(epoch), seconds=round(time.monotonic() - began, 3)))
            pruned += epoch.pruning.dropped if epoch.pruning else ()
            _warn_of_weak_gates(epoch.entry, progress)
            last = training.finished or training.schedule[training.done][0] != phase
            if time.monotonic() - saved > CHECKPOINT_EVERY_S or last:
                checkpoint.save(run, SUPERNET, training)
                saved = time.monotonic()
    _tell_pruned(training, pruned, progress)


def load_finished(run: Run, config: Config, progress: Progress) -> tuple[Inputs, SupernetTraining]:
    """Loads the inputs and the trained supernet of a search. Raises UserError for a run that is not that far."""
    refusal = UserError(f"{run.path}: its supernet is not finished; give its nas search command again first")
    if not run.has(SUPERNET) and not run.has("picks.json"):
        raise refusal
    inputs = prepare_inputs(config, run, config.target, progress)
    training = load_trained(inputs)
    if not training.finished:
        raise refusal
    return inputs, training


def load_trained(inputs: Inputs) -> SupernetTraining:
    """Loads the supernet of a run from its last checkpoint."""
    config = inputs.config
    limits = {t: budgets_of_target(inputs, inputs.layout, t, given_budgets(config, t), config.budgets)
              for t in config.target}
    training = make_training(inputs, limits)
    checkpoint.resume(inputs.run, SUPERNET, training)
    return training


def _step_reporter(task: Task, epoch: int, epochs: int, pace: Pace, phase: str) -> Callable[[int, int], None]:
    """Returns a function that moves a progress bar, which counts epochs, along with the steps of one epoch."""

    def step(step: int, of: int) -> None:
        task.advance(epoch + step / of - task.done)
        pace.reach(f"supernet {phase}", (epoch + step / of) / epochs)

    return step


def _copy_weights(other: Run, inputs: Inputs, training: SupernetTraining, progress: Progress) -> None:
    """Copies weights of an earlier run's supernet into this one: every tensor of equal name and shape.

    Raises UserError where that supernet is not finished, shares nothing, or was trained on images that this run selects
    networks on.
    """
    old = searched(other)
    if not other.has("picks.json"):
        raise UserError(f"{setting('init', other.path)}: that run has not finished its supernet")
    _refuse_images_seen(other, inputs)
    taken = training.start_from(checkpoint.load(other, SUPERNET))
    if not taken:
        raise UserError(f"{setting('init', other.path)}: a supernet of {old.space}; it shares nothing with this space")
    progress.note(f"starting from {other.path}: {taken} of {len(training.supernet.state_dict())} tensors")


def _refuse_images_seen(other: Run, inputs: Inputs) -> None:
    """Raises UserError where an earlier run trained, or may have, on images that this one selects networks on.

    Images are numbered in the order of their folder. As many of the same classes are taken for the same images wherever
    they lie; where a folder has other images now than then, nothing can be told of them.
    """
    before, data = other.read(DATA, DataRecord), inputs.data
    then, now = before.source.available, data.source.available
    if before.classes == list(data.classes) and then == now:
        earlier = other.read_json("splits.json")
        if set(data.indices["select"]) & {*earlier["train"], *earlier["gate"]}:
            raise UserError(f"{setting('init', other.path)}: it trained on images of this run's selection split; take "
                            f"its {setting('seed')} and {setting('limit')}")
    elif before.source.origin == data.source.origin:
        raise UserError(f"{setting('init', other.path)}: {data.source.origin} had {then} images then and has {now} "
                        "now: it may have trained on images that this run selects or tests networks on; search "
                        f"without {setting('init')}")


def _tell_pruned(training: SupernetTraining, pruned: Sequence[Drop], progress: Progress) -> None:
    """Tells the user how much was pruned: ``pruned: 12 blocks and 2 layers; 31 branches are left``."""
    if not pruned:
        return
    kinds = [drop.kind for drop in pruned]
    counts = [f"{kinds.count(kind)} {kind}{'s' if kinds.count(kind) > 1 else ''}" for kind in dict.fromkeys(kinds)]
    left = sum(len(slot.branches) for slot in training.supernet.layout.slots)
    progress.note(f"pruned: {' and '.join(counts)} (log.jsonl names them); {left} branches are left")


def _warn_of_weak_gates(entry: EntryTest | None, progress: Progress) -> None:
    """Warns of a warm-up that has taught so little that gates cannot tell a large network from a small one."""
    if entry is not None and not entry.passed:
        progress.note("warning: after the warm-up the smallest and the largest network are hardly apart in held-out "
                      f"loss ({entry.smallest_loss:.3f}, {entry.largest_loss:.3f}); gates see little signal: a longer "
                      "train.warmup_epochs may help")


def make_training(inputs: Inputs, limits: dict[str, list[float]], group: Ranks = ALONE) -> SupernetTraining:
    """Makes the training of a run's supernet, with gates for the budgets of ``limits``, before its first step."""
    config, data = inputs.config, inputs.data
    recipe = SupernetRecipe.from_config(config, data)
    _refuse_idle(inputs, limits)
    columns = [(at, target) for at in inputs.every for target in config.target]
    ranges = [_gate_range(selection_problem(at, at.layout, [target]).costs[0], limits[target])
              for at, target in columns]
    grid = sorted({position(b, *bounds) for (_, t), bounds in zip(columns, ranges, strict=True) for b in limits[t]})
    return SupernetTraining(inputs.layout, data, [at.prices[target] for at, target in columns], ranges, tuple(grid),
                            recipe, inputs.seed, inputs.device, group, [at.size for at, _ in columns])


def _refuse_idle(inputs: Inputs, limits: dict[str, list[float]]) -> None:
    """Raises UserError for an input size at which no network is within any budget: it would be trained for nothing."""
    for at in inputs.every if inputs.others else ():
        least = {target: selection_problem(at, at.layout, [target]).costs[0].smallest for target in limits}
        if all(least[target] > max(budgets) for target, budgets in limits.items()):
            target = next(iter(limits))
            raise UserError(f"{setting('size', at.size)}: its smallest network takes {amount(least[target], target)}, "
                            f"above every budget: leave this size out, or raise {setting('budget_ms')}")


def _gate_range(cost: Cost, budgets: Sequence[float]) -> tuple[float, float]:
    """Returns the range of budgets that the gates learn: that of ``budgets``, but for the ends of what is reachable.

    At these ends a single network has the expected latency, whatever the gates say: nothing could be learned or pruned.
    """
    low = min(max(min(budgets), 1.03 * cost.smallest), cost.largest)
    return low, max(low, min(max(budgets), 0.9 * cost.largest))


def given_budgets(config: Config, target: str) -> list[float]:
    """Returns the budgets in ms that the settings give a target: they are the first target's, others have none."""
    return config.budget_ms if target == config.target[0] else []
