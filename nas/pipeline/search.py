"""Runs a search in a run directory, stage by stage: inputs, supernet, selection, fine-tuning, export, front.

Each stage writes a file and is skipped where that is there already, so the same command continues what was stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from nas.arch import Arch
from nas.config.search import Config
from nas.errors import UserError, setting
from nas.latency.costs import load as load_costs
from nas.pipeline import deliver, header, judging, recheck, selection, supernet
from nas.pipeline.budgets import (
    NOTHING,
    Bounds,
    budgets_of_target,
    divide_budgets,
    reachable_budgets,
    tell_idle_budgets,
)
from nas.pipeline.exits import picks as picks_exits
from nas.pipeline.finetune import network_folder, train_known, train_picks
from nas.pipeline.front import find_picks, full_id, make_front, read_fronts
from nas.pipeline.inputs import Inputs
from nas.pipeline.known import inherits, known_lines, recipe_of_known, with_known
from nas.pipeline.narrow import with_few_branches
from nas.pipeline.npu_memory import UNLIMITED, Memory, fitting_layout
from nas.pipeline.overrun import excesses, smallest_budgets
from nas.pipeline.pace import Pace, Times, seconds_of_search
from nas.pipeline.race import race_picks
from nas.pipeline.schedule import within_minutes
from nas.pipeline.setup import (
    complete_tables,
    load_finished_inputs,
    memory_limits,
    npu_of,
    prepare_inputs,
    refuse_inputs,
    with_targets,
)
from nas.pipeline.speed import measured_speed
from nas.pipeline.workers import Crew
from nas.plan import resized
from nas.progress import Progress
from nas.report.figures import draw_front
from nas.run import timeline
from nas.run.directory import Run
from nas.run.images import RECORDED, Images, keep_place, with_images_at
from nas.run.known import known_networks
from nas.run.records import Card, Excess, Exported, ExportedFile, Front, JudgedNetworks, Picks, Stopped
from nas.run.schedule import SCHEDULE, scheduled
from nas.run.settings import as_recorded, named_target, searched, settings_of
from nas.run.tables import find_costs
from nas.training.ranks import joined
from nas.training.recipes import PICK, FineTuningRecipe, SupernetRecipe
from nas.training.supernet_training import SupernetTraining

STAGES = ("supernet", "selection")  # that a search can end behind
FORMATS = {"onnx": (deliver.to_onnx, deliver.ONNX), "features": (deliver.to_features, "model.features.onnx"),
           "int8-onnx": (deliver.to_int8, deliver.INT8), "tflite": (deliver.to_tflite, deliver.TFLITE)}


def refuse_settings(config: Config) -> None:
    """Raises UserError for a space or a target that cannot be used; quick, and writes nothing."""
    refuse_inputs(config)
    if config.init:
        Run.existing(config.init)
    for target in config.target:
        path, memory = find_costs(target), memory_limits(config)
        if memory.given:
            npu_of(target, load_costs(str(path)) if path else None, memory)


def search(config: Config, run: Run, progress: Progress, until: str | None = None) -> Front | Stopped:
    """Searches a space from its inputs to the front, or ``until`` a stage of ``STAGES`` has ended.

    Goes on where an earlier call stopped. Raises UserError for what the user has to mend.
    """
    asked = as_recorded(config, run)
    config = scheduled(asked, run)
    inputs = prepare_inputs(config, run, config.target, progress, introduce=not run.has("front.json"), timed_in=run)
    keep_place(run, config)
    if config.exits.method != "none":
        picks_exits.refuse_exits(inputs)
    with timeline.phase(run, "race of branches"):
        inputs = with_few_branches(inputs, progress)
    with timeline.phase(run, "schedule"):
        inputs = within_minutes(inputs, selection.CALIBRATED_ON, progress)
        speed = measured_speed(inputs)
    config = inputs.config
    inputs = with_known(inputs, progress)
    limits = {target: budgets_of_target(inputs, inputs.layout, target, supernet.given_budgets(config, target),
                                        config.budgets) for target in config.target}
    if config.target:
        tell_idle_budgets(inputs, inputs.layout, config.target[0], config.budget_ms, progress.note)
    known = known_networks(run)
    recipe, tuning = SupernetRecipe.from_config(config, inputs.data), _finetuning_recipe(inputs)
    if not run.has("picks.json"):
        for line in (*header.header_lines(inputs, limits, recipe, tuning), *known_lines(inputs, known, tuning)):
            progress.note(line)
    times = Times.of(inputs, speed, limits, [each.arch for each in known])
    pace = Pace(seconds_of_search(inputs, times, recipe, tuning, selection.CALIBRATED_ON), progress)
    if not run.has("picks.json"):
        pace.begin()
    with joined() as group:  # the processes of torchrun; the others leave once the supernet is trained
        training = supernet.train_supernet(inputs, limits, group, progress, pace)
    if until == "supernet":
        return judging.stopped_result(inputs, until, None)
    if config.max_ms is not None:  # bounds the picks for the other targets, too
        kept = fitting_layout(training.supernet.layout, inputs.footprints)
        limits |= {target: reachable_budgets(inputs, kept, target, [], config.budgets, NOTHING)
                   for target in config.target[1:]}
    given = {config.target[0]: bool(asked.budget_ms)} if config.target else {}

    def select_once(at: Inputs, limits: dict[str, list[float]], bounds: Bounds) -> Picks:
        return selection.choose_picks(at, training, limits, "", progress, bounds)

    def select_measured() -> Picks:
        return recheck.select_measured(inputs, training, limits, NOTHING, given, select_once, progress)

    with timeline.phase(run, "selection"):
        picks = run.record("picks.json", Picks, select_measured)
    pace.end("selection")
    if until == "selection":
        return judging.stopped_result(inputs, until, picks)
    return _deliver_picks(inputs, training, picks, "", True, progress)


def select(run: Run, targets: Sequence[str], budget_ms: Sequence[float], progress: Progress,
           fine_tune: bool = False, memory: Memory = UNLIMITED, bounds: Bounds = NOTHING,
           points: int | None = None, storage: str | None = None, workers: int = 1,
           images: Images = RECORDED) -> Front:
    """Selects new picks from a run's supernet, for other targets or budgets; ``fine_tune`` trains them further.

    ``budget_ms`` are those of the first target; where there are none, a front is ``points`` budgets over its range.
    Limits of ``memory`` that are not given are those of the run, if all targets are its own. With a ``storage`` so many
    ``workers`` share the evaluations.
    """
    if workers > 1 and not storage:
        raise UserError(f"{setting('workers', workers)}: they share evaluations through a {setting('storage')}; give "
                        "one, for example sqlite:///evaluations.db")
    config = with_images_at(searched(run), images)
    targets = [named_target(run, target) for target in targets]
    bounds = replace(bounds, together={named_target(run, target): ms for target, ms in bounds.together.items()})
    bounds.check(targets)
    given, bounds = divide_budgets(targets, budget_ms, bounds)
    inputs, training = supernet.load_finished(run, config, progress)
    keep_place(run, config)
    limited = _memory_limits(config, targets, memory)
    if config.sizes and limited.given:
        raise UserError(f"{setting(next(iter(limited.given)))}: is not there for a run of several "
                        f"input sizes ({', '.join(map(str, config.sizes))})")
    pruned = training.supernet.layout
    costs = inputs.costs | complete_tables(inputs, [target for target in targets if target not in inputs.costs],
                                           [resized(pruned, at.size) for at in inputs.every], progress)
    inputs = with_targets(inputs, {target: costs[target] for target in targets}, pruned, progress, limited)
    if fine_tune and config.exits.method != "none":
        picks_exits.refuse_exits(inputs)
    kept = fitting_layout(pruned, inputs.footprints)
    limits = {target: reachable_budgets(inputs, kept, target, given_ms, points or config.budgets, bounds)
              for target, given_ms in given.items()}
    for target, given_ms in given.items():
        together_ms = [bounds.together[target]] if target in bounds.together else []
        tell_idle_budgets(inputs, kept, target, [*given_ms, *together_ms], progress.note)
    unseen = [target for target in targets if target not in config.target]
    if unseen:
        progress.note(f"{run.path}: was pruned without {', '.join(unseen)} in view; what only that would keep is gone")
    if config.gates.granularity == "target" and (limited.given or bounds.counts):
        progress.note(f"{run.path}: was trained without hidden widths beside which a wider one takes no longer, though "
                      "they need less; a search with gates.granularity=space has them")
    asked = [limits, fine_tune, *filter(None, (limited.given, bounds.counts, bounds.together))]
    name = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
    place = f"selections/{'+'.join(Path(t).stem for t in targets)}-{name}/"

    with_budget = {target: bool(given_ms) for target, given_ms in given.items()}

    def select_measured() -> Picks:
        crews: AbstractContextManager[Crew | None] = nullcontext()
        if storage:
            crews = Crew(run, storage, workers, selection.evaluations_name(inputs))
        with crews as crew:
            def select_once(at: Inputs, limits: dict[str, list[float]], bounds: Bounds) -> Picks:
                return selection.choose_picks(at, training, limits, place, progress, bounds, crew)

            return recheck.select_measured(inputs, training, limits, bounds, with_budget, select_once, progress)

    with timeline.phase(run, "selection", place):
        picks = run.record(f"{place}picks.json", Picks, select_measured)
    return _deliver_picks(inputs, training, picks, place, fine_tune, progress)


def judge_archs(run: Run, file: Path, progress: Progress, images: Images = RECORDED) -> JudgedNetworks:
    """Judges the networks in a file with the weights of a run's supernet; goes on where an earlier call stopped."""
    archs, config = judging.read_archs(file), with_images_at(searched(run), images)
    inputs, training = supernet.load_finished(run, config, progress)
    keep_place(run, config)
    return judging.judge_given(inputs, training, archs, progress)


