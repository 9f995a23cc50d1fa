"""Limits the SRAM and flash that networks need on an NPU, as Arm's compiler Vela counts them for whole networks.

Flash is close to a sum over the operators, so the selectors are given a fitted sum; the peak of SRAM is a maximum, so
choices that are over the limit on their own are left out before anything is trained. Both only guide: what decides is
the whole network, compiled as int8 with typical weights. Nothing is compiled twice: the run's log keeps it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from nas import sampling
from nas.arch import Arch
from nas.errors import UserError, setting
from nas.latency.devices.ethos_u import EthosU
from nas.latency.devices.vela import Report
from nas.ops import build
from nas.plan import Branch, Layout, OpKey, Slot, params, plan, restrict
from nas.progress import Progress
from nas.run import events
from nas.run.directory import Run
from nas.select.ilp import solve
from nas.select.problem import Cost, Problem
from nas.subnet import Subnet

KB = 1024  # bytes
DRAWN, FITTED_ON = 200, 10  # random networks, and how many of them the sum for flash is fitted on
ALONE = 1.001  # an operator alone needs no more SRAM than its network, but for a buffer of weights cut otherwise


@dataclass(frozen=True)
class Memory:
    """Holds an amount of SRAM and of flash, in KB of 1024 bytes: what a network needs, or limits (None: no limit)."""

    sram_kb: float | None = None
    flash_kb: float | None = None

    @staticmethod
    def from_report(report: Report) -> Memory:
        """Returns what a network needs by the report of Vela."""
        return Memory(report.sram_bytes / KB, report.flash_bytes / KB)

    @property
    def given(self) -> dict[str, float]:
        """Returns the limits that are given, by the key of the setting."""
        values = {"sram_kb": self.sram_kb, "flash_kb": self.flash_kb}
        return {key: value for key, value in values.items() if value is not None}

    def admits(self, need: Memory) -> bool:
        """Tells whether ``need`` is within these limits."""
        return all(need.given[key] <= limit for key, limit in self.given.items())

    def __str__(self) -> str:
        """Writes the limits as settings."""
        return " ".join(setting(key, f"{value:.6g}") for key, value in self.given.items())


UNLIMITED = Memory()


class Footprints:
    """Counts the memory that networks of a layout need on one target, and checks it against the ``limits``."""

    def __init__(self, run: Run, target: str, npu: EthosU, limits: Memory, layout: Layout, progress: Progress) -> None:
        self.run, self.target, self.npu, self.limits = run, target, npu, limits
        self.layout, self._progress = layout, progress
        self._known = {e.what: Memory(e.sram_bytes / KB, e.flash_bytes / KB) for e in run.events(events.Compiled)
                       if (e.target, e.vela) == (target, npu.version)}
        self._seen: dict[str, Memory] = {}

    def need_of(self, arch: Arch) -> Memory:
        """Returns what a network needs with typical weights. Raises UserError where Vela cannot compile it."""
        if arch.id not in self._seen:
            self._seen[arch.id] = self._compile(arch.id, plan(self.layout, arch))
        return self._seen[arch.id]

    def admits(self, arch: Arch) -> bool:
        """Tells whether a network is within the limits."""
        return self.limits.admits(self.need_of(arch))

    def without_too_large(self, layout: Layout) -> Layout:
        """Returns the layout without the choices that need more SRAM than the limit on their own.

        Of a branch only some widths are compiled, as a wider one needs no less. Raises UserError where nothing is left
        for a slot.
        """
        if self.limits.sram_kb is None:
            return layout
        with self._progress.task(f"SRAM of every choice on {self.target}", len(layout.slots)) as task:
            keep = []
            for slot in layout.slots:
                ops = [branch.at(width) for branch in slot.branches for width in self._widths(slot, branch)]
                if not ops:
                    least = min(self._sram_alone(slot.key(branch.ops[0])) for branch in slot.branches)
                    raise UserError(f"{setting('sram_kb', f'{self.limits.sram_kb:.6g}')}: nothing in slot {slot.index} "
                                    f"fits on {self.target}: its smallest choice needs {least:.1f} KB; raise it, or "
                                    f"search a smaller space ({setting('width')}) or at a smaller {setting('size')}")
                keep.append(ops)
                task.advance()
        return restrict(layout, keep)

    def flash_cost(self, layout: Layout) -> Cost:
        """Makes the selection cost that estimates flash as a sum over operators, in KB.

        It is fitted to the parameters and the numbers of operators of random networks, none of which it puts too low.
        Of many drawn those near the limit are compiled, as there the fit has to be right.
        """
        rng, limit = random.Random("flash"), (self.limits.flash_kb or 1) * KB
        drawn = {arch: plan(self.layout, arch)
                 for arch in (sampling.sample_thinned(self.layout, rng) for _ in range(DRAWN))}
        networks = sorted(drawn, key=lambda arch: abs(math.log(sum(map(params, drawn[arch])) / limit)))[:FITTED_ON]
        plans = [drawn[arch] for arch in networks]
        if new := [arch for arch in networks if arch.id not in self._known]:
            with self._progress.task(f"flash of random networks on {self.target}", len(new)) as task:
                for arch in new:
                    self.need_of(arch)
                    task.advance()
        needs = np.array([self.need_of(arch).flash_kb for arch in networks])
        features = np.array([[sum(map(params, keys)), len(keys)] for keys in plans]) / needs[:, None]
        weights, _ = nnls(features, np.ones(len(needs)))
        weights = weights / (features @ weights).min()

        def cost(key: OpKey | None) -> float:
            return float(weights @ (params(key), 1)) if key else 0.0

        rows = tuple(np.array([cost(slot.key(op)) for op in slot.ops]) for slot in layout.slots)
        return Cost(f"flash of {self.target}", "KB", sum(map(cost, layout.fixed)), rows)

    def flash_limits(self) -> dict[str, float]:
        """Returns the limit of flash, by the name of its cost; nothing where there is none."""
        return {} if self.limits.flash_kb is None else {f"flash of {self.target}": self.limits.flash_kb}

    def ms_range(self, problem: Problem) -> tuple[float, float]:
        """Returns the smallest ms of a network that fits, and the largest ms of one by estimates of memory alone.

        Raises UserError where no network that fits was found.
        """
        ms = problem.costs[0]
        fastest = solve(tuple(-row for row in ms.per_op), problem.costs, self.flash_limits(), admits=problem.admitted)
        if not fastest:
            raise UserError(self.no_network_fits())
        slowest = solve(ms.per_op, problem.costs, self.flash_limits())
        return ms.of(fastest[0]), ms.of(slowest[0])

    def no_network_fits(self, where: str = "") -> str:
        """Writes the message that no network fits, with the smallest memory that any needed.

        ``where`` restricts it, for example to a budget.
        """
        sram, flash = ([value for need in self._seen.values() if (value := getattr(need, key)) is not None]
                       for key in ("sram_kb", "flash_kb"))
        seen = f"; of {len(self._seen)} compiled, the smallest SRAM is {min(sram):.1f} KB and the smallest flash " \
               f"{min(flash):.1f} KB" if sram else ""
        return (f"{self.limits}: no network{where} fits on {self.target}{seen}: raise it, or search a smaller space "
                f"({setting('width')}) or at a smaller {setting('size')}")

    def _widths(self, slot: Slot, branch: Branch) -> list[int | None]:
        """Returns the widths of a branch that fit into SRAM on their own, found by bisection.

        None stands for a branch without widths.
        """
        widths: list[int | None] = [*branch.widths] or [None]
        low, high = 0, len(widths)
        position = high - 1  # mostly all fit
        while low < high:
            if self._sram_alone(slot.key(branch.at(widths[position]))) <= ALONE * (self.limits.sram_kb or 0):
                low = position + 1
            else:
                high = position
            position = (low + high) // 2
        return widths[:low]

    def _sram_alone(self, key: OpKey | None) -> float:
        """Returns the KB of SRAM that one operator needs on its own; 0 for ``skip``."""
        return self._compile(str(key), [key]).sram_kb or 0.0 if key else 0.0

    def _compile(self, what: str, keys: list[OpKey]) -> Memory:
        """Returns what operators, one after another, need by Vela; ``what`` names them in the log, which keeps it."""
        if what not in self._known:
            first = keys[0]
            module = Subnet(keys) if len(keys) > 1 else build(first.op, first.in_ch, first.out_ch, first.stride)
            report = self.npu.report(module, what, in_ch=first.in_ch, size=first.size)
            self.run.log(events.Compiled(target=self.target, what=what, sram_bytes=report.sram_bytes,
                                         flash_bytes=report.flash_bytes, vela=self.npu.version))
            self._known[what] = Memory.from_report(report)
        return self._known[what]


def fitting_layout(layout: Layout, footprints: Mapping[str, Footprints]) -> Layout:
    """Returns a layout without the choices that need too much SRAM on some target."""
    for footprint in footprints.values():
        layout = footprint.without_too_large(layout)
    return layout
