"""Judges networks with the supernet's weights: those that a user names, and picks that are not fine-tuned yet."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from nas.arch import Arch
from nas.errors import UserError, setting
from nas.pipeline.inputs import Inputs
from nas.pipeline.selection import Judge
from nas.plan import OpKey, macs, params, plan, resized
from nas.progress import Progress
from nas.run import timeline
from nas.run.records import Candidate, JudgedNetwork, JudgedNetworks, Picks, Stopped
from nas.select.pareto import Point
from nas.select.pareto import front as pareto_front
from nas.training import evaluation
from nas.training.supernet_training import SupernetTraining


def read_archs(file: Path) -> list[Arch]:
    """Reads a JSON list of networks, each as an ``arch.json`` has it or under ``arch``, as ``nas sample`` lists them.

    Raises UserError, one line with the file and the number of the network, for anything else.
    """
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{setting('archs', file)}: {getattr(error, 'strerror', None) or 'not JSON'}") from None
    if not isinstance(value, list) or not value:
        raise UserError(f"{setting('archs', file)}: expected a list of networks, such as samples.json of nas sample")
    archs = []
    for number, item in enumerate(value, 1):
        try:
            archs.append(Arch.from_json(item["arch"] if isinstance(item, dict) and "arch" in item else item))
        except UserError as error:
            raise UserError(f"{setting('archs', file)}: network {number}: {error}") from None
    return archs


def judge_given(inputs: Inputs, training: SupernetTraining, archs: Sequence[Arch],
                progress: Progress) -> JudgedNetworks:
    """Judges networks on the selection split, with the supernet's weights; returns loss, accuracy and costs of each.

    What was judged before is in the run's log, and is not judged again. Raises UserError, before any is judged, for a
    network that the supernet does not have (any more).
    """
    plans = [_plan(inputs, training, arch, number) for number, arch in enumerate(archs, 1)]
    with progress.task("judge", len(set(archs))) as task:
        judge = Judge(inputs, training, task)
        judge(list(dict.fromkeys(archs)))
    networks = [_describe(inputs, keys, arch, (judge.known[arch.id], judge.accuracies[arch.id]), len(judge.split))
                for arch, keys in zip(archs, plans, strict=True)]
    return JudgedNetworks(run=str(inputs.run.path), split="select", images=len(judge.split), networks=networks)


def _plan(inputs: Inputs, training: SupernetTraining, arch: Arch, number: int) -> list[OpKey]:
    """Lists the operators of a network. Raises UserError for one that the supernet does not have."""
    try:
        return plan(resized(training.supernet.layout, inputs.at(arch.size).size), arch)
    except UserError as error:
        raise UserError(f"{setting('archs')}: network {number}: {error}{_advice(inputs, arch)}") from None


def _advice(inputs: Inputs, arch: Arch) -> str:
    """Returns what to do about a network that a supernet has not; nothing for one that its space has not either."""
    try:
        plan(inputs.at(arch.size).measured, arch)
    except UserError:
        return ""
    return ("; it was pruned, or left out before training: a search with prune=false and gates.granularity=space has "
            "it")


def stopped_result(inputs: Inputs, until: str, picks: Picks | None) -> Stopped:
    """Returns the result of a search that was asked to end behind a stage: its picks, if any, by inherited accuracy."""
    budgets, targets = picks.budgets if picks else [], list(inputs.costs)
    known, images = Judge.read_log(inputs.run), min(inputs.config.judge_images, len(inputs.data.select))
    archs = {pick.id: pick.arch for pick in budgets}
    networks = [_candidate(_describe(inputs.at(arch.size), plan(inputs.at(arch.size).measured, arch), arch,
                                     known[arch.id], images)) for arch in archs.values()]
    networks.sort(key=lambda network: network.ms[targets[0]])
    kept = {point.id for target in targets for point in pareto_front(
        Point(network.id, network.ms[target], network.select_accuracy or 0.0) for network in networks)}
    return Stopped(run=str(inputs.run.path), space=inputs.layout.space, until=until, target=targets,
                   sizes=[at.size for at in inputs.every] if inputs.others else [],
                   front=[network for network in networks if network.id in kept],
                   dominated=[network for network in networks if network.id not in kept],
                   budgets=[pick.budget() for pick in budgets], seconds=timeline.spent(inputs.run))


def _candidate(network: JudgedNetwork) -> Candidate:
    """Describes a judged network as a network of a front."""
    return Candidate(id=network.id, size=network.size, ms=network.ms, macs=network.macs, params=network.params,
                     select_accuracy=network.accuracy, select_accuracy_se=network.accuracy_se)


def _describe(inputs: Inputs, keys: Sequence[OpKey], arch: Arch, judged: tuple[float, float],
              images: int) -> JudgedNetwork:
    """Describes a network by its loss and accuracy (``judged``, on so many ``images``) and its costs."""
    loss, accuracy = judged
    return JudgedNetwork(
        id=arch.id, size=arch.size, loss=loss if math.isfinite(loss) else None, accuracy=accuracy,
        accuracy_se=evaluation.standard_error(accuracy, images),
        ms={target: math.fsum(costs.ms_many(keys)) for target, costs in inputs.costs.items()},
        macs=sum(map(macs, keys)), params=sum(map(params, keys)))