def judge(run: Run, storage: str, progress: Progress, parent: int | None = None, images: Images = RECORDED) -> None:
    """Judges, as a worker, the networks that a ``select`` of the same run, here or elsewhere, puts into a storage."""
    config = with_images_at(searched(run), images)
    inputs = prepare_inputs(config, run, config.target, progress)
    if parent is not None:  # one of a crew, which shares the cores: the run's own threads are those of training
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    selection.judge_for_others(inputs, supernet.load_trained(inputs), storage, parent)


def export(run: Run, arch_id: str | None, budget_ms: float | None, out: Path | None, progress: Progress,
           kind: str = "onnx", images: Images = RECORDED) -> Exported:
    """Writes one pick or all in a format of ``FORMATS``, checks the files, and measures them where that is possible."""
    write, name = FORMATS[kind]
    config = with_images_at(settings_of(run), images)
    calibrated = kind not in ("onnx", "features")
    if images != RECORDED and not calibrated:
        raise UserError(f"{setting('data')}: an export as {kind} reads no images: leave it out")
    fronts = read_fronts(run)
    arch_id = arch_id and full_id(fronts, arch_id)
    if kind != "onnx":
        fronts = _without_exits(fronts, kind, arch_id)
    place, wanted = find_picks(fronts, arch_id, budget_ms)
    inputs = load_finished_inputs(config, run, fronts[place].target, images=calibrated)
    if calibrated:
        keep_place(run, config)
    files = []
    with progress.task("export", len(wanted)) as task:
        for card in map(fronts[place].card, wanted):
            if card.exits:
                folder = out / card.id if out else run.file(card.onnx).parent
                files.append(picks_exits.export_exits(inputs, card, place, folder))
                task.advance()
                continue
            arch = Arch.from_json(run.read_json(f"{place}archs/{card.id}/arch.json"))
            path = (out / f"{card.id}{name.removeprefix('model')}" if out else
                    run.file(network_folder(place, arch) + name))
            written = write(inputs.of(arch), arch, place, path)
            file = ExportedFile.model_validate({"id": card.id, "predicted_ms": card.ms, **written})
            files.append(file.model_copy(update={"over_budget": _over_budget(file, fronts, place, budget_ms)}))
            task.advance()
    return Exported(files=files, target=fronts[place].target)


