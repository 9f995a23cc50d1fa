"""A tiny network of three exits (two on the way and the head) at 16 pixels and 4 classes."""

from dataclasses import replace

import torch
from batch_norms import scrambled

from nas import sampling
from nas.arch import Arch
from nas.plan import Layout, Task, layout
from nas.space import Space
from nas.subnet import Subnet, build

THREE = {
    "name": "three",
    "stem": {"op": "stem(kernel=3, act=relu)", "out": 8, "stride": 1},
    "stages": [{"out": 8, "depth": 1, "stride": 1}, {"out": 12, "depth": 2, "stride": 2},
               {"out": 16, "depth": 1, "stride": 2}],
    "ops": {"ghost": {"cheap": [3], "kernel": [3], "se": [1], "hidden": {"min": 2, "max": 2, "step": 8}}},
    "head": {"op": "head(hidden=16, features=24, dropout_percent=20)"},
    "exit": {"op": "exit_head(hidden=8)"},
}


def three() -> tuple[Layout, Arch]:
    at = layout(Space.parse(THREE), Task(16, 3, 4), exits=True)
    return at, replace(sampling.decode(at, [0] * len(at.slots)), exits=tuple(exit_.slot for exit_ in at.exits))


def network(seed: int = 0) -> Subnet:
    """With batch norms that are no identity, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return scrambled(build(*three()))


def images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


