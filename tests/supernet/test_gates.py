"""The expected latency equals the budget at every step; gradients move along the constraint; two paths at most."""

import math

import pytest
import torch
from every import every

from nas.arch import SKIP
from nas.decision import Prices, as_float, expected_ms, largest, one_hot, prices, smallest
from nas.plan import Layout, OpKey, enumerated, macs, plan
from nas.supernet.gates import Gates, all_branches, draw, gumbel, two_path
from nas.supernet.prune import GRID, Pruner, survivors
from nas.supernet.width import bracket, closing_gap, interpolate, share


def by_macs(keys: list[OpKey]) -> list[float]:
    return [0.01 + macs(key) * 1e-6 for key in keys]


@pytest.fixture
def priced(tiny: Layout) -> Prices:
    return prices(tiny, by_macs)


def ends(layout: Layout, priced: Prices) -> tuple[float, float]:
    low, high = (priced.fixed + sum(end(row.values()) for row in priced.ms) for end in (min, max))
    return low, high


def shaken(gates: Gates, seed: int = 0) -> Gates:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in gates.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return gates


def test_prices_of_a_network_are_the_sum_over_its_plan(tiny: Layout, priced: Prices) -> None:
    arch = largest(tiny, priced)
    assert expected_ms(tiny, one_hot(arch), priced) == pytest.approx(sum(by_macs(plan(tiny, arch))), rel=1e-12)


@pytest.mark.parametrize("s", [-1.0, -0.5, 0.0, 0.37, 1.0])
@pytest.mark.parametrize("gap", [0.0, 0.5])
def test_expected_latency_is_the_budget(tiny: Layout, priced: Prices, s: float, gap: float) -> None:
    low, high = ends(tiny, priced)
    for seed in range(3):
        gates = shaken(Gates(tiny, [priced], [(low * 1.02, high * 0.98)]), seed)
        soft = gates.at(s, 0, gap)
        assert soft.budget_ms == pytest.approx(low * 1.02 * (high * 0.98 / (low * 1.02)) ** ((s + 1) / 2))
        assert soft.expected_ms == pytest.approx(soft.budget_ms, rel=1e-6)
        assert as_float(expected_ms(tiny, all_branches(gates, soft), priced)) == pytest.approx(soft.budget_ms, rel=1e-5)


def test_enumerated_widths_are_branches_that_begin_as_the_pair_does(tiny: Layout, priced: Prices) -> None:
    """Slot 1 has 3 branches of 3 widths and ``skip``: each branch 1/4, so each width 1/12 (others have up to 16)."""
    low, high = ends(tiny, priced)
    each = enumerated(tiny)
    assert [slot.ops for slot in each.slots] == [slot.ops for slot in tiny.slots]
    assert [len(slot.branches) for slot in each.slots] == [len(slot.ops) for slot in tiny.slots]
    gates = Gates(each, [priced], [(low * 1.05, high * 0.9)])
    p = torch.softmax(gates.prior(0.0)[0], -1)[1]
    assert p.tolist() == pytest.approx([1 / 12] * 9 + [1 / 4] + [0] * 6)
    assert list(gates.log_scores(0.0)[1].values()) == pytest.approx([-math.log(4)] * 10)
    for seed, s in enumerate((-1.0, 0.2, 1.0)):
        soft = shaken(gates, seed).at(s, 0, 0.5)
        assert soft.expected_ms == pytest.approx(soft.budget_ms, rel=1e-6)
        assert as_float(expected_ms(tiny, all_branches(gates, soft), priced)) == pytest.approx(soft.budget_ms, rel=1e-5)
        choices = two_path(gates, soft, 1.0, torch.Generator().manual_seed(seed)).slots
        assert every(len(slot) == 2 and slot[0] != slot[1] for slot in choices)


def test_pruning_an_enumerated_width_names_it(tiny: Layout, priced: Prices) -> None:
    low, high = ends(tiny, priced)
    gates = Gates(enumerated(tiny), [priced], [(low * 1.05, high * 0.9)])
    with torch.no_grad():
        gates.theta[0, 2, 1] = -20.0
    dropped = Pruner(grid=GRID).check(gates, progress=1.0)
    lost = tiny.slots[2].branches[0].ops[1]
    assert str(lost) in [drop.op for drop in dropped if drop.slot == 2] and "hidden=" in str(lost)
    assert lost not in survivors(gates, GRID)[2] and tiny.slots[2].branches[0].ops[0] in survivors(gates, GRID)[2]


def test_saturated_gates_are_undone(tiny: Layout, priced: Prices) -> None:
    low, high = ends(tiny, priced)
    gates = Gates(tiny, [priced], [(low * 1.02, high)])
    with torch.no_grad():
        gates.theta[0, :, 0] = 60.0
    assert gates.at(-1.0).expected_ms == pytest.approx(low * 1.02, rel=1e-4)


