"""Lists the fused kernels that an inference engine launches for a module: convolutions with what is folded into them.

The module runs once on a meta tensor; every ATen call is recorded, none is computed, and ``nas.latency.fusion`` says
which of them run together. Work on weights alone is free.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nas.errors import UserError
from nas.latency.coverage import conv_gap, pool_gap
from nas.latency.fusion import Kernel, Node, Shape, fuse
from nas.ops import deployed

_UNARY = frozenset((
    "relu", "relu6", "leaky_relu", "prelu", "elu", "hardtanh", "clamp", "clamp_min", "clamp_max", "hardswish",
    "hardsigmoid", "sigmoid", "silu", "gelu", "mish", "tanh", "softplus", "exp", "neg", "abs", "sqrt", "rsqrt",
    "pow", "square"))
_BINARY = frozenset((
    "add", "sub", "rsub", "mul", "div", "maximum", "minimum"))
_SHAPED = frozenset((
    "reshape", "view", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose",
    "t", "movedim", "slice", "narrow", "split", "split_with_sizes", "chunk", "unbind", "select", "expand",
    "expand_as", "contiguous", "clone", "pixel_shuffle", "constant_pad_nd", "pad"))
_POOLS = frozenset((
    "max_pool2d", "avg_pool2d"))
_RESIZES = frozenset((
    "upsample_nearest2d", "upsample_bilinear2d"))
_FREE = frozenset((
    "dropout", "feature_dropout", "alpha_dropout", "detach", "alias", "lift_fresh"))


def kernels(module: nn.Module, in_ch: int, size: int) -> list[Kernel]:
    """Lists the kernels that an engine launches for a module in eval mode on [1, in_ch, size, size], in order.

    Raises UserError naming the operator where the module calls one that has no rule here.
    """
    module = deployed(module)
    x = torch.empty(1, in_ch, size, size, device="meta")
    recorder = _Recorder(x, type(module).__name__)
    with _evaluating(module), torch.inference_mode(), recorder:
        result = module(x)
    outputs = [recorder.maker[id(t)] for t in tree_leaves(result) if id(t) in recorder.maker]
    return [group.kernel for group in fuse(recorder.nodes, outputs)]


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records calls on feature maps as nodes; node 0 is the input. Calls on weights alone run as they are."""

    def __init__(self, x: Tensor, name: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.name = name
        self.nodes = [Node("input", (), (), tuple(x.shape))]
        self.maker = {id(x): 0}  # of each feature map; ids stay unique because ``alive`` holds the tensors
        self.alive = [x]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        maps = self._maps((*args, *kwargs.values()))
        if not maps:
            return func(*args, **kwargs)
        packet = func.overloadpacket.__name__
        name = packet.rstrip("_")
        rule = _RULES.get(name)
        if rule is None:
            with self:  # modes are off in here: record the parts of a composite
                result = func.decompose(*args, **kwargs)
            if result is NotImplemented:
                raise self.unknown(f"the operator {func}")
            return result
        result = rule(self, _Call(name, func, args, kwargs, maps))
        if packet.endswith("_") and isinstance(result, Tensor):
            self.maker[id(args[0])] = self.maker[id(result)]
            return args[0]
        return result

    def unknown(self, what: str) -> UserError:
        return UserError(f"{self.name}: no kernel is known for {what}")

    def _maps(self, values: Sequence[Any]) -> list[Tensor]:
        flat = (t for v in values for t in (v if isinstance(v, (list, tuple)) else (v,)))
        return [t for t in flat if isinstance(t, Tensor) and id(t) in self.maker]

    def add(self, op: str, maps: Sequence[Tensor], shape: Shape, **how: Any) -> Tensor:
        """Adds a node and returns the empty tensor that stands for its result."""
        makers, sources = (self.maker[id(t)] for t in maps), (tuple(t.shape) for t in maps)
        self.nodes.append(Node(op, tuple(makers), tuple(sources), shape, **how))
        return self.keep(torch.empty(shape, device="meta"), len(self.nodes) - 1)

    def keep(self, tensor: Tensor, node: int) -> Tensor:
        self.alive.append(tensor)
        self.maker[id(tensor)] = node
        return tensor


@dataclass
class _Call:
    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    maps: list[Tensor]

    def get(self, position: int, name: str, default: Any) -> Any:
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)


def _conv(recorder: _Recorder, call: _Call) -> Tensor:
    x, weight = call.args[:2]
    window, stride = tuple(weight.shape[2:]), _pair(call.get(3, "stride", 1))
    dilation, padding = _pair(call.get(5, "dilation", 1)), call.get(4, "padding", 0)
    spans = [d * (k - 1) for d, k in zip(dilation, window, strict=True)]
    named = {"same": spans, "valid": [0, 0]}
    around = named[padding] if isinstance(padding, str) else [2 * p for p in _pair(padding)]
    sides = [(n + pad - span - 1) // s + 1
             for n, pad, span, s in zip(x.shape[2:], around, spans, stride, strict=True)]
    if gap := conv_gap(window, stride, dilation, x.shape[2:], sides):
        raise recorder.unknown(f"a convolution with {gap}")
    return recorder.add("conv", [x], (x.shape[0], weight.shape[0], *sides), kernel=math.sqrt(math.prod(window)),
                        stride=max(stride), groups=call.get(6, "groups", 1))


