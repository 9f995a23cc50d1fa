"""Starts a search, a training or a comparison in its run directory: made or found again, and locked meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nas import sampling
from nas.config.search import PLACES, Config, default_run_dir
from nas.config.space import checked_space
from nas.errors import UserError, setting
from nas.pipeline import compare_spaces, search, train_one
from nas.pipeline.compare_spaces import ComparisonSettings
from nas.plan import Task, layout
from nas.progress import Progress
from nas.run import settings as recorded
from nas.run.directory import Run
from nas.run.records import Comparison, Front, Stopped
from nas.run.settings import Baseline


def begin_search(config: Config, path: Path | None, progress: Progress, until: str | None = None) -> Front | Stopped:
    """Runs a search in ``path`` (default: a directory named after its settings), or goes on with the one in it.

    With ``until``, a stage of ``nas.pipeline.search.STAGES``, it stops behind that stage. Raises UserError for what the
    user has to mend; nothing is left behind then.
    """
    if until is not None and until not in search.STAGES:
        raise UserError(f"{setting('until', until)}: a search can stop behind {' or '.join(search.STAGES)}")
    place = path or default_run_dir(config)
    with Run.open_locked(place, config.to_json(), PLACES, refuse=lambda: search.refuse_settings(config)) as run:
        return search.search(config, run, progress, until)


def begin_training(settings: Baseline, path: Path | None, progress: Progress) -> Front:
    """Trains one network in ``path`` (default: a directory named after its settings), or goes on with the one in it.

    Raises UserError for what the user has to mend; nothing is left behind then.
    """
    given = None
    if not settings.arch:
        settings = settings.model_copy(update={"arch": _only_network(settings)})
    elif settings.arch not in train_one.CHOICES:
        given = train_one.read_arch(Path(settings.arch))
        of_arch = {"space": given.space, "size": given.size}
        named = settings.model_fields_set
        settings = settings.model_copy(update={
            "arch": given.id, **{key: value for key, value in of_arch.items() if key not in named}})
    place = path or recorded.default_run_dir(settings)
    with Run.open_locked(place, settings.to_json(), PLACES, refuse=lambda: train_one.refuse_settings(settings)) as run:
        return train_one.train_network(settings, run, given, progress)


def begin_comparison(configs: Sequence[Config], networks: int, path: Path | None, progress: Progress) -> Comparison:
    """Compares spaces in ``path`` (default: a directory named after the settings), or goes on with what stands there.

    ``configs`` are equal but for their space, of which ``networks`` are drawn at each budget. Raises UserError for what
    the user has to mend; nothing is left behind then.
    """
    settings = ComparisonSettings.of(configs, networks)
    with Run.open_locked(path or settings.run_dir, settings.to_json(), PLACES, ["budgets.json"],
                         settings.refuse) as run:
        return compare_spaces.compare(settings, run, progress)


def _only_network(settings: Baseline) -> str:
    """Returns the setting ``arch`` for a space of one network, where it is not given; else raises UserError."""
    if sampling.count(layout(checked_space(settings), Task(settings.side or 224, 3, 10))) > 1:
        raise UserError(f"{setting('arch')}: which network? give largest, smallest, random, or an arch.json")
    return "largest"
