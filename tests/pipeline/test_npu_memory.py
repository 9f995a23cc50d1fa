"""SRAM and flash as hard limits: what a compiler says of whole networks decides, whichever selector asks."""

import importlib.util
import json
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from cards import card
from every import every
from tiny_search import Quiet, config_of, searched, selected
from tiny_space import TINY
from torch import nn

from nas import sampling
from nas.arch import SKIP, Arch
from nas.cli import render
from nas.errors import UserError
from nas.latency.costs import LOCAL
from nas.latency.devices import vela
from nas.latency.devices.ethos_u import EthosU
from nas.latency.devices.vela import Report
from nas.latency.meta import Conditions
from nas.latency.profile import profile
from nas.ops import build
from nas.pipeline import deliver, setup
from nas.pipeline import search as pipeline
from nas.pipeline.front import make_front
from nas.pipeline.npu_memory import Footprints, Memory
from nas.plan import Layout, OpKey, Task, layout, params, plan
from nas.run.directory import Run
from nas.run.records import Pick, Picks
from nas.select import SELECTORS
from nas.select.ilp import solve
from nas.select.problem import Cost, Problem
from nas.space import Space

MISSING = not all(importlib.util.find_spec(package) for package in ("ethosu", "tflite", "ai_edge_litert"))
needs_vela = pytest.mark.skipif(MISSING, reason="needs the extra: pip install '.[npu]'")
TARGET = "ethos-u55-128"


class Fake:
    """A compiler in whose networks SRAM is the largest channel count times 1 KB, flash 2 bytes a parameter."""

    version = "5.2.fake"

    def __init__(self) -> None:
        self.compiled: list[object] = []

    def report(self, module: nn.Module, what: object, *, in_ch: int, size: int) -> Report:
        self.compiled.append(what)
        widest = max((part.out_channels for part in module.modules() if isinstance(part, nn.Conv2d)), default=1)
        return Report(1, (), 0, (), 1024 * widest, 2 * sum(p.numel() for p in module.parameters()))


def made(path: Path, tiny: Layout, sram_kb: float | None = None, flash_kb: float | None = None,
         ) -> tuple[Footprints, Fake]:
    fake = Fake()
    limits = Memory(sram_kb, flash_kb)
    return Footprints(Run(path), TARGET, fake, limits, tiny, Quiet()), fake


def bounded(tiny: Layout, fits: Footprints) -> Problem:
    """With milliseconds that are the MACs of nothing in particular."""
    generator = np.random.default_rng(0)
    ms = Cost(TARGET, "ms", 0.1, tuple(generator.uniform(0.1, 1.0, len(slot.ops)) for slot in tiny.slots))
    flash = (fits.flash_cost(tiny),) if fits.flash_limits() else ()
    return Problem(tiny, tuple(slot.ops for slot in tiny.slots), (ms, *flash), fits.admits)


def test_limits_are_of_1024_bytes_and_each_alone() -> None:
    need = Memory.from_report(Report(1, (), 0, (), 51200, 102401))
    assert (need.sram_kb, need.flash_kb) == (50, 102401 / 1024)
    assert Memory(50, None).admits(need) and not Memory(49.9, None).admits(need)
    assert Memory(None, 101).admits(need) and not Memory(50, 100).admits(need) and Memory().admits(need)
    assert str(Memory(50, 100.5)) == "sram_kb=50 flash_kb=100.5" and Memory().given == {}


def test_a_network_is_compiled_once_and_a_continued_run_does_not_compile_it_again(tiny: Layout, tmp_path: Path) -> None:
    arch = sampling.sample(tiny, random.Random(1))
    fits, fake = made(tmp_path, tiny, sram_kb=20)
    bytes_ = 2 * sum(params(key) for key in plan(tiny, arch))
    assert fits.need_of(arch) == fits.need_of(arch) and fits.need_of(arch).flash_kb == bytes_ / 1024
    assert fake.compiled == [arch.id]
    again, fake = made(tmp_path, tiny, flash_kb=20)
    assert again.need_of(arch) == fits.need_of(arch) and not fake.compiled
    fake.version = "5.2.another"
    other = Footprints(Run(tmp_path), TARGET, fake, Memory(1, 1), tiny, Quiet())
    assert other.need_of(arch) and fake.compiled == [arch.id]


