"""Adds exits to a network that is trained already, so that only their heads learn (``nas exits``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nas.errors import UserError, call, setting
from nas.exits.choice import Pieces
from nas.exits.export import check
from nas.exits.methods import method as make
from nas.exits.methods import methods
from nas.pipeline.exits.card import UNMEASURED, Delivered, ExitsCard, Times
from nas.pipeline.exits.models import Model
from nas.pipeline.exits.serve import (
    CARD,
    LOSE_NOTHING,
    THRESHOLDS,
    Served,
    Trained,
    Wishes,
    choose_exits,
    measure_exits,
    with_prefix_ms,
    write_files,
)
from nas.pipeline.exits.train import train_exits
from nas.pipeline.overrun import excesses
from nas.progress import Progress
from nas.run import events, timeline
from nas.run.directory import Run
from nas.run.records import Excess
from nas.training import augment as augmentation
from nas.training import placement
from nas.training.data import Data
from nas.training.header import data_lines, unlabeled_lines
from nas.training.recipes import HEADS, FineTuningRecipe
from nas.training.unlabeled import answered, unlabeled
from nas.units import rounded_up

BATCH, LR, DECAY = 32, 0.003, 0.0
PIECES = "pieces.json"
TRIES = 3  # at a choice of exits whose file keeps to max_ms


def add(model: Model, run: Run, progress: Progress, *, images: Path | None = None, limit: int | None = None,
        method: str = "cache", settings: Mapping[str, Any] | None = None, epochs: int | None = None, seed: int = 0,
        augment: str | None = None, wishes: Wishes = LOSE_NOTHING, train_on: str = "auto") -> ExitsCard:
    """Trains exits for a network, chooses some of them, and writes everything into the run; returns the card.

    With ``images``, a folder of images without labels, accuracies are shares of images on which the answer is the
    network's own. ``augment`` is what heads learn under, in place of what suits the images.
    Raises UserError as ``refuse`` does, and for a network that files with exits cannot hold.
    """
    refuse_method(method)
    augmentation.check_augmentation(augment or model.data.augment)
    check(model.net, in_ch=model.data.in_ch, size=model.data.size)
    data = _images_of_heads(model, images, seed, limit)
    data = replace(data, augment=augment or data.augment)
    lines = unlabeled_lines(data) if images else data_lines(data, data.augment, "augment")
    for line in lines:
        progress.note(line)
    heads = make(method, model.net, **(settings or {}))
    count = epochs if epochs is not None else max(heads.phases(), HEADS.epochs_of(len(data.learn)))
    recipe = FineTuningRecipe(epochs=count, batch=min(BATCH, len(data.learn)), lr=LR, weight_decay=DECAY,
                              label_smoothing=0.0, augment=data.augment)
    device = placement.device_of(train_on)
    if not run.has(CARD):
        progress.note(f"heads: {count} epochs of {len(data.learn):,} images in batches of {recipe.batch}; then exits "
                      f"and thresholds are chosen{', and the files are timed here' if model.clock is not None else ''}")
    with timeline.phase(run, "training"):
        made = train_exits(model.name, model.net, data, recipe, run, "", seed, device, progress, method=method,
                           settings=settings)

    def card() -> ExitsCard:
        with timeline.phase(run, "choice and files"):
            trained = Trained.of(made, data, device, wishes.kind)
            delivered, times = _choose_and_write(model, run, trained, wishes, method, progress)
        return ExitsCard(
            id=model.name, method=method, epochs=count, target=model.target,
            labels="the network's answers" if images else "the images'", candidates=len(trained.select.logits) - 1,
            thresholds=THRESHOLDS, **dict(model.reading), **dict(delivered), **dict(times),
            over_budget=_over_budget(model.target, times, wishes), seconds=timeline.spent(run))

    return run.record(CARD, ExitsCard, card).model_copy(update={"folder": str(run.path)})


def refuse_method(method: str) -> None:
    """Raises UserError for a method that is not known or would change the network."""
    known = methods(frozen=True)
    if method not in known:
        raise UserError(f"{setting('method', method)}: known are {', '.join(known)}; others train the whole network: "
                        f"{call('search', exits='METHOD')}")


def _choose_and_write(model: Model, run: Run, trained: Trained, wishes: Wishes, method: str,
                      progress: Progress) -> tuple[Delivered, Times]:
    """Chooses exits, writes their files and, where this machine is the target, measures them."""
    with progress.task("measure and choose exits" if model.clock is not None else "choose exits", 3) as task:
        pieces = _pieces(model, run)  # measured once
        task.advance()
        served, final = _choose_within_max_ms(model, run, trained, wishes, pieces)
        task.advance()
        if final is not served:  # milliseconds of the very file: thresholds for them
            prefix, trunk = np.array(final.policy.prefix_ms), np.zeros(len(trained.select.logits))
            trunk[[*served.kept, -1]] = np.diff(np.r_[0.0, prefix])
            served = choose_exits(trained, Pieces(trunk, np.zeros(len(trunk))), wishes, served.kept)
        delivered, times = write_files(run.path, trained, served, {**model.metadata, "exit_method": method}), UNMEASURED
        if model.clock is not None:
            times = measure_exits(run.path, trained, served, model.clock, model.now_ns)
        task.advance()
    return delivered, times


def _over_budget(target: str, times: Times, wishes: Wishes) -> dict[str, Excess]:
    """Returns how far mean or worst latency are measured above what was asked for, if they are."""
    excess: dict[str, Excess] = {}
    for ms, bound in ((times.measured_ms, wishes.budget_ms), (times.measured_worst_ms, wishes.max_ms)):
        if bound is not None:
            excess |= excesses({target: ms}, {target: bound})
    return excess


def _pieces(model: Model, run: Run) -> Pieces:
    """Returns the milliseconds that exits are chosen by, as the run keeps them, so that nothing is measured twice."""
    def listed() -> dict[str, list[float]]:
        pieces = model.pieces()
        return {"trunk": pieces.trunk.tolist(), "heads": pieces.heads.tolist()}

    kept = run.stage(PIECES, listed)
    return Pieces(np.array(kept["trunk"]), np.array(kept["heads"]))


def _choose_within_max_ms(model: Model, run: Run, trained: Trained, wishes: Wishes,
                          pieces: Pieces) -> tuple[Served, Served]:
    """Chooses exits; returns them as they were chosen, and again with the milliseconds of their finished file.

    The latter may be above those that they were chosen by. Raises UserError where the file takes longer than
    ``max_ms``, after a few choices that left more and more room for that.
    """
    asked = wishes
    for _ in range(TRIES):
        served = choose_exits(trained, pieces, asked)
        final = _time_file(model, run, trained, served)
        worst = final.policy.prefix_ms[-1]
        if wishes.max_ms is None or asked.max_ms is None or worst <= wishes.max_ms:
            return served, final
        asked = replace(asked, max_ms=asked.max_ms * wishes.max_ms / worst)
    raise UserError(f"{setting('max_ms', f'{wishes.max_ms:g}')}: the file of these exits takes {rounded_up(worst)} ms; "
                    "raise it")


def _time_file(model: Model, run: Run, trained: Trained, served: Served) -> Served:
    """Returns exits with the milliseconds of their finished file, from the run's log where that was timed before.

    How confidence is computed is part of the file.
    """
    kept, confidence = list(served.kept), served.policy.kind
    for event in run.events(events.ExitsTimed):
        if (event.kept, event.confidence) == (kept, confidence):
            return with_prefix_ms(served, event.prefix_ms)
    final = model.timed(trained, served, run.path)
    if final is not served:
        run.log(events.ExitsTimed(kept=kept, confidence=confidence, prefix_ms=list(final.policy.prefix_ms)))
    return final


def _images_of_heads(model: Model, images: Path | None, seed: int, limit: int | None) -> Data:
    if images is not None:
        return answered(unlabeled(images, model.data, seed, limit), model.plain, placement.device_of("cpu"))
    if not len(model.data.learn):
        raise UserError(f"{setting('data')} or {setting('images')}: which images? {setting('images', 'FOLDER')} takes "
                        "any, without labels")
    return model.data
