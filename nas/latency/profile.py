"""Fills a latency table: measures rows, fits their correction on whole networks, and checks predictions on others.

Rows come from a bench (``nas.latency.bench``) in chunks of random composition and are saved chunk by chunk: a run that
is killed continues where it was. On a device that is timed, every chunk has references (``nas.latency.context``) and a
yardstick of its own, so that hours of different load fit together (``nas.latency.timing``); and its rows are corrected
(``nas.latency.correction``).
"""

from __future__ import annotations

import datetime
import hashlib
import random
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from pydantic import Field

import nas
from nas import sampling
from nas.errors import UserError, setting
from nas.files import folder
from nas.latency.agreement import agreement, kendall, mape
from nas.latency.base import Costs
from nas.latency.bench import WARM_NETWORK, Bench, Clocked, Estimator, Parts, yardstick_of
from nas.latency.context import Context
from nas.latency.correction import correct, corrected, uncorrected
from nas.latency.costs import LOCAL
from nas.latency.devices import open_device
from nas.latency.estimate import CHUNK, COMPILED_S, networks_s, rows_s
from nas.latency.fresh import fresh
from nas.latency.load import Watch
from nas.latency.lock import locked_table
from nas.latency.meta import Conditions, Correction, KnotError, Meta, Validation, Yardstick
from nas.latency.table import HEADS, LatencyTable, Row
from nas.latency.timing import Device, Run, Steady, Timing, interleaved
from nas.ops.user_files import hashes
from nas.plan import Layout, OpKey, candidates, plan
from nas.progress import NoProgress, Progress, Task
from nas.record import Record
from nas.subnet import Subnet

Tell = Callable[[str], None]
ATTEMPTS = 3  # at a row that is unstable or not above zero, before it is flagged
SPARE = 0.5  # share of the rows that may be measured again because the machine was slow
FITTED_ON = 24  # networks that the correction is fitted on; more do not make its two coefficients better
COPIES = 4  # at most of each, where a space has fewer networks than that; a known network is a space of one
YARDSTICKS = 3  # networks that all other networks are timed beside
CHECKED_S, CHECKED_ROUNDS = 2.0, 400  # seconds and rounds for one finished network
CHECKED_AGAIN = 1  # times on a slow machine: if it stays slow, more of them do not make the figures better
REDRAWN = 4  # times as many networks are drawn as the validation needs, for those that the correction has not seen
HELD_OUT = 24  # widths between the knots, measured to check the interpolation


def silent(text: str) -> None:
    """Ignores a message: the default of ``tell``."""


class Profiled(Record):
    """States what a table has after a call of ``profile``, and what was measured in it."""

    table: str = Field(description="its file")
    rows: int
    measured: int = Field(description="rows of this call")
    flagged: int = Field(description="rows that are not reliable")
    correction: Correction | None = Field(default=None, description="of the layout; None where a compiler counts")
    knot_error: KnotError | None = None
    validation: Validation | None = Field(default=None, description="where one was asked for")


def profile(layout: Layout, table_path: Path, *, device: str | Device | Estimator = "cpu", threads: int = 1,
            batch: int = 1, precision: str | None = None, remeasure: bool = False, progress: Progress | None = None,
            rng_seed: int = 0, validate: int = 0, knots: bool = True, tell: Tell = silent) -> Profiled:
    """Measures what the table lacks for a layout (all of it with ``remeasure``); ``validate`` networks check the sum.

    Widths between the ``knots`` check the interpolation. ``tell`` is called where rows of another machine are left out.
    ``precision`` is ``fp32`` (default) or ``int8`` on the CPU.
    Raises UserError for an unknown device, and for a table that was measured under other conditions or is being filled
    by another process.
    """
    device = open_device(device, threads, batch, precision) if isinstance(device, str) else device
    with one_torch_thread(), locked_table(table_path):
        table = table_so_far(table_path, device, remeasure, tell)
        wanted = LatencyTable(table.name, table.meta).missing(candidates(layout))
        todo = wanted if remeasure else table.missing(candidates(layout))
        rng = random.Random(rng_seed)
        filling = _Filling(layout, table, table_path, _bench(layout, table, device, rng), progress or NoProgress(), rng)
        filling.measure(todo, fresh=todo == wanted)
        if filling.label not in table.meta.corrections:
            filling.correct(rng_seed, knots)
        if validate:
            filling.validate(validate, rng_seed)
        table.meta.begun = {}
        filling.save()
    flagged = sum(row.how == "flagged" for row in table.rows.values())
    return Profiled(table=str(table_path), rows=len(table.rows), measured=len(todo), flagged=flagged,
                    correction=table.meta.corrections[filling.label], knot_error=table.meta.knot_error,
                    validation=table.meta.validation if validate else None)


