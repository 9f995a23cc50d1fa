"""A plain network from an arch: no search code inside. What is fine-tuned, exported and deployed."""

from __future__ import annotations

from torch import Tensor, nn

from nas.arch import Arch
from nas.ops import build as build_op
from nas.plan import Layout, OpKey, plan


class Subnet(nn.Module):
    """``stem``, ``blocks``, ``head``: [N, in_ch, S, S] -> [N, classes] logits."""

    def __init__(self, keys: list[OpKey]) -> None:
        super().__init__()
        modules = [build_op(key.op, key.in_ch, key.out_ch, key.stride) for key in keys]
        self.keys = keys
        self.stem, self.head = modules[0], modules[-1]
        self.blocks = nn.ModuleList(modules[1:-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)[-1])

    def features(self, x: Tensor) -> list[Tensor]:
        """The last map of each resolution, finest first (the head reads the last)."""
        maps = [self.stem(x)]
        for block in self.blocks:
            y = block(maps[-1])
            if y.shape[-1] == maps[-1].shape[-1]:
                maps[-1] = y
            else:
                maps.append(y)
        return maps


def build(layout: Layout, arch: Arch) -> Subnet:
    """A freshly initialised network. Raises UserError if the arch is not of this layout."""
    return Subnet(plan(layout, arch))