def _over_budget(file: ExportedFile, fronts: dict[str, Front], place: str,
                 budget_ms: float | None) -> dict[str, Excess]:
    """Returns, by target, how far an exported file is measured above a budget it was picked for, or ``budget_ms``."""
    bounds = smallest_budgets((budget for front in fronts.values() for budget in front.budgets), file.id)
    if budget_ms is not None:
        first = fronts[place].target[0]
        bounds[first] = min(budget_ms, bounds.get(first, budget_ms))
    return excesses(file.measured_ms, bounds)


def _without_exits(fronts: dict[str, Front], kind: str, arch_id: str | None) -> dict[str, Front]:
    """Returns the fronts without the picks that have exits, as the format ``kind`` cannot have them.

    What exits dominate is in ``front``, too. Raises UserError where the pick ``arch_id`` has exits, and where all picks
    of the search have.
    """
    plain = {}
    for place, front in fronts.items():
        for card in front.cards:
            if card.exits and card.id == arch_id:
                raise UserError(f"{setting('arch', arch_id)}: has early exits, which {setting('format', kind)} does "
                                f"not; {setting('arch', str(card.of))} is the same network without")
        without = [card for card in front.cards if not card.exits]
        if arch_id is None and not place and front.cards and not without:
            raise UserError(f"{setting('format', kind)}: has no early exits, and all picks of this run have; "
                            f"{setting('format', 'onnx')} writes them")
        plain[place] = front.model_copy(update={"front": without, "dominated": []})
    return plain