def estimate_s(layout: Layout, table: LatencyTable, device: Device | Estimator, knots: bool = False,
               validate: int = 0) -> float:
    """Estimates the seconds that ``profile`` takes to measure what a table lacks, where nothing else runs."""
    todo = table.missing(candidates(layout))
    if isinstance(device, Estimator):
        return COMPILED_S * (len(todo) + validate)
    fits = _known_correction(layout, table, todo) is None
    between = rows_s(layout, todo[:HELD_OUT]) * 2 if knots and fits else 0.0
    return rows_s(layout, todo) + between + networks_s(layout, validate + _fitted_on(layout) * fits)


def planned_s(layout: Layout, path: Path, device: Device | Estimator, remeasure: bool, validate: int) -> float:
    """Estimates the seconds that ``profile`` takes to complete the table at ``path``, or to make it."""
    table = table_so_far(path, device, remeasure)
    known = LatencyTable(table.name, table.meta.model_copy(update={"corrections": {}})) if remeasure else table
    return estimate_s(layout, known, device, True, validate)


def unfinished(layout: Layout, table: Costs) -> bool:
    """Tells whether a table has rows of a layout that are measured but not corrected: a call was interrupted."""
    return _label(layout) in table.meta.uncorrected


def time_networks(prepare: Callable[[], Mapping[str, Run]], count: int, layout: Layout, table: LatencyTable,
                  device: Device) -> tuple[dict[str, float], float | None]:
    """Times ``count`` networks in the same rounds on the device of the table, in turn with the layout's yardsticks.

    Returns ms by name, as of when the table was made, and the drift: how many times slower the yardsticks are now. The
    ms are divided by it. Without yardsticks in the table, drift is None and the ms are as they are.
    """
    rng, seconds = random.Random(0), CHECKED_S * count
    with one_torch_thread():
        if not _yardstick(layout, table).network_ms:
            def unscaled() -> dict[str, Timing]:
                return interleaved(prepare(), seconds=seconds, rng=rng, max_rounds=CHECKED_ROUNDS, warm=WARM_NETWORK)

            timings, drift = fresh(unscaled) if device.fresh else unscaled(), None
        else:
            whole = _whole(layout, table, device, rng)
            timings = whole.time(prepare, seconds, CHECKED_ROUNDS, WARM_NETWORK, CHECKED_AGAIN)
            drift = whole.drift
    return {name: timing.ms for name, timing in timings.items()}, drift


def _known_correction(layout: Layout, table: LatencyTable, todo: list[OpKey]) -> Correction | None:
    """Returns the correction that rows of a layout take which are still to be measured; None where it is to be fitted.

    It is fitted on networks without exits, so heads of exits take the one that is there.
    """
    return table.meta.corrections.get(_label(layout)) if all(key.is_exit for key in todo) else None


def _bench(layout: Layout, table: LatencyTable, device: Device | Estimator, rng: random.Random) -> Bench:
    return device.bench(layout) if isinstance(device, Estimator) else clocked(layout, table, device, rng)


def _yardstick(layout: Layout, table: LatencyTable) -> Yardstick:
    """Returns the table's yardstick for the layout; an empty one where it has none."""
    return table.meta.yardsticks.get(_label(layout), Yardstick())


def clocked(layout: Layout, table: LatencyTable, device: Device, rng: random.Random) -> Clocked:
    """Makes the bench that times a device, with yardsticks of the layout and their reference ms from the table."""
    key = yardstick_of(layout)
    steady = Steady(lambda: [device.prepare(Context(key).module(), in_ch=key.in_ch, size=key.size)],
                    _yardstick(layout, table).op_ms, rng, apart=device.fresh)
    return Clocked(layout, device, steady, _whole(layout, table, device, rng))


def _whole(layout: Layout, table: LatencyTable, device: Device, rng: random.Random) -> Steady:
    references, task = _yardstick(layout, table).network_ms, layout.task
    plans = _draw_networks(layout, len(references) if references else YARDSTICKS, "yardstick")
    return Steady(lambda: [device.prepare(Subnet(keys), in_ch=task.in_ch, size=task.size) for keys in plans],
                  references, rng, WARM_NETWORK, device.fresh)


