"""Defines a slot of the supernet: branches of one operator share one module, built at the largest value of each knob.

A narrower hidden width is a slice of the channels, a smaller kernel the centre of the larger one (Once-for-All, arXiv
1908.09791), no squeeze-excite leaves it out. Values of knobs that are not elastic have modules of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nas.arch import SKIP, Op
from nas.decision import Choice
from nas.ops import Block, Narrow, build, family
from nas.plan import Branch, Slot


class SharedSlot(nn.Module):
    """Sums the weighted outputs of the choices that run: [N, in_ch, S, S] -> [N, out_ch, S / stride, S / stride]."""

    def __init__(self, slot: Slot) -> None:
        super().__init__()
        groups: dict[Op, list[Branch]] = {}
        for branch in slot.branches:
            if branch.op != SKIP:
                groups.setdefault(_rigid(branch.op), []).append(branch)
        shape = (slot.in_ch, slot.out_ch, slot.stride)
        named = {f"m{i}": group for i, group in enumerate(groups.values())}
        self.modules_of = {branch.op: name for name, group in named.items() for branch in group}
        self.shared = nn.ModuleDict({name: build(_largest(group), *shape) for name, group in named.items()})
        with torch.device("meta"):  # structure alone: they run on the shared weights
            forms = {b.op: build(b.ops[-1], *shape) for group in groups.values() for b in group}
        self.forms = {op: Narrow(self.module_of(op), _without_statistics(form)) for op, form in forms.items()}

    def module_of(self, op: Op) -> Block:
        """Returns the shared module of a branch; raises LookupError if the slot has no such branch."""
        if op not in self.modules_of:
            raise LookupError(f"the supernet has no {op} here")
        module = self.shared[self.modules_of[op]]
        assert isinstance(module, Block)
        return module

    def drop(self, op: Op) -> None:
        """Forgets a branch; the weights go with the last branch that used them."""
        if op != SKIP:
            name = self.modules_of.pop(op)
            del self.forms[op]
            if name not in self.modules_of.values():
                del self.shared[name]

    def forward(self, x: Tensor, choices: tuple[Choice, ...]) -> Tensor:
        outputs = [self._weighted(x, choice) for choice in choices]
        return outputs[0] if len(outputs) == 1 else sum(outputs[1:], outputs[0])

    def _weighted(self, x: Tensor, choice: Choice) -> Tensor:
        y = x if choice.branch == SKIP else self._run(x, choice)
        if isinstance(choice.weight, float):
            return y if choice.weight == 1.0 else y * choice.weight
        return y.to(choice.weight.dtype) * choice.weight  # gates learn from float32, also where y is in half precision

    def _run(self, x: Tensor, choice: Choice) -> Tensor:
        if choice.branch not in self.forms:
            raise LookupError(f"the supernet has no {choice.branch} here")
        form = self.forms[choice.branch]
        if form.like.training != self.training:
            form.like.train(self.training)
        return form(form.like.max_hidden if choice.hidden is None else choice.hidden, x)


def _rigid(op: Op) -> Op:
    """Returns what branches must have in common to share a module: the operator without its elastic knobs."""
    for knob in family(op.name).elastic:
        op = op.without(knob)
    return op


def _largest(group: list[Branch]) -> Op:
    """Returns the operator whose weights hold those of a group: elastic knobs and hidden width at their largest."""
    op = max((branch.ops[-1] for branch in group), key=lambda op: int(op.get("hidden") or 0))
    for knob in family(op.name).elastic:
        values = [value for branch in group if isinstance(value := branch.op.get(knob), int)]
        op = op.with_knobs(**{knob: max(values)}) if values else op
    return op


def _without_statistics(form: Block) -> Block:
    for module in form.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    return form
