"""Terms of the gate step by hand, the dual's ascent, and gates that are not projected."""

import math

import pytest
import torch
from every import every

from nas.config.gates import Gates as Settings
from nas.decision import Prices, as_float, expected_ms, prices
from nas.plan import Layout, OpKey, macs
from nas.supernet.gates import Gates, Soft, all_branches
from nas.supernet.latency_terms import LIMIT, Dual, Term, term_of
from nas.supernet.width import Pair

NONE = torch.zeros(0)


def soft(ms: float, budget_ms: float, s: float = 0.0, target: int = 0) -> Soft:
    expected = torch.tensor(ms, dtype=torch.float64, requires_grad=True)
    return Soft(s, target, NONE, Pair(NONE, NONE, NONE), 0.0, budget_ms, expected)


def term(name: str, **changed: object) -> Term:
    settings = Settings.model_validate({"latency": name, **({name: changed} if changed else {})})
    return term_of(settings.term, 2)


@pytest.mark.parametrize(("built", "ms", "value", "slope"), [
    (term("projection"), 3.0, 2.0, 0.0),
    (term("dual"), 3.0, 2 + 0.5 * 0.5**2, 0.5 / 2),  # l = 0, g = 1/2: rho g / T
    (term("dual", rho=0.0), 3.0, 2.0, 0.0),
    (term("fbnet"), 0.1, 2 * 0.2 * math.log(100) ** 0.6, 2 * 0.2 * 0.6 * math.log(100) ** -0.4 / 0.1),
    (term("proxyless"), 3.0, 2 + 0.1 * 0.5, 0.1 / 2),
    (term("proxyless", form="mul"), 3.0, 2 * 0.2 * (math.log(3000) / math.log(2000)) ** 0.3,
     2 * 0.2 * 0.3 * math.log(3000) ** -0.7 / math.log(2000) ** 0.3 / 3),
    (term("mnas"), 3.0, 2 * 1.5**0.07, 2 * 0.07 * 1.5**-0.93 / 2),
    (term("mnas", alpha=0.0, beta=-1.0), 3.0, 2 * 1.5, 2 / 2),  # the paper's hard reward: 0 within, -1 above
    (term("mnas", alpha=0.0, beta=-1.0), 1.0, 2.0, 0.0),
])
def test_terms_by_hand(built: Term, ms: float, value: float, slope: float) -> None:
    """Loss 2, budget 2 ms: the value, and its derivative by the expected milliseconds."""
    at, loss = soft(ms, 2.0), torch.tensor(2.0, requires_grad=True)
    total = built(loss, at)
    assert total.item() == pytest.approx(value, rel=1e-6)
    by_loss, by_ms = torch.autograd.grad(total, [loss, at.ms], allow_unused=True)
    assert float(by_loss) > 0
    assert (0.0 if by_ms is None else float(by_ms)) == pytest.approx(slope, rel=1e-6)


def test_below_two_microseconds_logarithms_stay_finite() -> None:
    for built in (term("fbnet"), term("proxyless", form="mul")):
        at = soft(1e-4, 1e-4)
        total = built(torch.tensor(1.0), at)
        assert math.isfinite(total) and math.isfinite(torch.autograd.grad(total, at.ms)[0])


def test_the_dual_climbs_while_the_budget_is_missed() -> None:
    dual = term("dual", lr=0.1, rho=0.0)
    assert isinstance(dual, Dual)
    dual.learn(soft(3.0, 2.0, s=0.25, target=1))  # g = 1/2, halfway between the third and the fourth bin
    assert dual.multiplier.tolist() == [[0.0] * 5, [0, 0, pytest.approx(0.025), pytest.approx(0.025), 0]]
    dual.learn(soft(1.0, 2.0, s=-1.0, target=1))  # a budget that is not used up: the multiplier is negative
    assert float(dual.multiplier[1, 0]) == pytest.approx(-0.05)
    # at s = 0.125 a quarter of the fourth bin and three of the third: both 0.025; g = 1
    assert float(dual(torch.tensor(0.0), soft(4.0, 2.0, s=0.125, target=1))) == pytest.approx(0.025)
    for _ in range(200):
        dual.learn(soft(4.0, 2.0, s=1.0))
    assert float(dual.multiplier[0, 4]) == LIMIT


@pytest.fixture
def priced(tiny: Layout) -> Prices:
    def by_macs(keys: list[OpKey]) -> list[float]:
        return [0.01 + macs(key) * 1e-6 for key in keys]

    return prices(tiny, by_macs)


def ranges(priced: Prices) -> list[tuple[float, float]]:
    low, high = (priced.fixed + sum(end(row.values()) for row in priced.ms) for end in (min, max))
    return [(low * 1.05, high * 0.9)]


def test_unprojected_gates_are_the_plain_softmax(tiny: Layout, priced: Prices) -> None:
    gates = Gates(tiny, [priced], ranges(priced), projected=False)
    with torch.no_grad():
        gates.theta.normal_(generator=torch.Generator().manual_seed(0))
        gates.phi.normal_(generator=torch.Generator().manual_seed(1))
    for s in (-1.0, 0.3):
        at = gates.at(s, 0, 0.5)
        assert torch.equal(at.p, torch.softmax(gates.prior(s)[0], -1)) and at.beta == 0.0
        assert (at.s, at.target, at.budget_ms) == (s, 0, gates.budget(s))
        assert at.expected_ms == pytest.approx(as_float(expected_ms(tiny, all_branches(gates, at), priced)), rel=1e-5)
        for gradient in torch.autograd.grad(at.ms, [gates.theta, gates.c0]):
            assert float(gradient.abs().max()) > 1e-3 * at.expected_ms  # projected ones have none


@pytest.mark.parametrize("name", ["dual", "proxyless"])
def test_gates_move_towards_their_budget(tiny: Layout, priced: Prices, name: str) -> None:
    """With no loss but the term: ``dual`` meets the budget, ``proxyless`` falls below it, for good."""
    built = term(name)
    gates = Gates(tiny, [priced], ranges(priced), built.projected)
    optimizer = torch.optim.Adam(gates.parameters(), lr=0.05, betas=(0.9, 0.99))
    for _ in range(150):
        for s in (-0.6, 0.6):
            at = gates.at(s)
            optimizer.zero_grad()
            built(torch.tensor(1.0), at).backward()
            optimizer.step()
            built.learn(at)
    shares = [gates.at(s).expected_ms / gates.budget(s) for s in (-0.6, 0.6)]
    assert every(abs(share - 1) < 0.05 for share in shares) if name == "dual" else shares[1] < 0.8
