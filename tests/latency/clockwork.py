"""Devices whose times are known."""

from typing import Any

from torch import nn

from nas.latency.meta import Conditions
from nas.ops.layers import ConvBN
from nas.ops.registry import Block
from nas.subnet import Subnet

CALL_MS = 0.5


def known_ms(block: Block) -> float:
    """Stem and head 1 ms; the others 0.1 ms, 0.01 ms a hidden channel and 0.05 ms for attention."""
    if type(block).__name__ in ("Stem", "Head"):
        return 1.0
    return 0.1 + 0.01 * block.max_hidden + (0.05 if getattr(block, "se", None) is not None else 0)


class Clockwork:
    """A call costs 0.5 ms, a 1x1 convolution around an operator 0.02 ms a channel, an operator ``known_ms``."""

    name = "clockwork"
    align = 32
    fresh = False

    def __init__(self, processor: str = "gears", stop_after: int | None = None, slack: float = 0.0,
                 slower: float = 1.0) -> None:
        self.processor, self.stop_after, self.slack, self.slower = processor, stop_after, slack, slower
        self.measured: list[Block] = []
        self.has_yardstick = False  # the first that is prepared

    def prepare(self, module: nn.Module, *, in_ch: int, size: int) -> Any:
        if isinstance(module, Subnet):
            parts: list[nn.Module] = [module.stem, *module.blocks, module.head]
        else:
            parts = list(module) if isinstance(module, nn.Sequential) else [module]
            self.measured += [part for part in parts if isinstance(part, Block)] if self.has_yardstick else []
        self.has_yardstick = True
        if self.stop_after is not None and len(self.measured) > self.stop_after:
            raise KeyboardInterrupt
        ms = CALL_MS + sum(known_ms(p) - self.slack if isinstance(p, Block) else 0.02 * p.conv.in_channels
                           for p in parts if isinstance(p, Block | ConvBN))
        return lambda: ms * self.slower

    def conditions(self) -> Conditions:
        return Conditions(device="clockwork", processor=self.processor, runtime="spring", runtime_version="1",
                          precision="fp32", threads=1, batch=1)
