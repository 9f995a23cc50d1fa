"""Trains one network of a space from scratch, by the recipe that fine-tunes the picks of a search (``nas train``).

Loop, checkpoints and delivery are those of a pick, so that a baseline differs from a pick in its architecture and its
first weights alone.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from nas import sampling
from nas.arch import Arch, Op
from nas.errors import UserError, setting
from nas.pipeline import deliver
from nas.pipeline.finetune import RandomWeights, train_picks
from nas.pipeline.inputs import Inputs
from nas.pipeline.schedule import train_within_minutes
from nas.pipeline.setup import prepare_inputs, refuse_inputs
from nas.plan import Layout, OpKey, Slot, macs, plan
from nas.progress import Progress
from nas.report.figures import draw_front
from nas.run import timeline
from nas.run.directory import Run
from nas.run.images import keep_place
from nas.run.records import Front
from nas.run.schedule import scheduled
from nas.run.settings import Baseline, as_recorded
from nas.run.tables import find_costs
from nas.training.recipes import BY_ITSELF, FineTuningRecipe

CHOICES = ("largest", "smallest", "random")


def refuse_settings(settings: Baseline) -> None:
    """Raises UserError for a space, a target or a device that cannot be used; quick, and writes nothing."""
    refuse_inputs(settings)
    for target in settings.target:
        find_costs(target)


def read_arch(file: Path) -> Arch:
    """Reads the network of an ``arch.json`` or a ``card.json``. Raises UserError for anything else."""
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{setting('arch', file)}: {getattr(error, 'strerror', None) or 'not JSON'}") from None
    try:
        return Arch.from_json(value["arch"] if isinstance(value, dict) and "arch" in value else value)
    except UserError as error:
        raise UserError(f"{setting('arch', file)}: {error}") from None


def choose_arch(layout: Layout, what: str, seed: int) -> Arch:
    """Returns the largest or the smallest network of a space, by multiply-adds slot by slot, or a random one."""
    if what == "random":
        return sampling.sample(layout, random.Random(seed))
    by: Callable[..., Op] = max if what == "largest" else min

    def cost(slot: Slot, op: Op) -> int:
        key: OpKey | None = slot.key(op)
        return macs(key) if key else 0

    ends = [{op for branch in slot.branches for op in (branch.ops[0], branch.ops[-1])} for slot in layout.slots]
    ops = [by(sorted(choices), key=lambda op, slot=slot: cost(slot, op))  # sorted: a tie has one answer
           for slot, choices in zip(layout.slots, ends, strict=True)]
    return Arch(layout.space, layout.task.size, tuple(ops))


def train_network(settings: Baseline, run: Run, given: Arch | None, progress: Progress) -> Front:
    """Trains one network, writes its weights, ONNX file and card, and returns a front of it alone.

    Goes on where an earlier call stopped. ``given`` is the arch of a file, in place of the one that the settings name.
    Raises UserError for one that the space does not admit.
    """
    settings = scheduled(as_recorded(settings, run), run)
    inputs = prepare_inputs(settings, run, settings.target, progress, introduce=not run.has("front.json"), timed_in=run)
    keep_place(run, settings)
    arch = Arch.from_json(run.stage("arch.json", lambda: _arch_to_train(inputs, settings, given).to_json()))
    with timeline.phase(run, "schedule"):
        inputs = train_within_minutes(inputs, arch)
    how, keys = FineTuningRecipe.from_config(inputs.config, inputs.data, BY_ITSELF), plan(inputs.layout, arch)
    if not run.has("front.json"):
        progress.note(f"{arch.id}: of {arch.space} at {arch.size} pixels, {sum(map(macs, keys)) / 1e6:.4g} M multiply-"
                      f"adds; {how.epochs} epochs of {len(inputs.data.learn):,} images in batches of {how.batch}")
    with timeline.phase(run, "training"):
        train_picks(inputs, RandomWeights(inputs, "weights"), [arch], "", how, progress)
    with timeline.phase(run, "export"):
        card = deliver.deliver(inputs, [deliver.Wanted(arch, fine_tuned=True)], "", progress)[arch]
    front = run.record("front.json", Front, lambda: Front(
        space=inputs.layout.space, target=list(inputs.costs),
        front=[card.brief().model_copy(update={"dominated_on_test": False})]))
    if settings.target and not run.has("front.png"):
        run.write("front.png", lambda file: draw_front(front, file))
    return front.asked_of(run.path, timeline.finished(run))


def _arch_to_train(inputs: Inputs, settings: Baseline, given: Arch | None) -> Arch:
    """Returns the arch to train. Raises UserError for one that the space does not admit."""
    arch = given or choose_arch(inputs.layout, settings.arch, settings.seed)
    plan(inputs.layout, arch)
    return arch
