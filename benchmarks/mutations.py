"""Whether the tests notice: small faults are put into the code one at a time, and the tests that should fail are run.

    python benchmarks/mutations.py                  # all of benchmarks/mutants.py, two at a time
    python benchmarks/mutations.py --check          # only whether each fault can still be put in
    python benchmarks/mutations.py --only ilp --full

Each fault is a change of one place. Its own tests run on a copy of the checkout; with ``--full`` the whole fast suite
has to pass as well before a fault counts as survived. Results are lines of a file and are not made again while the
fault, its file and its tests are the same.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parent.parent
HANGS_S = 3600  # a fault's own tests that take longer hang in it: noticed
WHOLE_HANGS_S = 6 * 3600  # the same of the whole fast suite, beside other work
PASSED, FAILED, BROKEN_COLLECTION = 0, 1, 2  # of pytest; others mean that the tests were not found


@dataclass(frozen=True)
class Ran:
    """How pytest ended on a copy with a fault in it; ``code`` None where it hung."""

    code: int | None
    seconds: float
    first: str  # of the tests that failed

    @property
    def caught(self) -> bool:
        return self.code != PASSED


def problems(mutants: Sequence[Mutant], root: Path = ROOT) -> list[str]:
    """One line for each fault that cannot be put in as it is written, or whose tests are not there."""
    found = []
    for number, mutant in enumerate(mutants):
        path = root / mutant.file
        count = path.read_text().count(mutant.old) if path.is_file() else 0
        if count != 1:
            found.append(f"{mutant.name}: its old text is {count} times in {mutant.file}, not once")
        if mutant.old == mutant.new:
            found.append(f"{mutant.name}: old and new text are the same")
        if mutant.name in (other.name for other in mutants[:number]):
            found.append(f"{mutant.name}: is there twice")
        for test in mutant.tests:
            file, _, name = test.partition("::")
            if not (root / file).is_file() or f"def {name}" not in (root / file).read_text():
                found.append(f"{mutant.name}: {test} is not there")
    return found


def key(mutant: Mutant, root: Path = ROOT) -> str:
    """A result stands as long as the fault, the file it is put into and its tests are the same."""
    total = hashlib.sha256(repr(mutant).encode())
    for name in (mutant.file, *sorted({test.partition("::")[0] for test in mutant.tests})):
        total.update((root / name).read_bytes())
    return total.hexdigest()[:16]


def copied(target: Path) -> Path:
    """The files of the checkout that git knows or would add."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"],
                            capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    return target


@contextlib.contextmanager
def put_in(mutant: Mutant, copy: Path) -> Iterator[None]:
    """The copy with the fault in it."""
    path = copy / mutant.file
    text = path.read_text()
    path.write_text(text.replace(mutant.old, mutant.new))
    try:
        yield
    finally:
        path.write_text(text)


def pytest(copy: Path, tests: Sequence[str], *more: str, hangs_s: float = HANGS_S) -> Ran:
    """Runs tests in the copy, whose code is found before any that is installed."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *(more or ("-n", "0")), *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.setdefault("OMP_NUM_THREADS", "1")
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=copy, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True, start_new_session=True)
    try:
        out, _ = process.communicate(timeout=hangs_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return Ran(None, time.monotonic() - began, "(hung)")
    if process.returncode not in (PASSED, FAILED, BROKEN_COLLECTION):
        raise SystemExit(f"pytest {' '.join(tests)}: ended with {process.returncode}\n{out[-2000:]}")
    failed = [line for line in out.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return Ran(process.returncode, time.monotonic() - began, failed[0].split(" - ")[0] if failed else "")


def tried(mutant: Mutant, copy: Path, full: bool) -> Ran:
    """Its own tests and, where they pass and that is asked for, all fast ones."""
    with put_in(mutant, copy):
        own = pytest(copy, mutant.tests)
        return own if own.caught or not full else pytest(
            copy, (), "-n", "2", "--dist", "loadfile", hangs_s=WHOLE_HANGS_S)


def known(path: Path) -> dict[str, dict[str, Any]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return {record["key"]: record for record in map(json.loads, lines)}


def run(mutants: Sequence[Mutant], results: Path, workers: int, full: bool, pass_clean: bool) -> list[dict[str, Any]]:
    """The records of all, in their order; what is not in the file yet is tried and appended."""
    before = known(results)
    left = [mutant for mutant in mutants if key(mutant) not in before
            or (full and not before[key(mutant)]["caught"] and not before[key(mutant)]["full"])]
    with tempfile.TemporaryDirectory() as folder:
        copies: queue.Queue[Path] = queue.Queue()
        for number in range(workers if left else 0):
            copies.put(copied(Path(folder) / str(number)))

        def record(mutant: Mutant) -> dict[str, Any]:
            copy = copies.get()
            try:
                ran = tried(mutant, copy, full)
            finally:
                copies.put(copy)
            return {"key": key(mutant), "name": mutant.name, "file": mutant.file, "caught": ran.caught,
                    "by": ran.first, "seconds": round(ran.seconds, 1), "full": full}

        if left and not pass_clean:
            sound(copies, left, workers)
        with ThreadPoolExecutor(workers) as pool, results.open("a") as file:
            for made in (future.result() for future in as_completed([pool.submit(record, one) for one in left])):
                before[made["key"]] = made
                file.write(json.dumps(made) + "\n")
                file.flush()
                print(f"{'caught  ' if made['caught'] else 'SURVIVED'} {made['seconds']:6.1f} s  {made['name']}  "
                      f"{made['by']}", flush=True)
    return [before[key(mutant)] for mutant in mutants]


def sound(copies: queue.Queue[Path], mutants: Sequence[Mutant], workers: int) -> None:
    """Ends the program where a test fails without any fault: then it would say nothing."""
    copy = copies.get()
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    ran = pytest(copy, tests, "-n", str(workers), "--dist", "loadfile")
    copies.put(copy)
    if ran.caught:
        raise SystemExit(f"without a fault: {ran.first or 'the tests hang'}; mend that first")
    print(f"all tests pass without a fault ({ran.seconds:.0f} s)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="only whether each fault can still be put in")
    parser.add_argument("--only", default="", help="those with this text in their name or file")
    parser.add_argument("--full", action="store_true", help="run all fast tests on what its own tests let through")
    parser.add_argument("--pass-clean", action="store_true", help="the tests are known to pass without a fault")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path("mutations.jsonl"))
    given = parser.parse_args()
    mutants = [mutant for mutant in MUTANTS if given.only in mutant.name or given.only in mutant.file]
    if wrong := problems(mutants):
        raise SystemExit("\n".join(wrong))
    if given.check:
        print(f"{len(mutants)} faults can be put in")
        return
    records = run(mutants, given.results, given.workers, given.full, given.pass_clean)
    caught = sum(record["caught"] for record in records)
    print(f"{caught} of {len(records)} caught ({caught / max(1, len(records)):.1%}), "
          f"{sum(record['seconds'] for record in records):.0f} s of tests")
    for record in records:
        if not record["caught"]:
            print(f"survived: {record['name']} ({record['file']})")


if __name__ == "__main__":
    main()