def _memory_limits(config: Config, targets: Sequence[str], asked: Memory) -> Memory:
    """Returns the limits of SRAM and flash that are asked for, else those of the run, if all targets are its own."""
    of_run = memory_limits(config) if set(targets) <= set(config.target) else UNLIMITED
    return Memory(asked.sram_kb or of_run.sram_kb, asked.flash_kb or of_run.flash_kb)


def _deliver_picks(inputs: Inputs, training: SupernetTraining, picks: Picks, place: str, fine_tune: bool,
                   progress: Progress) -> Front:
    """Trains, exports and measures picks and known networks, adds exits where the run has them, writes the front.

    Known networks are those of the search alone. Exits are for the picks.
    """
    run = inputs.run
    recipe = _finetuning_recipe(inputs) if fine_tune else _finetuning_recipe(inputs).model_copy(update={"epochs": 0})
    if recipe.epochs and any(pick.others for pick in picks.budgets):
        chosen = picks
        with timeline.phase(run, "finalists", place):
            picks = run.record(f"{place}finalists.json", Picks,
                               lambda: race_picks(inputs, training, chosen, place, recipe, progress))
    picked = list(dict.fromkeys(pick.arch for pick in picks.budgets))
    known = {} if place else {network.arch: network.name for network in known_networks(run)}
    inherited = list(dict.fromkeys([*picked, *(arch for arch in known if inherits(training, arch))]))
    alone = [arch for arch in known if arch not in inherited]
    with timeline.phase(run, "fine-tuning" if recipe.epochs else "weights", place):
        for at in inputs.every:  # of one size at a time: a teacher sees the images that its students see
            if of_size := [arch for arch in inherited if arch.size == at.size]:
                train_picks(at, training, of_size, place, recipe, progress)
    with timeline.phase(run, "known networks", place):
        train_known(inputs, alone, place, recipe_of_known(inputs, recipe), progress)
    with timeline.phase(run, "export", place):
        cards = deliver.deliver(inputs, [
            deliver.Wanted(arch, recipe.epochs > 0 or arch in alone, smallest_budgets(picks.budgets, arch.id),
                           known.get(arch)) for arch in (*inherited, *alone)], place, progress)
    early: list[Card | None] = []
    if inputs.config.exits.method != "none" and recipe.epochs:
        with timeline.phase(run, "exits", place):
            early = [picks_exits.exit_card(inputs, arch, cards[arch], place, recipe, progress,
                                           smallest_budgets(picks.budgets, arch.id))
                     for arch in picked if cards[arch].fits]
    every = [*cards.values(), *(card for card in early if card is not None)]
    front = run.record(f"{place}front.json", Front, lambda: make_front(inputs, every, picks))
    if not run.has(f"{place}front.png"):
        run.write(f"{place}front.png", lambda file: draw_front(front, file))
    _tell_improving(inputs, front, progress)
    return front.asked_of(run.path, timeline.finished(run, place))


def _tell_improving(inputs: Inputs, front: Front, progress: Progress) -> None:
    """Tells the user which networks of a front were still getting better when their training ended."""
    if ids := [card.known or card.id for card in front.front if card.improving]:
        longer = setting("minutes" if inputs.run.has(SCHEDULE) else "train.finetune_epochs")
        progress.note(f"still improving when their training ended: {', '.join(ids)}; more {longer} would help")


def _finetuning_recipe(inputs: Inputs) -> FineTuningRecipe:
    """Returns the recipe that picks are fine-tuned by."""
    return FineTuningRecipe.from_config(inputs.config, inputs.data, PICK, inputs.config.train.distill)