def _label(layout: Layout) -> str:
    """Names a layout in a meta by space, size and a digest of its operators, which tells edited spaces apart."""
    digest = hashlib.sha256(repr(candidates(replace(layout, exits=()))).encode()).hexdigest()[:6]
    return f"{layout.space} at {layout.task.size} ({digest})"


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Restricts PyTorch to one thread in the block: idle threads spin for a while, beside the runtime being timed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def table_so_far(path: Path, device: Device | Estimator, remeasure: bool = False, tell: Tell = silent) -> LatencyTable:
    """Reads the table at ``path``, or makes a new one, for rows of one machine; ``tell`` says what is left out.

    A table of the user hides the shipped one of its name, so it begins with the rows of that. Nothing is written.
    Raises UserError for a file whose rows are of another machine, unless all are to be measured anew.
    """
    conditions = device.conditions()
    source = path if path.exists() or path.parent != LOCAL else folder("latency_tables") / path.name
    if not source.exists():
        return LatencyTable(path.stem, _stated(conditions, device.align), path=path)
    table = LatencyTable.load(source)
    table.path = path
    change = conditions.change_since(table.meta)
    if change and not remeasure and source == path:
        raise UserError(f"{path}: {change} now: write to another file with {setting('out')}, or measure all of it anew "
                        f"with {setting('remeasure')}")
    if change:
        tell(f"{source}: its {len(table.rows)} rows are left out, as {change} here: {path} begins without any")
        return LatencyTable(path.stem, _stated(conditions, device.align), path=path)
    table.meta = _stated(conditions, device.align, table.meta)
    if remeasure:
        table.meta.begun = {}
    return table


def _stated(conditions: Conditions, align: int, before: Meta | None = None) -> Meta:
    """Returns the meta of a table that is filled now, with what it said ``before``."""
    return Meta.model_validate({**(before.to_json() if before else {}), **conditions.model_dump(), "align": align,
                                "date": datetime.date.today().isoformat(), "commit": _commit()})


