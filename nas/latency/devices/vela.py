"""Runs Vela, Arm's compiler for Ethos-U NPUs (package ``ethos-u-vela``), in a separate process.

Vela ends the process that it runs in on input that it cannot read (a segmentation fault), so it runs in a worker: a
crash there is an error here. The worker is this file run as a script: a spawn of ``multiprocessing`` would import the
package (PyTorch with it, seconds) and the user's main script once more. It starts in a fraction of a second and ends
with us.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

VERSION = "5.2"  # Vela's Python interface is not documented, so this file is written for one version
TIMEOUT_S = 600.0


class VelaError(Exception):
    """Is raised where Vela refuses a network or dies of it; the message is one line."""


@dataclass(frozen=True)
class Report:
    """Holds what Vela says of a network; its operators' cycles add up to ``cycles``.

    Operators that are left to the CPU count as zero cycles, so a report of any (``cpu_ops``) is no latency.
    """

    cycles: int
    operators: tuple[tuple[int, str, int], ...]  # position of its source in the file from 1, kind, cycles
    cpu_ops: int
    cpu_kinds: tuple[str, ...]
    sram_bytes: int  # peak: maps, and the weights that are buffered (all of them where they live in SRAM)
    flash_bytes: int  # the compiled file: weights and scales, the NPU's commands, and what a runtime needs to read it


class Vela:
    """Compiles TFLite files in a worker, which is started when it is needed, and again after a crash."""

    def __init__(self) -> None:
        self._worker: tuple[subprocess.Popen[bytes], Connection] | None = None

    def compile(self, architecture: str, model: bytes, config: str, options: str) -> Report:
        """Compiles a TFLite file; ``config`` and ``options`` are texts as Vela reads them. Raises VelaError."""
        process, connection = self._worker = self._worker or _start()
        try:
            connection.send((architecture, model, config, options))
            if not connection.poll(TIMEOUT_S):
                raise EOFError
            answer = connection.recv()
        except (EOFError, OSError):
            process.kill()
            self._worker = None
            raise VelaError(f"Vela died of it (exit status {process.wait()})") from None
        if isinstance(answer, str):
            raise VelaError(f"Vela: {answer}")
        return Report(*answer)

    def close(self) -> None:
        """Ends the worker."""
        if self._worker is not None:
            process, connection = self._worker
            connection.close()
            process.wait()
            self._worker = None


def _start() -> tuple[subprocess.Popen[bytes], Connection]:
    ours, theirs = Pipe()  # the C++ core prints its warnings to the other streams; what they say is in the report
    with theirs:
        handle = theirs.fileno()
        process = subprocess.Popen([sys.executable, __file__, str(handle)], pass_fds=[handle],
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return process, ours


def _serve(connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asked us is interrupted, and we end with them
    from ethosu import regor

    while True:
        try:
            architecture, model, config, options = connection.recv()
        except EOFError:
            return
        try:
            answer: Any = _report(regor.compile(architecture, model, "TFLITE", config, options=options))
        except Exception as error:  # of whatever kind the C++ core raises
            answer = " ".join(str(error).split())[:300] or type(error).__name__
        connection.send(answer)


def _report(compiled: Any) -> tuple[Any, ...]:
    totals, tables = compiled.perf_report, compiled.opt_database.tables
    operators = tuple((int(source), str(kind), int(cycles))
                      for source, kind, cycles in _columns(tables["perf"], "source_id", "operator", "op_cycles"))
    sources = dict(_columns(tables["source"], "id", "operator"))
    on_cpu = tuple(sorted({str(sources[str(source)]) for source, kind, _ in operators if kind == "Passthrough"}))
    sram = totals.memories["Sram"].peakUsage if "Sram" in totals.memories else 0
    return int(totals.totalCycles), operators, int(totals.cpuOps), on_cpu, int(sram), len(compiled.model)


def _columns(table: Any, *names: str) -> list[tuple[Any, ...]]:
    where = [list(table.header).index(name) for name in names]
    return [tuple(row[i] for i in where) for row in table.data]


if __name__ == "__main__":
    here = Path(__file__).resolve().parent  # its files are no packages, although one is called onnxruntime
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != here]
    _serve(Connection(int(sys.argv[1])))