def test_choices_over_the_limit_alone_are_left_out(tiny: Layout, tmp_path: Path) -> None:
    """Widths of the tiny space are 8, 16 and 24 in the first slots: an MBConv block of 24 has 24 channels at its
    widest, a Ghost module half of its hidden width."""
    fits, fake = made(tmp_path, tiny, sram_kb=16)
    kept = fits.without_too_large(tiny)
    for slot, left in zip(tiny.slots, kept.slots, strict=True):
        for op in slot.ops:
            key = slot.key(op)
            peak = 0 if key is None else fake.report(_alone(key), op, in_ch=1, size=1).sram_bytes
            assert (op in left.ops) == (peak <= 16 * 1024), op
    assert 0 < sum(len(s.ops) for s in kept.slots) < sum(len(s.ops) for s in tiny.slots)
    assert made(tmp_path, tiny, flash_kb=1)[0].without_too_large(tiny) is tiny
    with pytest.raises(UserError, match=r"^sram_kb=3: nothing in slot 2 fits on ethos-u55-128: its smallest choice "
                                        r"needs 16\.0 KB; raise it"):
        made(tmp_path, tiny, sram_kb=3)[0].without_too_large(tiny)  # slot 2 has a stride, and so no skip


def _alone(key: OpKey) -> nn.Module:
    return build(key.op, key.in_ch, key.out_ch, key.stride)


def test_flash_is_a_sum_that_is_never_too_low_for_what_it_was_fitted_on(tiny: Layout, tmp_path: Path) -> None:
    """Here flash is 2 bytes a parameter exactly: so is the sum, and nothing is added for the number of operators."""
    fits, _ = made(tmp_path, tiny, flash_kb=100)
    cost = fits.flash_cost(tiny)
    arch = sampling.sample(tiny, random.Random(5))
    pick = sampling.encode(tiny, arch)
    assert cost.of(pick) == pytest.approx(fits.need_of(arch).flash_kb)
    assert (cost.unit, fits.flash_limits()) == ("KB", {cost.name: 100})


@pytest.mark.parametrize("selector", SELECTORS)
def test_no_selector_judges_or_returns_what_does_not_fit(tiny: Layout, tmp_path: Path, selector: str) -> None:
    whole = [sampling.sample(tiny, random.Random(i)) for i in range(200)]
    free, _ = made(tmp_path, tiny)
    needs = [free.need_of(arch) for arch in whole]
    sram, flash = (float(np.median([getattr(n, key) for n in needs])) for key in ("sram_kb", "flash_kb"))
    fits, _ = made(tmp_path, tiny, sram_kb=sram - 0.5, flash_kb=flash)
    assert 0.05 < np.mean([fits.limits.admits(need) for need in needs]) < 0.5  # a limit that excludes something
    one, judged = bounded(tiny, fits), []

    def judge(archs: Any) -> list[float]:
        judged.extend(archs)
        return [-float(sum(map(params, plan(tiny, arch)))) for arch in archs]  # the more parameters the better

    low, high = fits.ms_range(one)
    limits = [{TARGET: bound, **fits.flash_limits()} for bound in (low, (low + high) / 2, high)]
    flat = tuple(np.zeros(len(ops)) for ops in one.allowed)
    ranked = SELECTORS[selector](one, limits, lambda limits: flat, judge, 24, random.Random(0))
    assert every(ranked) and len(judged) > 5
    assert every(fits.admits(arch) for arch in [*judged, *(arch for archs in ranked for arch in archs)])


def test_a_refused_answer_of_the_ilp_is_cut_off(tiny: Layout, tmp_path: Path) -> None:
    fits, _ = made(tmp_path, tiny)
    one = bounded(tiny, fits)
    scores = tuple(np.random.default_rng(1).uniform(size=len(ops)) for ops in one.allowed)
    first, second = solve(scores, one.costs, {}, k=2, overlap=1 - 1e-6)
    assert solve(scores, one.costs, {}, admits=lambda pick: list(pick) != first) == [second]
    asked: list[Any] = []
    assert solve(scores, one.costs, {}, admits=lambda pick: bool(asked.append(pick))) == [] and len(asked) == 40


