"""Kills a small search at random moments, all along the road, and compares its end with that of an uninterrupted one.

    python benchmarks/chaos.py --kills 120 --out chaos

Each trial gives the same ``nas`` command again and again; all but the last are ended by SIGKILL (most), SIGTERM or
SIGINT after a random time. Searches (digits, a tiny space, gpu-v100, early exits) must end with the very files of the
uninterrupted one, byte for byte but for the log and the environment; ``nas profile`` (cpu, timings cut short) must keep
every row that was once saved and end with each row once. Processes are forked from one that has loaded PyTorch. Trials
are lines of OUT/results.jsonl: the same command continues.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import mmap
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.figure
import sklearn.datasets
import torch
import torchvision  # noqa: F401  all that a search loads is loaded once, before any fork
import yaml

import nas.cli.progress
import nas.pipeline.evaluate
import nas.pipeline.search
from nas import cli, results
from nas.latency import bench, profile
from nas.latency.table import LatencyTable
from nas.pipeline import supernet
from nas.progress import TimedTask

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from tiny_search import SHORT
from tiny_space import TINY

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
EXPECTED = {signal.SIGKILL: (-signal.SIGKILL, 0), signal.SIGTERM: (130, 0), signal.SIGINT: (130, 0)}
OWN = {"log.jsonl", "environment.json", "lock"}  # differ between any two runs
LONGEST_S = 3.0  # from the start of a process to its kill
BASE = ["--space", "tiny.yaml", "--size", "16", "--json"]
SEARCH = ["search", *BASE, "--target", "gpu-v100", "--data", "digits", "--limit", "160", "--threads", "1", "--run",
          "run", *SHORT]
KINDS = {"search": SEARCH, "exits": [*SEARCH, "--exits", "boost"],
         "profile": ["profile", *BASE, "--classes", "10", "--device", "cpu", "--out", "cpu.json"]}
TURNS = ("search", "exits", "exits", "profile")  # of the trials


class End(NamedTuple):
    """How a process ended: its exit code (or minus the signal), and the stage that it was in."""

    code: int
    stage: str


class Told(nas.cli.progress.TerminalProgress):
    """Also writes the name of the task at hand where the parent reads it."""

    place: mmap.mmap

    @contextlib.contextmanager
    def task(self, name: str, total: float, done: float = 0) -> Iterator[TimedTask]:
        told = " ".join(name.split()[:2 if name.startswith("supernet") else 1])
        self.place[:32] = told.encode().ljust(32)
        with super().task(name, total, done) as task:
            yield task
        self.place[:32] = f"after {told}".encode().ljust(32)


def main() -> None:
    options = parsed()
    torch.set_num_threads(1)
    sklearn.datasets.load_digits()
    matplotlib.figure.Figure().savefig(io.BytesIO())  # fonts are looked for once
    settings = {"longest_s": LONGEST_S, "checkpoint_s": options.checkpoint_s, "seed": options.seed}
    file = options.out / "results.jsonl"
    lines = results.standing(file, settings)
    whole = {kind: uninterrupted(kind, options.out / f"whole-{kind}", options) for kind in KINDS}
    while sum(sum(line["kills"].values()) for line in lines) < options.kills:
        kind = TURNS[len(lines) % len(TURNS)]
        folder = options.out / "trial"
        shutil.rmtree(folder, ignore_errors=True)
        began = time.perf_counter()
        line = trial(kind, folder, whole[kind], random.Random(f"{options.seed} {len(lines)}"), options)
        lines.append({"settings": settings, "kind": kind, **line, "seconds": round(time.perf_counter() - began, 1)})
        results.keep(file, lines)
        print(f"trial {len(lines)}, {kind}: {sum(line['kills'].values())} kills, {len(line['wrong'])} things wrong",
              file=sys.stderr, flush=True)
        if line["wrong"]:  # to be looked at
            shutil.copytree(folder, options.out / f"wrong-{len(lines)}", dirs_exist_ok=True)
    show(lines)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint-s", type=float, default=0.0, help="between two checkpoints of the supernet")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def uninterrupted(kind: str, folder: Path, options: argparse.Namespace) -> Path:
    if not (folder / "done").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        end = attempt(kind, folder, None, signal.SIGKILL, options)
        if end.code:
            raise SystemExit(f"{kind}: {(folder / 'stderr').read_text()}")
        (folder / "done").touch()
    return folder


def trial(kind: str, folder: Path, whole: Path, rng: random.Random, options: argparse.Namespace) -> dict[str, Any]:
    """Kills by stage and by signal until the command ends by itself, and what was wrong on the way or at the end."""
    kills, signals, wrong, saved = Counter[str](), Counter[str](), list[str](), dict[str, float]()
    while True:
        number = rng.choice(SIGNALS)
        end = attempt(kind, folder, rng.uniform(0.02, LONGEST_S), number, options)
        if kind == "profile":
            now = rows(folder)
            wrong += [f"lost or changed: {key}" for key in saved if now.get(key) != saved[key]]
            saved = now
        if end.code == 0:
            break
        if end.code not in EXPECTED[number]:
            wrong.append(f"{number.name} in {end.stage}: code {end.code}: {(folder / 'stderr').read_text()[-500:]}")
            if end.code > 0 and end.code != 130:
                break  # it would refuse again
        kills[end.stage] += 1
        signals[number.name] += 1
    wrong += different_rows(folder, whole) if kind == "profile" else different_files(folder, whole)
    return {"kills": dict(kills), "signals": dict(signals), "wrong": wrong}


def attempt(kind: str, folder: Path, after_s: float | None, number: signal.Signals, options: argparse.Namespace) -> End:
    """The command in a process of its own, sent the signal ``after_s`` its start unless it has ended by then."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    Told.place = mmap.mmap(-1, 32)
    Told.place[:32] = b"start".ljust(32)
    child = os.fork()
    if child == 0:
        os._exit(run(KINDS[kind], folder, options))
    deadline = None if after_s is None else time.monotonic() + after_s
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if deadline is not None and time.monotonic() > deadline:
            os.kill(child, number)
            ended = os.waitpid(child, 0)
            break
        time.sleep(0.002)
    return End(os.waitstatus_to_exitcode(ended[1]), Told.place[:32].decode().strip())


