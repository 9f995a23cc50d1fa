"""Exit heads have costs on every shipped target; on one that was profiled without them they are an error."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from clockwork import Clockwork
from every import every

from nas import sampling
from nas.errors import UserError
from nas.files import shipped
from nas.latency import bench as bench_module
from nas.latency import costs
from nas.latency.profile import profile
from nas.latency.table import LatencyTable
from nas.plan import Layout, Task, candidates, layout, plan, prefixes
from nas.space import Space


@cache
def shipped_costs(target: str) -> costs.Costs:
    return costs.load(str(costs.folder("latency_tables") / f"{target}.json"))


@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("space", shipped("search_spaces", ".yaml"))
@pytest.mark.parametrize("target", [name for name in shipped("latency_tables", ".json") if not name.startswith("cpu-")])
def test_every_shipped_target_prices_the_exits_of_every_shipped_space(target: str, space: str, size: int) -> None:
    """But a measured one: on a CPU everybody measures their own."""
    at = layout(Space.load(space), Task(size, 3, 10), exits=True)
    table = shipped_costs(target)
    arch = sampling.sample(at, random.Random(0))
    keys = plan(at, replace(arch, exits=tuple(exit_.slot for exit_ in at.exits)))
    ms = [sum(table.ms_many(prefix)) for prefix in prefixes(keys)]
    assert len(ms) == len(at.exits) + 1 and ms == sorted(ms) and len(set(ms)) == len(ms)
    assert every(value > 0 for value in table.ms_many(exit_.key for exit_ in at.exits))


def test_a_table_without_exits_says_what_to_run(tiny: Layout, tiny_exits: Layout, tmp_path: Path,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module, "SECONDS_A_GRAPH", 0.001)
    path = tmp_path / "clockwork.json"
    profile(tiny, path, device=Clockwork())
    before = LatencyTable.load(path)
    with pytest.raises(UserError, match=r"exit_head.*not in the table.*profile\(.*, exits=True\)$"):
        before.ms(tiny_exits.exits[0].key)
    assert profile(tiny_exits, path, device=Clockwork()).measured == 4  # 2, 10, 100 and 1000 classes
    after = LatencyTable.load(path)
    assert after.missing(candidates(tiny_exits)) == []
    assert after.meta.yardsticks == before.meta.yardsticks  # the same ones, exits or not
    # 0.1 ms and 0.01 ms a hidden channel (none here), and as a graph's end half a call, as the head has
    assert after.ms(tiny_exits.exits[0].key) == pytest.approx(0.1 + 0.25)
