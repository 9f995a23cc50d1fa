"""Registers operators by name, and runs narrow copies of them on slices of the weights of wide ones.

A family is the class of an operator, built as ``Family(in_ch, out_ch, stride, **knobs)``. If it has a knob ``hidden``,
its ``slices(hidden)`` says which channels of each submodule a narrower copy of it uses; ``sliced`` runs that narrower
copy on the wide weights, ``take_width`` copies it out. Both read the same slices, so they cannot disagree. Knobs that
are ``elastic`` share weights too: a smaller kernel is the centre of the larger (Once-for-All, arXiv 1908.09791), and
whatever else they make smaller is its beginning.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn

from nas.arch import Op, Value
from nas.errors import UserError, setting
from nas.files import nearest

Ranges = tuple[tuple[int, int], ...]  # channels as half-open ranges, in order
Channels = tuple[Ranges | None, Ranges | None]  # output channels, input channels; None: all
Slices = Mapping[str, Channels]  # keyed by path of the submodule


class Block(nn.Module):
    """Is the base class of all operators: ``Family(in_ch, out_ch, stride, **knobs)``."""

    max_hidden: int = 0
    elastic: ClassVar[tuple[str, ...]] = ()  # knobs whose smaller values run on a part of the largest value's weights

    @classmethod
    def applicable(cls, knob: str, in_ch: int, out_ch: int, stride: int) -> bool:
        """Tells whether a knob changes the module at this shape; else all its values would be equal candidates."""
        return True

    def slices(self, hidden: int) -> Slices:
        """Says which channels of each submodule a copy with ``hidden`` channels, at most ``max_hidden``, uses."""
        return {}

    def deploy(self) -> nn.Module:
        """Returns the module that is costed, counted and exported; it computes the same in eval mode.

        It may share the weights of this one.
        """
        return self


_FAMILIES: dict[str, type[Block]] = {}
B = TypeVar("B", bound=type[Block])


def register(name: str) -> Callable[[B], B]:
    """Registers the decorated class under a name. Raises ValueError for a name that is taken."""

    def add(cls: B) -> B:
        if name in _FAMILIES:
            raise ValueError(f"operator {name!r} is registered already, by {_FAMILIES[name].__module__}: take another "
                             "name")
        _FAMILIES[name] = cls
        return cls

    return add


def forget(names: Iterable[str]) -> None:
    """Removes operators from the registry, as when the file that registered them turns out to be faulty."""
    for name in list(names):
        del _FAMILIES[name]


def families() -> tuple[str, ...]:
    """Lists the names of all registered operators, sorted."""
    return tuple(sorted(_FAMILIES))


def family(name: str) -> type[Block]:
    """Returns the class of an operator. Raises UserError for an unknown name."""
    if name not in _FAMILIES:
        raise UserError(f"unknown operator {name!r}; {nearest(name, _FAMILIES)}; one of your own: {setting('ops')} "
                        "FILE.py")
    return _FAMILIES[name]


def knobs_of(name: str) -> dict[str, bool]:
    """Returns the knobs of an operator, from its constructor, each with whether it must be given."""
    parameters = list(inspect.signature(family(name).__init__).parameters.values())[4:]
    return {p.name: p.default is inspect.Parameter.empty for p in parameters}


def check(op: Op) -> None:
    """Checks name and knobs of an operator. Raises UserError for what is unknown and for a knob that is missing."""
    known = knobs_of(op.name)
    for knob, _ in op.knobs:
        if knob not in known:
            raise UserError(f"operator {op}: unknown knob {knob!r}; {nearest(knob, known)}")
    missing = [knob for knob, needed in known.items() if needed and op.get(knob) is None]
    if missing:
        raise UserError(f"operator {op}: the knob {missing[0]!r} is missing")


def build(op: Op, in_ch: int, out_ch: int, stride: int) -> Block:
    """Builds an operator as a module: [N, in_ch, S, S] -> [N, out_ch, ceil(S / stride), ceil(S / stride)].

    Raises UserError for an unknown family or knob, and for a value that the family refuses.
    """
    check(op)
    knobs: dict[str, Value] = dict(op.knobs)
    try:
        return family(op.name)(in_ch, out_ch, stride, **knobs)
    except (ValueError, TypeError) as error:
        raise UserError(f"operator {op} at {in_ch}->{out_ch} stride {stride}: {error}") from None
    except Exception as error:  # an operator of the user may raise anything
        kind = type(error).__name__
        raise UserError(f"operator {op} at {in_ch}->{out_ch} stride {stride}: {kind}: {error}") from error


def deployed(module: nn.Module) -> nn.Module:
    """Returns a copy of the module with every block in its deployed form; itself where no block has another form."""
    if not any(type(part).deploy is not Block.deploy for part in module.modules() if isinstance(part, Block)):
        return module
    with torch.device(next(module.parameters()).device):  # the device on which ``deploy`` makes its layers
        return _deploy(copy.deepcopy(module))


def _deploy(module: nn.Module) -> nn.Module:
    """Replaces blocks by their deployed forms from the top down: a form stands for all that its block holds."""
    if isinstance(module, Block) and (form := module.deploy()) is not module:
        return form
    for name, part in module._modules.items():
        if part is not None:
            module._modules[name] = _deploy(part)
    return module


def sliced(wide: Block, hidden: int | None, x: Tensor, like: Block | None = None) -> Tensor:
    """Computes the output with only ``hidden`` hidden channels, on the shared weights of ``wide``.

    ``like`` is the same operator with smaller elastic knobs (kernel, squeeze-excite): its structure is run.
    """
    width = wide.max_hidden if hidden is None else hidden
    if like is None and width == wide.max_hidden:
        return wide(x)
    return Narrow(wide, like or wide)(width, x)


def take_width(wide: Block, narrow: Block) -> None:
    """Copies the weights and batch norm statistics that ``narrow`` shares with ``wide`` into it.

    Afterwards ``narrow`` computes what ``sliced`` does.
    """
    tensors = {**narrow.state_dict(), **Narrow(wide, narrow).tensors(narrow.max_hidden)}
    narrow.load_state_dict({name: tensor.detach() for name, tensor in tensors.items()})


def give_width(wide: Block, narrow: Block) -> None:
    """Copies the weights and batch norm statistics of ``narrow`` into those that ``wide`` shares with it.

    Afterwards ``take_width`` gives a block of this width what ``narrow`` has; all else in ``wide`` is as it was.
    """
    Narrow(wide, narrow).give_back(narrow.max_hidden)


class Narrow:
    """Runs a narrow module, ``like``, on tensors cut from a wide one: channels by its ``slices``, centres of kernels.

    What goes where is looked up once, because that takes longer than the cutting.
    """

    def __init__(self, wide: Block, like: Block) -> None:
        self.wide, self.like = wide, like
        self.cuts = [_Cut(path, name, module, wide.get_submodule(path)) for path, module in like.named_modules()
                     for holder in (module._parameters, module._buffers)
                     for name, tensor in holder.items() if tensor is not None and tensor.dim()]

    def tensors(self, hidden: int) -> dict[str, Tensor]:
        """Returns the tensors of ``like`` by name, with ``hidden`` hidden channels."""
        channels = self._channels(hidden)
        return {f"{cut.path}.{cut.name}".removeprefix("."): cut.of(channels) for cut in self.cuts}

    def give_back(self, hidden: int) -> None:
        """Writes the tensors of ``like``, which has ``hidden`` hidden channels, into the wide module's."""
        channels = self._channels(hidden)
        for cut in self.cuts:
            cut.put(channels)

    def _channels(self, hidden: int) -> Slices:
        return self.wide.slices(hidden) if hidden != self.wide.max_hidden else {}

    def __call__(self, hidden: int, x: Tensor) -> Tensor:
        channels = self._channels(hidden)
        tensors = [cut.of(channels) for cut in self.cuts]
        originals = [cut.target[cut.name] for cut in self.cuts]
        try:
            for cut, tensor in zip(self.cuts, tensors, strict=True):
                cut.target[cut.name] = tensor
            return self.like(x)
        finally:
            for cut, original in zip(self.cuts, originals, strict=True):
                cut.target[cut.name] = original