def test_the_constraint_has_no_gradient_of_its_own(tiny: Layout, priced: Prices) -> None:
    low, high = ends(tiny, priced)
    gates = shaken(Gates(tiny, [priced], [(low, high)]))
    total = expected_ms(tiny, all_branches(gates, gates.at(0.1, 0, 0.5)), priced)
    assert isinstance(total, torch.Tensor)
    for gradient in torch.autograd.grad(total, [gates.theta, gates.phi, gates.c0]):
        assert float(gradient.abs().max()) < 1e-6 * (high - low)


def test_what_lowers_the_loss_changes_the_gates_along_the_budget(tiny: Layout, priced: Prices) -> None:
    low, high = ends(tiny, priced)
    gates = Gates(tiny, [priced], [(low, high)])
    optimizer = torch.optim.Adam(gates.parameters(), lr=0.1)
    before = float(gates.at(0.0).p[0, 0])
    for _ in range(30):
        optimizer.zero_grad()
        (-gates.at(0.0).p[0, 0]).backward()
        optimizer.step()
    soft = gates.at(0.0)
    assert float(soft.p[0, 0]) > before + 0.2
    assert soft.expected_ms == pytest.approx(soft.budget_ms, rel=1e-6)


def test_two_path_runs_at_most_two_and_their_weights_add_to_one(tiny: Layout, priced: Prices) -> None:
    gates = shaken(Gates(tiny, [priced], [ends(tiny, priced)]))
    generator = torch.Generator().manual_seed(0)
    kinds = set()
    for _ in range(20):
        for choices in two_path(gates, gates.at(0.2, 0, 0.5), 1.0, generator).slots:
            assert 1 <= len(choices) <= 2
            assert sum(float(c.weight) for c in choices) == pytest.approx(1.0, abs=1e-5)
            kinds.add((len(choices), len({c.branch for c in choices})))
    assert {(2, 1), (2, 2)} <= kinds  # widths of one branch, and two branches


def test_gumbel_runs_every_live_branch_and_draw_one(tiny: Layout, priced: Prices) -> None:
    gates = Gates(tiny, [priced], [ends(tiny, priced)])
    soft, generator = gates.at(0.0, 0, 0.5), torch.Generator().manual_seed(0)
    for slot, choices in zip(tiny.slots, gumbel(gates, soft, 1.0, generator).slots, strict=True):
        assert {c.branch for c in choices} == {b.op for b in slot.branches}
    assert every(len(choices) == 1 for choices in draw(gates, soft, generator).slots)


def test_pairs_of_widths() -> None:
    count = torch.tensor([[9, 1]])
    position = torch.tensor([[3.25, 0.0]], dtype=torch.float64)
    low, high = bracket(position, count, 0.5)  # gap 4 of 8 steps: 1.25 .. 5.25
    assert (low.tolist(), high.tolist()) == ([[1, 0]], [[5, 0]])
    assert share(position, low, high).tolist() == [[pytest.approx(0.5625), 0.0]]  # 1 + 0.5625 * 4 = 3.25
    assert [x.tolist() for x in bracket(position, count, 0.0)] == [[[3, 0]], [[4, 0]]]
    ms = torch.tensor([[[float(i * i) for i in range(9)], [7.0] * 9]], dtype=torch.float64)
    assert interpolate(ms, position).tolist() == [[pytest.approx(9 + 0.25 * 7), 7.0]]
    assert closing_gap(0.0) == 0.5 and closing_gap(0.35) == pytest.approx(0.25) and closing_gap(0.9) == 0.0


def test_log_scores_cover_the_live_operators(tiny: Layout, priced: Prices) -> None:
    gates = Gates(tiny, [priced], [ends(tiny, priced)])
    scores = gates.log_scores(0.0)
    branches = len(tiny.slots[0].branches)
    assert set(scores[0]) == set(tiny.slots[0].ops)
    assert scores[0][SKIP] == pytest.approx(-math.log(branches))
    middle = tiny.slots[0].branches[0].ops[1]  # 3 widths, centre 0.5: the middle one is not away from it
    assert scores[0][middle] == pytest.approx(-math.log(branches))
    gates.drop(0, 0)
    assert middle not in gates.log_scores(0.0)[0]


def test_pruning_drops_losers_with_evidence_and_never_the_cheapest(tiny: Layout, priced: Prices) -> None:
    low, high = ends(tiny, priced)
    gates = Gates(tiny, [priced], [(low * 1.05, high * 0.9)])
    with torch.no_grad():
        gates.theta[0, 2, 1] = -20.0  # loses at every budget
    pruner = Pruner(grid=GRID)
    dropped = pruner.check(gates, progress=1.0)
    drop = next(drop for drop in dropped if drop.slot == 2 and drop.op == str(tiny.slots[2].branches[1].op))
    assert drop.kind == "block" and len(drop.probabilities) == 1 and len(drop.probabilities[0]) == len(GRID)
    assert max(drop.probabilities[0]) == drop.most < drop.threshold
    assert gates.live.any(-1).all()
    cheapest = {str(op) for op in smallest(tiny, priced).ops}
    assert every(drop.op not in cheapest for drop in dropped)