@dataclass(frozen=True)
class _Filling:
    """Fills a table with the rows of one layout, as a bench measures them; what there is so far is always saved."""

    layout: Layout
    table: LatencyTable
    path: Path
    bench: Bench
    progress: Progress
    rng: random.Random

    @cached_property
    def label(self) -> str:
        """Returns what the table's meta calls the layout."""
        return _label(self.layout)

    def save(self) -> None:
        if yardstick := self.bench.yardstick:
            self.table.meta.yardsticks[self.label] = yardstick
        self.table.save(self.path)

    def measure(self, todo: list[OpKey], fresh: bool) -> None:
        """Measures rows; a ``fresh`` table that was begun while the machine was slow is begun anew, up to half way.

        A correction that is known is applied, else it is to be fitted anew.
        """
        meta = self.table.meta
        meta.own_operators |= hashes(key.op.name for key in candidates(self.layout))
        meta.method, meta.protocol = self.bench.method, self.bench.protocol
        if set(self.table.rows) <= set(todo):  # all of it is measured now
            meta.load = None
        if not todo:
            return
        known = _known_correction(self.layout, self.table, todo)
        if known is None:
            meta.corrections.pop(self.label, None)
            meta.uncorrected = sorted({*meta.uncorrected, self.label})
        with self.progress.task("rows", len(todo)) as task:
            self._measure(self.rng.sample(todo, len(todo)), task, fresh, known)

    def _measure(self, todo: list[OpKey], task: Task, fresh: bool, known: Correction | None) -> None:
        """Measures rows, chunk by chunk.

        What was measured while the machine was slow is measured again at the end, as far as ``SPARE`` goes; the faster
        time counts.
        """
        bench, table, watch = self.bench, self.table, Watch(self.table.meta.threads or 1, self.table.meta.load)
        queue, spare = list(todo), int(SPARE * len(todo))
        attempts: Counter[OpKey] = Counter()
        best: dict[OpKey, tuple[float, Row]] = {}  # drift and row
        done = 0
        while queue:
            chunk, queue = queue[:CHUNK], queue[CHUNK:]
            rows = bench.rows(chunk)
            if bench.yardstick:
                watch.sample(bench.drift, bench.spread)
                table.meta.load = watch.load
            if fresh and 2 * done < len(todo) and bench.was_slow_at_first():
                table.remove(todo)
                best.clear()
                queue, attempts, done = list(todo), Counter(), 0
                task.reach(0, len(todo))
                continue
            attempts.update(chunk)
            best |= {key: (bench.drift, row) for key, row in rows.items()
                     if row and (key not in best or bench.drift <= best[key][0])}
            again = {key for key, row in rows.items() if not _settled(row) and attempts[key] < ATTEMPTS}
            if bench.slow and spare > 0:
                spare -= len(chunk)
                again = set(chunk)
            queue += [key for key in chunk if key in again]
            final = {key: best[key][1] if key in best else None for key in chunk if key not in again}
            made = [row or bench.alone(key) for key, row in final.items()]
            table.add(corrected(row, known) if known else row for row in made)
            self.save()
            done += len(final)
            task.reach(done, len(todo), **({"again": len(queue)} if done + len(queue) > len(todo) else {}))

    def correct(self, seed: int, knots: bool) -> None:
        """Fits the correction of the layout, where the bench needs one; measures between the ``knots`` before."""
        meta, fitted = self.table.meta, None
        meta.knot_error = self._knot_error() if knots else None
        if self.bench.corrected:
            plans = _draw_networks(self.layout, _fitted_on(self.layout), f"correction {seed}")
            measured = np.mean(self._networks("correction", seed, plans), axis=0)
            fitted = correct(self.table, self.label, candidates(self.layout), plans, measured, self.bench.drift)
        meta.corrections[self.label] = fitted
        meta.uncorrected = [other for other in meta.uncorrected if other != self.label]
        self.table.save(self.path)

    def validate(self, n: int, seed: int) -> None:
        """Compares predicted with measured ms on networks that the correction was not fitted on; measures them twice.
        """
        layout = self.layout
        fitted_on = _draw_networks(layout, _fitted_on(layout), f"correction {seed}")
        plans = _draw_networks(layout, n, f"validation {seed}", without=fitted_on)
        first, second = self._networks("validation", seed, plans)
        predicted = np.array([sum(self.table.ms_many(keys)) for keys in plans])
        self.table.meta.add_validation(Validation(
            **vars(agreement(predicted, (first + second) / 2)), noise_mape=mape(first, second),
            noise_kendall=kendall(first, second), space=layout.space, size=layout.task.size, drift=self.bench.drift,
            date=datetime.date.today().isoformat()))

    def _knot_error(self) -> KnotError | None:
        """Measures the error of interpolation at widths that are no knots, and the noise from measuring them twice."""
        table = self.table
        between = [key for key in candidates(self.layout) if key not in table.rows and key.op.name not in HEADS]
        if not between:
            return None
        keys = self.rng.sample(between, min(HELD_OUT, len(between)))
        with self.progress.task("widths between the rows", 2) as task:
            first = self.bench.rows(keys)
            task.advance()
            second = self.bench.rows(keys)
            task.advance()
        both = [(key, row.raw_ms, again.raw_ms) for key in keys if (row := first[key]) and (again := second[key])]
        if not both:
            return None
        known, (first_ms, second_ms) = [key for key, *_ in both], np.array([ms for _, *ms in both]).T
        raw = LatencyTable(table.name, table.meta, map(uncorrected, table.rows.values()))
        error = mape(np.array(raw.ms_many(known)), (first_ms + second_ms) / 2)
        return KnotError(n=len(both), mape=error, noise_mape=mape(first_ms, second_ms))

    def _networks(self, what: str, seed: int, plans: list[list[OpKey]]) -> tuple[np.ndarray, np.ndarray]:
        """Measures networks; parts are kept in the table until all are there, so that an interrupted call continues."""
        name = f"{what} of {self.label}, seed {seed}, {len(plans)} networks"
        parts = [np.array(part) for part in self.table.meta.begun.get(name, [])]
        with self.progress.task(what, len(plans), sum(part.shape[1] for part in parts)) as task:

            def keep(parts: Parts) -> None:
                self.table.meta.begun = {name: [part.tolist() for part in parts]}
                self.save()
                task.reach(sum(part.shape[1] for part in parts), len(plans))

            return self.bench.networks(plans, parts, keep)


def _settled(row: Row | None) -> bool:
    return row is not None and row.how != "flagged"


def _fitted_on(layout: Layout) -> int:
    """Returns the number of networks that the correction of a layout is fitted on."""
    return min(FITTED_ON, COPIES * sampling.count(layout))


def _draw_networks(layout: Layout, n: int, seed: str, without: Iterable[list[OpKey]] = ()) -> list[list[OpKey]]:
    """Draws random networks of all depths: with equal depths, a cost per operator would be fitted as a constant.

    None is one of ``without``, as far as the space has so many others.
    """
    rng, known = random.Random(seed), set(map(tuple, without))
    drawn = [plan(layout, sampling.sample_thinned(layout, rng)) for _ in range(n * (REDRAWN if known else 1))]
    return sorted(drawn, key=lambda keys: tuple(keys) in known)[:n]


def _commit() -> str:
    """Returns the commit of the checkout that measured, else the version of the package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return f"nas {nas.__version__}"
    result = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=root, capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else f"nas {nas.__version__}"
