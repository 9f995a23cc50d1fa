"""The results of an experiment: a JSON line a part, which a later call with the same settings skips."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nas.errors import UserError, setting
from nas.files import write_text
from nas.latency.devices.onnxruntime import Cpu
from nas.latency.timing import interleaved


def standing(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of an earlier call. Raises UserError where they were made with other settings or are not ours."""
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(path.read_bytes().splitlines() if path.exists() else [], 1):
        try:
            line = json.loads(text)
            old = dict(line["settings"])
        except (ValueError, TypeError, KeyError, RecursionError):
            raise UserError(f"{path}: line {number}: not of this experiment; give another {setting('out')}") from None
        for key in dict.fromkeys([*settings, *old]):
            if old.get(key) != settings.get(key):
                raise UserError(f"{path}: line {number}: made with {key} = {old.get(key)}, now {settings.get(key)}; "
                                f"give another {setting('out')}, or the old value")
        lines.append(line)
    return lines


def keep(path: Path, lines: list[dict[str, Any]]) -> None:
    """All lines, each with its ``settings``; atomic."""
    write_text(path, "".join(f"{json.dumps(line)}\n" for line in lines))


def nas(log: Path, *words: str) -> bytes:
    """What a ``nas`` command prints, on one thread; what it says on the way is appended to ``log``.

    Raises UserError with the last line of that where it fails.
    """
    with log.open("ab") as file:
        done = subprocess.run([sys.executable, "-m", "nas", *words], stdout=subprocess.PIPE, stderr=file, check=False,
                              env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        said = log.read_text(errors="replace").splitlines()
        raise UserError(f"{log.stem}: nas {words[0]} ended with code {done.returncode}: {said[-1] if said else ''}")
    return done.stdout


def timed_twice(files: Mapping[str, Path], seconds: float) -> dict[str, Any]:
    """Times ONNX files on this CPU in one interleaved run, each loaded twice: the mean, and the second over the first.

    The ratio is the noise floor of each figure.
    """
    device, turns = Cpu(), ("first", "second")
    runs = {f"{name} {turn}": device.load(file) for turn in turns for name, file in files.items()}
    timings = interleaved(runs, seconds=seconds, rng=random.Random(0), max_rounds=1000)
    ms = {name: [timings[f"{name} {turn}"].ms for turn in turns] for name in files}
    return {"ms": {name: round(statistics.fmean(pair), 5) for name, pair in ms.items()},
            "second_over_first": {name: round(pair[1] / pair[0], 4) for name, pair in ms.items()},
            "runs": min(timing.n for timing in timings.values()), "conditions": device.conditions().to_json()}


@contextmanager
def told() -> Iterator[None]:
    """Around a whole script: what its user has to mend is one line and exit code 2, an interrupt is 130."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        raise SystemExit(130) from None
