"""Registry of operator families and the one slicing rule that weight sharing rests on.

A family is an ``nn.Module`` built as ``Family(in_ch, out_ch, stride, **knobs)``. If it has a knob ``hidden``, its
``slices(hidden)`` says which channels of each submodule a narrower copy of it uses; ``sliced`` runs that narrower
copy on the wide weights, ``take_width`` copies it out. Both read the same slices, so they cannot disagree. Knobs that
are ``elastic`` share weights too: a smaller kernel is the centre of the larger (Once-for-All, arXiv 1908.09791).
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
Channels = tuple[Ranges | None, Ranges | None]  # output channels, input channels; None: all
Slices = Mapping[str, Channels]  # by submodule


class Block(nn.Module):
    """Base of the families."""

    max_hidden: int = 0
    elastic: ClassVar[tuple[str, ...]] = ()  # knobs whose smaller values run on a part of the largest value's weights

    @classmethod
    def applicable(cls, knob: str, in_ch: int, out_ch: int, stride: int) -> bool:
        """Whether a knob changes the module at this shape (else two equal candidates would stand in one slot)."""
        return True

    def slices(self, hidden: int) -> Slices:
        """Channels of each submodule that the copy with ``hidden`` <= the built width uses."""
        return {}


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


def sliced(wide: Block, hidden: int | None, x: Tensor, like: Block | None = None) -> Tensor:
    """The output with only ``hidden`` hidden channels, computed on the shared weights of ``wide``.

    ``like`` is the same family with other elastic knobs (a smaller kernel, no squeeze-excite): its structure is run.
    """
    width = wide.max_hidden if hidden is None else hidden
    if like is None and width == wide.max_hidden:
        return wide(x)
    return functional_call(like or wide, narrowed(wide, like or wide, width), (x,))


def take_width(wide: Block, narrow: Block) -> None:
    """Copies the shared weights and BN statistics of ``wide`` into ``narrow``: what ``sliced`` runs, as a module."""
    tensors = {**narrow.state_dict(), **narrowed(wide, narrow, narrow.max_hidden)}
    narrow.load_state_dict({name: tensor.detach() for name, tensor in tensors.items()})


def narrowed(wide: Block, like: Block, hidden: int) -> dict[str, Tensor]:
    """The tensors of ``like`` cut from ``wide``: channels by its ``slices``, kernels from their centre."""
    shared = {name: t for name, t in [*wide.named_parameters(), *wide.named_buffers()] if t.dim()}
    channels = wide.slices(hidden) if hidden != wide.max_hidden else {}
    tensors: dict[str, Tensor] = {}
    for name, own in [*like.named_parameters(), *like.named_buffers()]:
        if own.dim():
            path = name.rpartition(".")[0]
            tensors[name] = _cut(shared[name], own, channels.get(path), wide.get_submodule(path))
    return tensors


def _cut(tensor: Tensor, own: Tensor, channels: Channels | None, module: nn.Module) -> Tensor:
    out, inp = channels or (None, None)
    if out is not None:
        tensor = _take(tensor, 0, out)
    if inp is not None and tensor.dim() > 1 and not getattr(module, "depthwise", False):
        tensor = _take(tensor, 1, inp)
    if tensor.dim() == 4 and tensor.shape[-1] > own.shape[-1]:
        margin, kernel = (tensor.shape[-1] - own.shape[-1]) // 2, own.shape[-1]
        tensor = tensor[:, :, margin:margin + kernel, margin:margin + kernel]
    return tensor


def _take(tensor: Tensor, dim: int, ranges: Ranges) -> Tensor:
    parts = [tensor.narrow(dim, start, stop - start) for start, stop in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