def test_where_nothing_fits_one_line_has_the_smallest_need_seen(tiny: Layout, tmp_path: Path) -> None:
    fits, _ = made(tmp_path, tiny, sram_kb=3)
    with pytest.raises(UserError, match=r"^sram_kb=3: no network fits on ethos-u55-128; of \d+ compiled, the "
                                        r"smallest SRAM is \d+\.0 KB and the smallest flash \d+\.\d KB: raise it"):
        fits.ms_range(bounded(tiny, fits))
    fits, _ = made(tmp_path, tiny, flash_kb=1)
    with pytest.raises(UserError, match=r"^flash_kb=1 is below the smallest reachable \d+\.?\d* KB of flash"):
        fits.ms_range(bounded(tiny, fits))


def test_targets_that_vela_does_not_compile_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    with pytest.raises(UserError, match=r"^flash_kb: gpu-v100 is not compiled by Vela, so what a network needs"):
        pipeline.refuse_settings(config_of(tmp_path / "tiny.yaml", "flash_kb=100"))
    with pytest.raises(UserError, match=r"^sram_kb: cpu is not compiled by Vela"):
        pipeline.refuse_settings(config_of(tmp_path / "tiny.yaml", "sram_kb=100", target="cpu"))


def test_limits_are_settings_that_a_run_records(tmp_path: Path) -> None:
    recorded = config_of(tmp_path / "tiny.yaml").to_json()
    assert recorded["sram_kb"] is None and recorded["flash_kb"] is None
    with pytest.raises(UserError, match="sram_kb=0: input should be greater than or equal to 1"):
        config_of(tmp_path / "tiny.yaml", "sram_kb=0")
    limited = config_of(tmp_path / "tiny.yaml", "sram_kb=64")
    assert type(limited).from_json(limited.to_json(), "x") == limited and limited.to_json()["sram_kb"] == 64


def test_a_pick_that_its_training_made_too_large_is_named_and_not_in_the_front(
        capsys: pytest.CaptureFixture[str]) -> None:
    small, large = Arch("tiny", 16, (SKIP,)), Arch("tiny", 16, (SKIP, SKIP))
    cards = [card(arch.id, {TARGET: ms}, arch=arch, select_accuracy=accuracy, accuracy=accuracy, fits=fits,
                  sram_kb={TARGET: 64.0}, flash_kb={TARGET: 99.5})
             for arch, ms, accuracy, fits in ((small, 1.0, 0.8, True), (large, 2.0, 0.9, False))]
    picks = Picks(budgets=[Pick(budget_ms={TARGET: 2.0}, id=arch.id, arch=arch, ms={TARGET: 1.0})
                           for arch in (small, large)], rank_agreement={})
    place = SimpleNamespace(costs={TARGET: None}, layout=SimpleNamespace(space="tiny"), others={})
    front = make_front(place, cards, picks)
    assert [card.id for card in front.front] == [budget.id for budget in front.budgets] == [small.id]
    assert [card.id for card in front.too_large] == [large.id] and front.dominated == []
    render.front(front)
    out = capsys.readouterr().out
    assert (f"{large.id} is too large with its trained weights, and not in the front: SRAM 64 KB, flash 99.5 KB on "
            f"{TARGET}") in out
    assert "SRAM KB" in out and "flash KB" in out


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """In a folder with a table of the tiny space."""
    if MISSING:
        pytest.skip("needs the extra: pip install '.[npu]'")
    home = tmp_path_factory.mktemp("npu")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        (home / "tiny.yaml").write_text(yaml.safe_dump(TINY))
        profile(layout(Space.load("tiny.yaml"), Task(16, 3, 10)), LOCAL / f"{TARGET}.json", device=TARGET)
        yield home


@pytest.fixture(scope="module")
def finished(elsewhere: Path) -> tuple[Path, dict[str, Any]]:
    config = config_of(Path("tiny.yaml"), "sram_kb=16", "flash_kb=13", target=TARGET)
    return elsewhere / "run", searched(config, Path("run"))


