"""What asking an exit costs: the slope of what files take beyond their rows, by hand; in the table, and in prices."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from every import every
from tiny_search import Quiet

from nas.errors import UserError
from nas.latency.meta import Meta
from nas.latency.table import LatencyTable
from nas.latency.timing import Run
from nas.pipeline.exits import price
from nas.plan import Layout, OpKey
from nas.progress import NoProgress


class Flat(LatencyTable):
    """A millisecond an operator."""

    def ms_many(self, keys: Iterable[OpKey]) -> list[float]:
        return [1.0 for _ in keys]


@pytest.mark.parametrize("slope", [0.01, 0.0, -0.01])
def test_it_is_what_files_take_beyond_their_rows_an_exit(tiny_exits: Layout, monkeypatch: pytest.MonkeyPatch,
                                                         slope: float) -> None:
    written: list[np.ndarray] = []
    write = price.write_untrained

    def wrote(net: Any, folder: Path, at: Layout, prefix: np.ndarray) -> None:
        write(net, folder, at, prefix)
        written.append(prefix)

    def timed(runs: Any, count: int, *_: Any) -> tuple[dict[str, float], None]:
        found: dict[str, Run] = runs()
        assert len(found) == count == len(written[-1])
        assert every(run() > 0 for run in found.values())
        # leaving at the head comes to no further exit than leaving at the last does
        return {f"exit {k}": float(ms) + slope * min(k + 1, count - 1) for k, ms in enumerate(written[-1])}, None

    monkeypatch.setattr(price, "write_untrained", wrote)
    monkeypatch.setattr(price, "time_networks", timed)
    found = price.exit_ms(tiny_exits, Flat("flat", Meta(device="flat")), None, NoProgress())
    assert found == pytest.approx(max(0.0, slope), abs=1e-12) and len(written) == price.NETWORKS
    assert len({tuple(prefix) for prefix in written}) > 1  # not one network several times


def test_it_is_in_the_table_once_and_in_the_prices_of_exits(tiny: Layout, tiny_exits: Layout, tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    path, measured = tmp_path / "cpu.json", list[Layout]()
    LatencyTable("cpu", Meta(device="cpu")).save(path)

    def measure(at: Layout, table: LatencyTable, device: object, progress: object) -> float:
        measured.append(at)
        return 0.0123456789

    monkeypatch.setattr(price, "exit_ms", measure)
    monkeypatch.setattr(price, "timed_here", lambda costs: None)
    shown = Quiet()
    price.measure_exit_ms(tiny_exits, path, True, shown)
    assert [note.partition(" is ")[0] for note in shown.notes] == [f"{path}: what it takes to ask an exit"]
    monkeypatch.setattr(price, "timed_here", lambda costs: (costs, None))
    price.measure_exit_ms(tiny, path, True, NoProgress())
    assert not measured and price.known_exit_ms(LatencyTable.load(path)) == 0  # another machine's; and no exits
    for again in (False, False, True):
        price.measure_exit_ms(tiny_exits, path, again, NoProgress())
    assert measured == [tiny_exits, tiny_exits]
    assert price.known_exit_ms(LatencyTable.load(path)) == 0.012346


@pytest.mark.parametrize("value", [-0.1, "0.1", True, [0.1]])
def test_a_table_whose_figure_is_none_is_refused(tmp_path: Path, value: object) -> None:
    path = tmp_path / "cpu.json"
    meta = {"device": "cpu", "exit_ms": value}
    path.write_text(json.dumps({"kind": "table", "meta": meta, "name": "cpu", "rows": []}))
    with pytest.raises(UserError, match=rf"cpu.json: meta: exit_ms: .* \(got {re.escape(repr(value))}\); correct it"):
        LatencyTable.load(path)