def _linear(recorder: _Recorder, call: _Call) -> Tensor:
    x, weight = call.args[:2]
    return recorder.add("conv", [x], (*x.shape[:-1], weight.shape[0]))


def _norm(recorder: _Recorder, call: _Call) -> Tensor:
    if call.get(5, "training", False):
        raise recorder.unknown("batch norm that needs the statistics of its input")
    return recorder.add("norm", call.maps[:1], tuple(call.maps[0].shape))


def _unary(recorder: _Recorder, call: _Call) -> Tensor:
    return recorder.add("act", call.maps[:1], tuple(call.maps[0].shape))


def _binary(recorder: _Recorder, call: _Call) -> Tensor:
    operands = [tuple(t.shape) for t in call.args[:2] if isinstance(t, Tensor)]
    shape = operands[0] if len(set(operands)) == 1 else _broadcast(*operands)
    if len(call.maps) == 1:  # the other one is a number or a weight
        return recorder.add("act", call.maps, shape)
    return recorder.add("add" if call.name == "add" else "join", call.maps, shape)


def _broadcast(*shapes: Shape) -> Shape:
    longest = max(map(len, shapes))
    padded = [(1,) * (longest - len(s)) + s for s in shapes]
    return tuple(max(sides) for sides in zip(*padded, strict=True))


def _cat(recorder: _Recorder, call: _Call) -> Tensor:
    tensors, axis = call.args[0], call.get(1, "dim", 0)
    shape = list(tensors[0].shape)
    shape[axis] = sum(t.shape[axis] for t in tensors)
    return recorder.add("cat", call.maps, tuple(shape))


def _mean(recorder: _Recorder, call: _Call) -> Tensor:
    x = call.maps[0]
    axes = call.get(1, "dim", None)
    axes = range(x.dim()) if not isinstance(axes, (int, list, tuple)) else [axes] if isinstance(axes, int) else axes
    reduced = {a % x.dim() for a in axes} or set(range(x.dim()))
    keep = call.get(2, "keepdim", False)
    return recorder.add("pool", [x], tuple(1 if i in reduced else n for i, n in enumerate(x.shape)
                                           if keep or i not in reduced))


def _adaptive_pool(recorder: _Recorder, call: _Call) -> Tensor:
    x = call.maps[0]
    return recorder.add("pool", [x], (*x.shape[:-2], *_pair(call.args[1])))


def _moves(kind: str) -> Callable[[_Recorder, _Call], Any]:
    """Makes the rule for operators that are bound by memory; PyTorch computes the shape of their result."""

    def rule(recorder: _Recorder, call: _Call) -> Any:
        result = call.func(*call.args, **call.kwargs)
        return _each(result, lambda t: recorder.add(kind, call.maps[:1], tuple(t.shape)))

    return rule


def _pool(recorder: _Recorder, call: _Call) -> Any:
    """Adds a pooling with a window, if it is covered; PyTorch's average has no dilation."""
    window = _pair(call.get(1, "kernel_size", 1))
    dilation = _pair(call.get(4, "dilation", 1)) if call.name == "max_pool2d" else (1, 1)
    gap = pool_gap(window, _pair(call.get(2, "stride", None) or window), dilation, call.maps[0].shape[2:])
    if gap:
        raise recorder.unknown(f"{call.name} with {gap}")
    return _moves("pool")(recorder, call)


def _view(recorder: _Recorder, call: _Call) -> Any:
    """Adds a copy, unless all elements stay where they are, which is free."""
    x = call.maps[0]
    storage = x.untyped_storage()._cdata

    def register(t: Tensor) -> Tensor:
        if t.untyped_storage()._cdata == storage and t.numel() >= x.numel():
            return recorder.keep(t, recorder.maker[id(x)])
        return recorder.add("copy", [x], tuple(t.shape))

    return _each(call.func(*call.args, **call.kwargs), register)


def _free(recorder: _Recorder, call: _Call) -> Tensor:
    x = call.maps[0]
    return recorder.keep(x.view(x.shape), recorder.maker[id(x)])


def _each(result: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return type(result)(change(t) for t in result) if isinstance(result, (list, tuple)) else change(result)


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])


_RULES: dict[str, Callable[[_Recorder, _Call], Any]] = {
    "conv2d": _conv, "linear": _linear, "batch_norm": _norm, "cat": _cat, "mean": _mean,
    "adaptive_avg_pool2d": _adaptive_pool,
    **dict.fromkeys(_UNARY, _unary), **dict.fromkeys(_BINARY, _binary), **dict.fromkeys(_FREE, _free),
    **dict.fromkeys(_SHAPED, _view), **dict.fromkeys(_POOLS, _pool), "adaptive_max_pool2d": _moves("pool"),
    **dict.fromkeys(_RESIZES, _moves("resize")),
}
