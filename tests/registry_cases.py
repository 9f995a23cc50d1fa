"""Every registered operator with every switch it has, for tests of the int8 formats; which spaces are on which NPU."""

import pytest
import torch
from batch_norms import scrambled

from nas.arch import Op
from nas.errors import UserError
from nas.ops import build, families
from nas.ops.registry import Block, knobs_of

SHAPES = [(8, 8, 1), (8, 16, 2), (8, 13, 2)]
KNOBS = {"hidden": 16, "depth": 4}
SWITCHES: list[dict[str, int | str]] = [
    {}, {"se": 1}, {"act": "hswish"}, {"act": "silu"}, {"act": "relu6"}, {"cheap": 5}, {"kernel": 5}, {"groups": 2},
    {"group_width": 4}, {"ratio": 4}, {"mix": 0}, {"hidden": 26}, {"features": 24}]
CASES = [(name, switch) for name in families() if name != "skip" for switch in SWITCHES
         if set(switch) <= set(knobs_of(name))]


def built(name: str, switch: dict[str, int | str], shape: tuple[int, int, int]) -> Block:
    """With random weights and batch norms that are no identity; ``shape``: input and output channels, stride."""
    needed = {knob: KNOBS.get(knob, 1) for knob, must in knobs_of(name).items() if must}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            return scrambled(build(Op.of(name, **{**needed, **switch}), *shape))
        except UserError as error:  # groups of channels that cannot be parted so
            pytest.skip(str(error))