def run(words: list[str], folder: Path, options: argparse.Namespace) -> int:
    """What a process of its own would do; its exit code."""
    os.chdir(folder)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    nas.cli.progress.TerminalProgress = Told  # type: ignore[misc]
    supernet.CHECKPOINT_EVERY_S = options.checkpoint_s
    profile.FITTED_ON, profile.HELD_OUT = 3, 4
    setattr(profile, "CHUNK", 4)  # noqa: B010 - it is imported there
    bench.SECONDS_A_GRAPH = bench.SECONDS_A_NETWORK = 0.02
    try:
        cli.main(words)
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    finally:
        sys.stdout.flush()


def different_files(folder: Path, whole: Path) -> list[str]:
    """Files of the run that are not those of the uninterrupted one, and results that differ."""
    made, expected = (contents(place / "run") for place in (folder, whole))
    wrong = [f"{name}: {'differs' if name in made and name in expected else 'in one only'}"
             for name in sorted(made.keys() | expected.keys()) if made.get(name) != expected.get(name)]
    found, wanted = ((place / "stdout").read_text() for place in (folder, whole))
    return wrong + ([] if found == wanted else ["the result that is printed"])


def contents(path: Path) -> dict[str, bytes]:
    """Bytes by name; of a card without what says where and by which command it was made, of a checkpoint its values."""
    def content(file: Path) -> bytes:
        if file.suffix == ".pt":  # the same values are pickled in more than one way
            return plain(torch.load(file, map_location="cpu", weights_only=True))
        if file.name != "card.json":
            return file.read_bytes()
        card = json.loads(file.read_bytes())
        return json.dumps({key: value for key, value in card.items() if key != "provenance"}).encode()

    return {file.relative_to(path).as_posix(): content(file) for file in path.rglob("*")
            if file.is_file() and file.name not in OWN}


def plain(value: Any) -> bytes:
    if isinstance(value, dict):
        return b"".join(repr(key).encode() + plain(part) for key, part in value.items())
    return value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value).encode()


def rows(folder: Path) -> dict[str, float]:
    """Measured milliseconds by operator; loading a table refuses a row that is there twice."""
    path = folder / "cpu.json"
    return {str(key): row.raw_ms for key, row in LatencyTable.load(path).rows.items()} if path.exists() else {}


def different_rows(folder: Path, whole: Path) -> list[str]:
    return [f"row of one only: {key}" for key in sorted(rows(folder).keys() ^ rows(whole).keys())]


def show(lines: list[dict[str, Any]]) -> None:
    def total(part: str) -> Counter[str]:
        return sum((Counter(line[part]) for line in lines), Counter[str]())

    kills: Counter[str] = total("kills")
    print(f"{len(lines)} trials ({dict(Counter(line['kind'] for line in lines))}), {sum(kills.values())} kills in "
          f"{sum(line['seconds'] for line in lines) / 60:.1f} min; by signal: {dict(total('signals'))}")
    for stage, count in kills.most_common():
        print(f"{count:5}  {stage}")
    wrong = [f"trial {number}: {text}" for number, line in enumerate(lines, 1) for text in line["wrong"]]
    print("\n".join(wrong) or "every trial ended with what the uninterrupted one has")


if __name__ == "__main__":
    with results.told():
        main()
