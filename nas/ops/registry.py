"""Registry of operator families and the one slicing rule that weight sharing rests on.

A family is an ``nn.Module`` built as ``Family(in_ch, out_ch, stride, **knobs)``. If it has a knob ``hidden``, its
``slices(hidden)`` says which channels of each submodule a narrower copy of it uses; ``sliced`` runs that narrower
copy on the wide weights, ``take_width`` copies it out. Both read the same slices, so they cannot disagree.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nas.arch import Op, Value
from nas.errors import UserError
from nas.files import nearest

Ranges = tuple[tuple[int, int], ...]  # channels as half-open ranges, in order
Slices = Mapping[str, tuple[Ranges | None, Ranges | None]]  # submodule -> (output channels, input channels); None: all


class Block(nn.Module):
    """Base of the families."""

    max_hidden: int = 0

    @classmethod
    def applicable(cls, knob: str, in_ch: int, out_ch: int, stride: int) -> bool:
        """Whether a knob changes the module at this shape (else two equal candidates would stand in one slot)."""
        return True

    def slices(self, hidden: int) -> Slices:
        """Channels of each submodule that the copy with ``hidden`` <= the built width uses."""
        return {}

    deploys_as_is: ClassVar[bool] = True


_FAMILIES: dict[str, type[Block]] = {}
B = TypeVar("B", bound=type[Block])


def register(name: str) -> Callable[[B], B]:
    """Class decorator; a name that is taken is refused."""

    def add(cls: B) -> B:
        if name in _FAMILIES:
            raise ValueError(f"operator {name!r} is registered already, by {_FAMILIES[name].__module__}")
        _FAMILIES[name] = cls
        return cls

    return add


def families() -> tuple[str, ...]:
    """Names of all registered families, sorted."""
    return tuple(sorted(_FAMILIES))


def family(name: str) -> type[Block]:
    """Raises UserError for an unknown name."""
    if name not in _FAMILIES:
        raise UserError(f"unknown operator {name!r}; {nearest(name, _FAMILIES)}")
    return _FAMILIES[name]


def knobs_of(name: str) -> dict[str, bool]:
    """Knob -> whether it must be given, from the family's constructor."""
    parameters = list(inspect.signature(family(name).__init__).parameters.values())[4:]
    return {p.name: p.default is inspect.Parameter.empty for p in parameters}


def check(op: Op) -> None:
    """Raises UserError for an unknown family, an unknown knob or one that is missing."""
    known = knobs_of(op.name)
    for knob, _ in op.knobs:
        if knob not in known:
            raise UserError(f"operator {op}: unknown knob {knob!r}; {nearest(knob, known)}")
    missing = [knob for knob, needed in known.items() if needed and op.get(knob) is None]
    if missing:
        raise UserError(f"operator {op}: the knob {missing[0]!r} is missing")


def build(op: Op, in_ch: int, out_ch: int, stride: int) -> Block:
    """The operator as a module: [N, in_ch, S, S] -> [N, out_ch, ceil(S / stride), ceil(S / stride)].

    Raises UserError for an unknown family or knob, and for a value that the family refuses.
    """
    check(op)
    knobs: dict[str, Value] = dict(op.knobs)
    try:
        return family(op.name)(in_ch, out_ch, stride, **knobs)
    except (ValueError, TypeError) as error:
        raise UserError(f"operator {op} at {in_ch}->{out_ch} stride {stride}: {error}") from None


def sliced(block: Block, hidden: int | None, x: Tensor) -> Tensor:
    """The block's output with only ``hidden`` hidden channels, computed on the shared weights."""
    if hidden is None or hidden == block.max_hidden:
        return block(x)
    return functional_call(block, _narrow(block, hidden), (x,))


def take_width(wide: Block, narrow: Block) -> None:
    """Copies the shared weights and BN statistics of ``wide`` into ``narrow``, a copy with fewer hidden channels."""
    tensors = {name: t for name, t in wide.state_dict().items()}
    if narrow.max_hidden != wide.max_hidden:
        tensors.update({name: t.detach() for name, t in _narrow(wide, narrow.max_hidden).items()})
    narrow.load_state_dict(tensors)


def _narrow(block: Block, hidden: int) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path, (out, inp) in block.slices(hidden).items():
        module = block.get_submodule(path)
        grouped = getattr(module, "depthwise", False)
        for name, tensor in _own_tensors(module):
            if tensor.dim() == 0:
                continue
            part = tensor if out is None else _take(tensor, 0, out)
            if inp is not None and tensor.dim() > 1 and not grouped:
                part = _take(part, 1, inp)
            tensors[f"{path}.{name}"] = part
    return tensors


def _own_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]


def _take(tensor: Tensor, dim: int, ranges: Ranges) -> Tensor:
    parts = [tensor.narrow(dim, start, stop - start) for start, stop in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
