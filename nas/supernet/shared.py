"""A slot of the supernet: every branch owns one module at its largest hidden width; narrower ones are slices of it."""

from __future__ import annotations

from torch import Tensor, nn

from nas.arch import SKIP, Op
from nas.decision import Choice
from nas.ops import Block, build, sliced
from nas.plan import Slot


class SharedSlot(nn.Module):
    """[N, in_ch, S, S] -> [N, out_ch, S / stride, S / stride], as the weighted sum of the choices that run."""

    def __init__(self, slot: Slot) -> None:
        super().__init__()
        wide = {b.op: build(b.ops[-1], slot.in_ch, slot.out_ch, slot.stride) for b in slot.branches if b.op != SKIP}
        self.names = {op: f"b{i}" for i, op in enumerate(wide)}
        self.branches = nn.ModuleDict({self.names[op]: module for op, module in wide.items()})

    def branch(self, op: Op) -> Block:
        """The shared module of a branch; raises LookupError if it was pruned or never there."""
        if op not in self.names:
            raise LookupError(f"the supernet has no {op} here")
        module = self.branches[self.names[op]]
        assert isinstance(module, Block)
        return module

    def drop(self, op: Op) -> None:
        """Frees a branch's weights. The names of the others stay as they are."""
        if op != SKIP:
            del self.branches[self.names.pop(op)]

    def forward(self, x: Tensor, choices: tuple[Choice, ...]) -> Tensor:
        outputs = [self._weighted(x, choice) for choice in choices]
        return outputs[0] if len(outputs) == 1 else sum(outputs[1:], outputs[0])

    def _weighted(self, x: Tensor, choice: Choice) -> Tensor:
        y = x if choice.branch == SKIP else sliced(self.branch(choice.branch), choice.hidden, x)
        return y if isinstance(choice.weight, float) and choice.weight == 1.0 else y * choice.weight
