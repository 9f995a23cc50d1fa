"""What targets are counted in, where it is said."""

import pytest

from nas import plan, units
from nas.latency import costs
from nas.latency.counts import Count
from nas.plan import Layout, OpKey, candidates


@pytest.mark.parametrize("name", units.COUNTS)
def test_a_count_prices_any_operator_in_millions(name: str, tiny: Layout) -> None:
    target, keys = costs.load(name), candidates(tiny)
    assert isinstance(target, Count) and keys
    assert target.ms_many(keys) == [getattr(plan, name)(key) / 1e6 for key in keys]
    (listed,) = [target for target in costs.targets() if target.name == name]
    assert listed.unit == units.unit(name) and listed.device == "any"


def test_multiply_adds_and_parameters_of_a_convolution_by_hand(tiny: Layout) -> None:
    """A 3x3 convolution of 3 to 8 channels at 16x16 with folded batch norm: 8 * 3 * 9 * 256 and 8 * 3 * 9 + 8."""
    key: OpKey = tiny.stem
    assert (key.in_ch, key.out_ch, key.size, key.stride) == (3, 8, 16, 1)
    assert costs.load("macs").ms(key) == 8 * 3 * 9 * 256 / 1e6
    assert costs.load("params").ms(key) in (8 * 3 * 9 / 1e6, (8 * 3 * 9 + 8) / 1e6, (8 * 3 * 9 + 16) / 1e6)


def test_units_stand_where_milliseconds_stand() -> None:
    assert [units.unit(name) for name in ("cpu", "macs", "params", "/a/t.json")] == [
        "ms", "M multiply-adds", "M parameters", "ms"]
    assert [units.amount(0.5, name) for name in ("cpu", "macs")] == ["0.5 ms on cpu", "0.5 M multiply-adds"]
    assert [units.axis(name) for name in ("/a/t.json", "params")] == ["predicted latency on t (ms)", "parameters (M)"]
    assert [units.axis(name, "budget") for name in ("cpu", "macs")] == ["budget on cpu (ms)",
                                                                        "budget: multiply-adds (M)"]
    assert [units.column("predicted", name, True) for name in ("cpu", "macs")] == ["predicted ms cpu",
                                                                                   "M multiply-adds"]
    assert units.column("measured", "cpu", False) == "measured ms"


def test_an_unknown_target_lists_the_counts() -> None:
    with pytest.raises(costs.UserError, match="did you mean 'macs'"):
        costs.load("mac")