@needs_vela
def test_every_pick_of_a_search_is_within_its_limits(finished: tuple[Path, dict[str, Any]]) -> None:
    path, result = finished
    events = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    compiled = {e["what"]: e for e in events if e["event"] == "compiled"}
    judged = {e["id"] for e in events if e["event"] == "judged"}
    assert any(e["sram_bytes"] > 16 * 1024 for e in compiled.values())  # the limits exclude something,
    assert any(e["flash_bytes"] > 13 * 1024 for e in compiled.values())
    assert judged and every(compiled[id_]["sram_bytes"] <= 16 * 1024 and compiled[id_]["flash_bytes"] <= 13 * 1024
                          for id_ in judged)  # and that is never judged
    cards = [*result["front"], *result["dominated"]]
    assert cards and every(card["fits"] and card["sram_kb"][TARGET] <= 16 and card["flash_kb"][TARGET] <= 13
                         for card in cards)
    assert every(card["sram_kb"][TARGET] == pytest.approx(compiled[card["id"]]["sram_bytes"] / 1024, rel=0.03) and
               card["flash_kb"][TARGET] == pytest.approx(compiled[card["id"]]["flash_bytes"] / 1024, rel=0.05)
               for card in cards)
    assert len(compiled) == sum(e["event"] == "compiled" for e in events)


@needs_vela
def test_the_same_search_again_compiles_nothing(finished: tuple[Path, dict[str, Any]],
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    path, result = finished
    (path / "picks.json").unlink()
    (path / "front.json").unlink()
    monkeypatch.setattr(vela.Vela, "compile", lambda *args: pytest.fail("compiled again"))
    config = config_of(Path("tiny.yaml"), "sram_kb=16", "flash_kb=13", target=TARGET)
    assert searched(config, Path("run")) == result


@needs_vela
def test_a_selection_keeps_the_limits_of_its_run_or_takes_tighter_ones(finished: tuple[Path, dict[str, Any]]) -> None:
    run = Run.existing(finished[0])
    largest = max(card["flash_kb"][TARGET] for card in finished[1]["front"])
    result = selected(run, [TARGET], [], Quiet(), memory=Memory(flash_kb=0.9 * largest))
    cards = [*result["front"], *result["dominated"]]
    assert every(card["sram_kb"][TARGET] <= 16 and card["flash_kb"][TARGET] <= 0.9 * largest for card in cards)
    with pytest.raises(UserError, match=r"^flash_kb=2 is below the smallest reachable"):
        selected(run, [TARGET], [], Quiet(), memory=Memory(flash_kb=2))
    with pytest.raises(UserError, match=r"^sram_kb: gpu-v100 is not compiled by Vela"):
        selected(run, ["gpu-v100"], [], Quiet(), memory=Memory(64))


@needs_vela
def test_trained_weights_are_compiled_for_the_card(finished: tuple[Path, dict[str, Any]], tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    run, card = Run.existing(finished[0]), finished[1]["front"][0]
    (file,) = pipeline.export(run, card["id"], None, tmp_path, Quiet(), "tflite").to_json()["files"]
    report = EthosU(TARGET).compile(Path(file["tflite"]).read_bytes(), "the exported file")
    assert (report.sram_bytes / 1024, report.flash_bytes / 1024) == (
        card["sram_kb"][TARGET], card["flash_kb"][TARGET])


def test_without_vela_a_search_without_limits_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(conditions: Conditions) -> None:
        raise UserError("pip install '.[npu]'")

    monkeypatch.setattr(deliver, "compiler_of_table", missing)
    costs = {TARGET: SimpleNamespace(meta=Conditions(device=TARGET))}
    place = SimpleNamespace(costs=costs, footprints={})
    unknown = {"sram_kb": {TARGET: None}, "flash_kb": {TARGET: None}}
    assert deliver._npu_memory(place, nn.Identity()) == unknown
    place.footprints = {TARGET: None}
    with pytest.raises(UserError, match="pip install"):
        deliver._npu_memory(place, nn.Identity())
    monkeypatch.setattr(setup, "compiler_of_table", missing)
    with pytest.raises(UserError, match="pip install"):
        setup.npu_of(TARGET, costs[TARGET], Memory(64))