class _Cut:
    """Cuts one tensor of a narrow module from the tensor at the same place in the wide module."""

    def __init__(self, path: str, name: str, like: nn.Module, wide: nn.Module) -> None:
        self.path, self.name = path, name
        self.target, self.source = _holder(like, name), _holder(wide, name)
        wanted, shared = self.target[name], self.source[name]
        self.has_inputs = shared.dim() > 1 and not getattr(wide, "depthwise", False)
        self.margin = (shared.shape[-1] - wanted.shape[-1]) // 2 if shared.dim() == 4 else 0
        self.kernel = wanted.shape[-1]
        self.inputs = wanted.shape[1] if self.has_inputs else 0

    def of(self, channels: Slices) -> Tensor:
        """Returns the part of the wide module's tensor that belongs to the narrow one."""
        return self._part(self.source[self.name], channels)

    def put(self, channels: Slices) -> None:
        """Writes the narrow module's tensor into its part of the wide one's."""
        shared, given = self.source[self.name], self.target[self.name]
        places = torch.arange(shared.numel(), device=shared.device).view(shared.shape)
        where = torch.unravel_index(self._part(places, channels).flatten(), shared.shape)
        with torch.no_grad():
            shared[where] = given.to(shared.device).flatten()

    def _part(self, tensor: Tensor, channels: Slices) -> Tensor:
        out, inp = channels.get(self.path, (None, None))
        if out is not None:
            tensor = _take(tensor, 0, out)
        if inp is not None and self.has_inputs:
            tensor = _take(tensor, 1, inp)
        if self.has_inputs and tensor.shape[1] > self.inputs:  # an elastic knob other than the width took inputs away
            tensor = tensor.narrow(1, 0, self.inputs)
        if self.margin > 0:
            middle = slice(self.margin, self.margin + self.kernel)
            tensor = tensor[:, :, middle, middle]
        return tensor


def _holder(module: nn.Module, name: str) -> dict[str, Tensor]:
    """Returns the dictionary in which a module keeps a tensor.

    A slice of a parameter is no parameter, so it cannot be set as an attribute.
    """
    return cast(dict[str, Tensor], module._parameters if name in module._parameters else module._buffers)


def _take(tensor: Tensor, dim: int, ranges: Ranges) -> Tensor:
    parts = [tensor.narrow(dim, start, stop - start) for start, stop in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
