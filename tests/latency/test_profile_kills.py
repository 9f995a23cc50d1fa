"""``nas profile`` on this machine, killed at ten random moments: every row that was saved stays, none is doubled."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tiny_space import TINY

import nas
from nas.latency.table import LatencyTable
from nas.plan import Task, candidates, layout
from nas.space import Space

# small chunks, short timings and a rest after each chunk, so that kills fall between rows on any machine; and no second
# thoughts on rows that were measured while something else ran here
QUICK = """
import time
from nas.latency import bench, profile, table, timing
timing.SLOW, timing.FAST, profile.ATTEMPTS = float("inf"), 0.0, 1
profile.CHUNK, profile.FITTED_ON, profile.HELD_OUT, bench.SECONDS_A_GRAPH = 4, 3, 4, 0.02
bench.SECONDS_A_NETWORK = 0.02
save = table.LatencyTable.save
table.LatencyTable.save = lambda *given: (save(*given), time.sleep(0.3))
from nas.cli import app
app()
"""


@pytest.mark.slow
def test_ten_random_kills_lose_and_double_nothing(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    path, rng = tmp_path / "cpu.json", random.Random(0)
    command = [sys.executable, "-c", QUICK, "profile", "--space", "tiny.yaml", "--size", "16", "--classes", "4",
               "--out", str(path), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(Path(nas.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    saved: dict[str, float] = {}
    grew = 0
    for kill in range(10):
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        _until_it_grows(process, path, len(saved))
        time.sleep(rng.uniform(0, 0.5))
        process.send_signal((signal.SIGKILL, signal.SIGTERM)[kill % 2])
        process.wait()
        now = _rows(path)
        assert saved.items() <= now.items()
        grew += len(now) > len(saved)
        saved = now
    assert grew >= 3  # or the kills have tried nothing
    done = json.loads(subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True).stdout)
    keys = candidates(layout(Space.parse(TINY, "tiny.yaml"), Task(16, 3, 4)))
    table = LatencyTable.load(path)  # which refuses a row that is there twice
    wanted = LatencyTable("none", table.meta).missing(keys)
    assert set(table.rows) == set(wanted) and done["measured"] == len(wanted) - len(saved)
    assert saved.items() <= _rows(path).items()


def _rows(path: Path) -> dict[str, float]:
    """Operator and shape -> what was measured, before any correction."""
    return {str(key): row.raw_ms for key, row in LatencyTable.load(path).rows.items()} if path.exists() else {}


def _until_it_grows(process: "subprocess.Popen[bytes]", path: Path, rows: int) -> None:
    while process.poll() is None and len(_rows(path)) <= rows:
        time.sleep(0.02)