def test_a_layer_goes_only_after_skip_won_everywhere_twice(tiny: Layout, priced: Prices) -> None:
    low, _ = ends(tiny, priced)
    gates = Gates(tiny, [priced], [(low * 1.01, low * 1.3)])
    skip = [b.op for b in tiny.slots[1].branches].index(SKIP)
    with torch.no_grad():
        gates.theta[0, 1, skip] = 30.0
    pruner = Pruner(grid=(-1.0, 1.0), share=0.0)
    assert not any(drop.kind == "layer" for drop in pruner.check(gates, 0.1))
    dropped = [drop for drop in pruner.check(gates, 0.2) if drop.slot == 1]
    assert {drop.kind for drop in dropped} == {"layer"} and int(gates.live[1].sum()) == 1


@pytest.mark.parametrize(("kinds", "gone"), [({"layers": False}, {"block"}), ({"blocks": False}, {"layer"})])
def test_either_kind_can_be_left_out(tiny: Layout, priced: Prices, kinds: dict[str, bool], gone: set[str]) -> None:
    low, _ = ends(tiny, priced)
    gates = Gates(tiny, [priced], [(low * 1.01, low * 1.3)])
    with torch.no_grad():
        gates.theta[0, 1, [b.op for b in tiny.slots[1].branches].index(SKIP)] = 30.0
        gates.theta[0, 2, 1] = -30.0
    pruner = Pruner(grid=(-1.0, 1.0), **kinds)
    assert {drop.kind for _ in range(2) for drop in pruner.check(gates, 1.0)} == gone


def test_survivors_keep_the_smallest_latency_reachable(tiny: Layout, priced: Prices) -> None:
    gates = shaken(Gates(tiny, [priced], [ends(tiny, priced)]))
    Pruner(grid=GRID).check(gates, 1.0)
    kept = survivors(gates, GRID)
    for slot, ops in zip(tiny.slots, kept, strict=True):
        assert ops and set(ops) <= set(slot.ops)
        assert min(priced.ms[slot.index][op] for op in ops) == min(priced.ms[slot.index].values())


def test_the_cheapest_is_kept_where_a_wider_branch_is_cheaper(tiny: Layout, priced: Prices) -> None:
    branch = tiny.slots[2].branches[0]
    saw = tuple(dict(row) for row in priced.ms)
    saw[2][branch.ops[2]] = 1e-4  # the widest costs least
    toothed = Prices(priced.fixed, saw)
    low, high = (toothed.fixed + sum(end(row.values()) for row in saw) for end in (min, max))
    gates = shaken(Gates(tiny, [toothed], [(low * 1.05, high * 0.9)]))
    Pruner(grid=GRID).check(gates, 1.0)
    assert branch.ops[2] in survivors(gates, GRID)[2]


def disliking_the_cheapest(layout: Layout, every: list[Prices]) -> Gates:
    """Gates at whose budgets nobody needs the cheapest operators, neither their branches nor their widths."""
    ranges = [(0.75 * high, 0.95 * high) for _, high in (ends(layout, priced) for priced in every)]
    gates = Gates(layout, every, ranges)
    with torch.no_grad():
        gates.c0[0] = 1.0  # the widest
        for slot in layout.slots:
            for priced in every:
                row = priced.ms[slot.index]
                cheapest = min(range(len(slot.branches)), key=lambda b: min(row[op] for op in slot.branches[b].ops))
                gates.theta[0, slot.index, cheapest] = -8.0
    return gates


def turned_over(priced: Prices) -> Prices:
    """Another target, on which what is dear on the first is cheap."""
    rows = [{op: max(row.values()) + min(row.values()) - ms for op, ms in row.items()} for row in priced.ms]
    return Prices(priced.fixed, tuple(rows))


@pytest.mark.parametrize("targets", [1, 2])
def test_what_no_budget_of_the_grid_asks_for_stays_where_it_is_the_cheapest(tiny: Layout, priced: Prices,
                                                                            targets: int) -> None:
    """Of all live branches the pruner drops losers, and of all widths survivors leave few; the cheapest stay."""
    every = [priced, turned_over(priced)][:targets]
    gates = disliking_the_cheapest(tiny, every)
    before = int(gates.live.sum())
    with torch.no_grad():
        probabilities = torch.stack([gates.at(s, t).p for t in range(targets) for s in GRID])
    pruner = Pruner(grid=GRID)
    for _ in range(3):
        pruner.check(gates, 1.0)
    kept = survivors(gates, GRID)
    lost = 0
    for slot, ops in zip(tiny.slots, kept, strict=True):
        for prices_of in every:
            row = prices_of.ms[slot.index]
            least = min(row.values())
            assert min(row[op] for op in ops) == least
            branch = next(b for b, one in enumerate(slot.branches) if any(row[op] == least for op in one.ops))
            lost += float(probabilities[:, slot.index, branch].max()) < pruner.share / len(slot.branches)
    assert lost  # it would have been dropped, if it were not the cheapest
    assert targets == 2 or int(gates.live.sum()) < before or sum(map(len, kept)) < sum(len(s.ops) for s in tiny.slots)
