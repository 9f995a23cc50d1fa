"""Converts a module to an ONNX graph in milliseconds, for the thousands of small graphs of a latency table.

``torch.onnx`` takes seconds a graph. Here one forward pass is watched (``TorchDispatchMode``) and every ATen call
becomes an ONNX node (opset 20, https://onnx.ai/onnx/operators); batch norms are folded into the convolution before
them. The rules cover plain CNNs; ``nas.lower.onnx`` falls back to ``torch.onnx`` for a call that has none. A test holds
the two ways to the same outputs and the same nodes after ONNX Runtime's optimisation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nas.ops import deployed

OPSET = 20
aten = torch.ops.aten


class NoRule(Exception):
    """Is raised for an ATen call that this emitter cannot convert."""


@dataclass
class _Conv:
    """Holds a convolution that a batch norm may still be folded into."""

    node: onnx.NodeProto
    weight: Tensor
    bias: Tensor | None


class Emitter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records a forward pass as ONNX; ``nodes`` and ``constants`` are the graph so far."""

    def __init__(self, inputs: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray[Any, Any]] = {}
        self.convs: dict[str, _Conv] = {}
        self._names: dict[int, str | None] = {id(x): name for name, x in inputs.items()}
        self._alive: list[Tensor] = [*inputs.values()]  # an id is only good while its tensor lives
        self._count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if any(self.known(arg) for arg in _tensors(args)):  # else it computes a weight from weights
            if func not in RULES:
                raise NoRule(str(func))
            self.bind(_tensors((out,))[0], RULES[func](self, out, *args, **(kwargs or {})))
        return out

    def known(self, tensor: Tensor) -> bool:
        return id(tensor) in self._names

    def bind(self, tensor: Tensor, name: str) -> None:
        self._names[id(tensor)] = name
        self._alive.append(tensor)

    def name(self, tensor: Tensor) -> str:
        """Returns the name of a value in the graph; a weight becomes a constant of the graph first."""
        if not self.known(tensor):
            self.bind(tensor, self.constant(tensor.detach().numpy()))
        name = self._names[id(tensor)]
        if name is None:
            raise NoRule("a convolution that is read both before and after its batch norm")
        return name

    def forget(self, tensor: Tensor) -> None:
        """Marks a value as one that the graph does not hold: reading it raises NoRule."""
        self._names[id(tensor)] = None

    def constant(self, value: np.ndarray[Any, Any]) -> str:
        name = self._fresh("w")
        self.constants[name] = value
        return name

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = self._fresh(kind.lower())
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def _fresh(self, prefix: str) -> str:
        self._count += 1
        return f"{prefix}_{self._count}"


def emit(module: nn.Module, *, in_ch: int, size: int, batch: int | str = "N") -> onnx.ModelProto:
    """Converts a module in its deployed form and eval mode: ``input`` [batch, in_ch, size, size] -> ``output``.

    Raises NoRule for an ATen call without a rule here.
    """
    return emit_many(module, {"input": (in_ch, size, size)}, ["output"], batch)


def emit_many(module: nn.Module, inputs: Mapping[str, Sequence[int]], outputs: Sequence[str],
              batch: int | str = "N") -> onnx.ModelProto:
    """Converts a module with several float ``inputs`` (shapes without the batch) and, as a tuple, ``outputs``.

    Raises NoRule for an ATen call without a rule here.
    """
    module = deployed(module)
    given = {name: torch.zeros(1, *shape) for name, shape in inputs.items()}
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad(), Emitter(given) as emitter:
            result = module(*given.values())
    finally:
        module.train(was_training)
    made = dict(zip(outputs, [result] if isinstance(result, Tensor) else result, strict=True))
    emitter.nodes += [helper.make_node("Identity", [emitter.name(y)], [name]) for name, y in made.items()]
    return _model(emitter, *({name: [batch, *t.shape[1:]] for name, t in part.items()} for part in (given, made)))


def _model(emitter: Emitter, in_shapes: dict[str, list[Any]], out_shapes: dict[str, list[Any]]) -> onnx.ModelProto:
    for conv in emitter.convs.values():  # only now are the weights final
        emitter.constants[conv.node.input[1]] = conv.weight.detach().numpy()
        if conv.bias is not None:
            emitter.constants[conv.node.input[2]] = conv.bias.detach().numpy()
    weights = [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in emitter.constants.items()]
    inputs, outputs = ([helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in part.items()]
                       for part in (in_shapes, out_shapes))
    graph = helper.make_graph(emitter.nodes, "nas", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10, producer_name="nas")


def _tensors(args: Any) -> list[Tensor]:
    tensors: list[Tensor] = []
    for arg in args:
        if isinstance(arg, Tensor):
            tensors.append(arg)
        elif isinstance(arg, list | tuple):
            tensors += _tensors(arg)
    return tensors


Rule = Callable[..., str]
RULES: dict[Any, Rule] = {}


def _rule(*functions: Any) -> Callable[[Rule], Rule]:
    def add(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(functions, rule))
        return rule

    return add


@_rule(aten.convolution.default)
def _convolution(e: Emitter, out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int],
                 padding: list[int], dilation: list[int], transposed: bool, _: list[int], groups: int) -> str:
    if transposed or e.known(weight):
        raise NoRule("transposed convolution or computed weight")
    inputs = [e.name(x), e.constant(np.empty(0)), *([e.constant(np.empty(0))] if bias is not None else [])]
    name = e.node("Conv", *inputs, strides=stride, pads=[*padding, *padding], dilations=dilation, group=groups,
                  kernel_shape=list(weight.shape[2:]))
    e.convs[name] = _Conv(e.nodes[-1], weight, bias)
    return name


@_rule(aten.native_batch_norm.default, aten._native_batch_norm_legit_no_training.default)
def _batch_norm(e: Emitter, out: Any, x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor,
                *rest: Any) -> str:
    eps, conv = rest[-1], e.convs.get(e.name(x))
    if conv is None or e.nodes[-1] is not conv.node:
        return e.node("BatchNormalization", *(e.name(t) for t in (x, gamma, beta, mean, var)), epsilon=eps)
    factor = gamma / torch.sqrt(var + eps)
    bias = mean.new_zeros(()) if conv.bias is None else conv.bias
    if conv.bias is None:
        conv.node.input.append(e.constant(np.empty(0)))
    conv.weight, conv.bias = conv.weight * factor.reshape(-1, 1, 1, 1), beta + (bias - mean) * factor
    name = e.name(x)
    e.forget(x)
    return name


@_rule(aten.addmm.default)
def _addmm(e: Emitter, out: Tensor, bias: Tensor, x: Tensor, weight: Tensor) -> str:
    return e.node("Gemm", e.name(x), e.name(weight), e.name(bias))


@_rule(aten.mm.default)
def _mm(e: Emitter, out: Tensor, x: Tensor, weight: Tensor) -> str:
    return e.node("MatMul", e.name(x), e.name(weight))


@_rule(aten._log_softmax.default)
def _log_softmax(e: Emitter, out: Tensor, x: Tensor, dim: int, _: bool) -> str:
    return e.node("LogSoftmax", e.name(x), axis=dim % x.dim())


@_rule(aten.native_layer_norm.default)
def _layer_norm(e: Emitter, out: Any, x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None,
                eps: float) -> str:
    given = [e.name(torch.ones(shape) if weight is None else weight), *([e.name(bias)] if bias is not None else [])]
    return e.node("LayerNormalization", e.name(x), *given, axis=x.dim() - len(shape), epsilon=eps)


@_rule(aten.mean.dim)
def _mean(e: Emitter, out: Tensor, x: Tensor, dim: list[int], keepdim: bool = False) -> str:
    if sorted(d % x.dim() for d in dim) != [2, 3] or x.dim() != 4:
        raise NoRule(f"mean over {dim}")
    pooled = e.node("GlobalAveragePool", e.name(x))
    return pooled if keepdim else e.node("Flatten", pooled)


@_rule(aten._adaptive_avg_pool2d.default)
def _global_pool(e: Emitter, out: Tensor, x: Tensor, size: list[int]) -> str:
    if list(size) == [1, 1]:
        return e.node("GlobalAveragePool", e.name(x))
    steps = [side // wanted for side, wanted in zip(x.shape[2:], size, strict=True)]
    if [step * wanted for step, wanted in zip(steps, size, strict=True)] != list(x.shape[2:]):
        raise NoRule(f"adaptive pooling of {list(x.shape[2:])} to {size}")
    return e.name(x) if steps == [1, 1] else e.node("AveragePool", e.name(x), kernel_shape=steps, strides=steps)


@_rule(aten.max_pool2d_with_indices.default)
def _max_pool(e: Emitter, out: Any, x: Tensor, kernel: list[int], stride: list[int] | None = None,
              padding: list[int] | None = None, dilation: list[int] | None = None, ceil: bool = False) -> str:
    pad = padding or [0, 0]
    return e.node("MaxPool", e.name(x), kernel_shape=kernel, strides=stride or kernel, pads=[*pad, *pad],
                  dilations=dilation or [1, 1], ceil_mode=int(ceil))


@_rule(aten.avg_pool2d.default)
def _avg_pool(e: Emitter, out: Tensor, x: Tensor, kernel: list[int], stride: list[int] | None = None,
              padding: list[int] | None = None, ceil: bool = False, include_pad: bool = True,
              divisor: int | None = None) -> str:
    if divisor is not None:
        raise NoRule("average pooling with a divisor")
    pad = padding or [0, 0]
    return e.node("AveragePool", e.name(x), kernel_shape=kernel, strides=stride or kernel, pads=[*pad, *pad],
                  ceil_mode=int(ceil), count_include_pad=int(include_pad))


@_rule(aten.cat.default)
def _cat(e: Emitter, out: Tensor, parts: list[Tensor], dim: int = 0) -> str:
    return e.node("Concat", *(e.name(part) for part in parts), axis=dim)


@_rule(aten.slice.Tensor)
def _slice(e: Emitter, out: Tensor, x: Tensor, dim: int = 0, start: int | None = None, end: int | None = None,
           step: int = 1) -> str:
    if not start and (end is None or end >= x.shape[dim]) and step == 1:
        return e.name(x)  # x[:, 2:] first slices all of the batch
    if dim == 0:
        raise NoRule("slice of the batch")
    ends = x.shape[dim] if end is None else end
    bounds = [e.constant(np.array([value], np.int64)) for value in (start or 0, ends, dim, step)]
    return e.node("Slice", e.name(x), *bounds)


@_rule(aten.select.int)
def _select(e: Emitter, out: Tensor, x: Tensor, dim: int, index: int) -> str:
    if dim % x.dim() == 0:
        raise NoRule("choice of an image of the batch")
    at = dim % x.dim()
    chosen = e.node("Gather", e.name(x), e.constant(np.array([index], np.int64)), axis=at)
    return e.node("Squeeze", chosen, e.constant(np.array([at], np.int64)))


@_rule(aten.unsqueeze.default)
def _unsqueeze(e: Emitter, out: Tensor, x: Tensor, dim: int) -> str:
    at = dim % out.dim()
    if at == 0:
        raise NoRule("a dimension before the batch")
    return e.node("Unsqueeze", e.name(x), e.constant(np.array([at], np.int64)))


@_rule(aten.split.Tensor)
def _split(e: Emitter, out: Sequence[Tensor], x: Tensor, size: int, dim: int = 0) -> str:
    if dim % x.dim() == 0:
        raise NoRule("split of the batch")
    sides = e.constant(np.array([part.shape[dim] for part in out], np.int64))
    names = [e.node("Split", e.name(x), sides, axis=dim % x.dim())]
    for part in out[1:]:
        names.append(f"{names[0]}_{len(names)}")
        e.nodes[-1].output.append(names[-1])
        e.bind(part, names[-1])
    return names[0]


@_rule(aten.view.default, aten._unsafe_view.default, aten.reshape.default)
def _reshape(e: Emitter, out: Tensor, x: Tensor, shape: list[int]) -> str:
    batch = 0 if len(x) == len(out) == 1 else -1  # other than 1: the batch times sides, as in a layer on channels last
    return e.node("Reshape", e.name(x), e.constant(np.array([batch, *out.shape[1:]], np.int64)))


@_rule(aten.permute.default)
def _permute(e: Emitter, out: Tensor, x: Tensor, dims: list[int]) -> str:
    return e.node("Transpose", e.name(x), perm=[d % x.dim() for d in dims])


@_rule(aten.transpose.int)
def _transpose(e: Emitter, out: Tensor, x: Tensor, first: int, second: int) -> str:
    perm = list(range(x.dim()))
    perm[first], perm[second] = perm[second], perm[first]
    return e.node("Transpose", e.name(x), perm=perm)


@_rule(aten.clone.default, aten.alias.default, aten.detach.default, aten.contiguous.default)
def _same(e: Emitter, out: Tensor, x: Tensor, **_: Any) -> str:
    return e.name(x)


@_rule(aten.as_strided_.default)
def _restrided(e: Emitter, out: Tensor, x: Tensor, size: list[int], *_: Any) -> str:
    """Converts PyTorch's ``as_strided`` where it changes nothing: where at most one side of a map is longer than 1.

    So it is after a global mean.
    """
    if list(size) != list(x.shape) or sum(side > 1 for side in size) > 1:
        raise NoRule("as_strided")
    return e.name(x)


@_rule(aten.hardtanh.default, aten.hardtanh_.default)
def _clip(e: Emitter, out: Tensor, x: Tensor, low: float = -1.0, high: float = 1.0) -> str:
    bounds = [e.constant(np.array(value, np.float32)) for value in (low, high)]
    return e.node("Clip", e.name(x), *bounds)


@_rule(aten.hardsigmoid.default, aten.hardsigmoid_.default)
def _hard_sigmoid(e: Emitter, out: Tensor, x: Tensor) -> str:
    return e.node("HardSigmoid", e.name(x), alpha=1 / 6, beta=0.5)


@_rule(aten.gelu.default)
def _gelu(e: Emitter, out: Tensor, x: Tensor, approximate: str = "none") -> str:
    return e.node("Gelu", e.name(x), approximate=approximate)


@_rule(aten.silu.default, aten.silu_.default)
def _silu(e: Emitter, out: Tensor, x: Tensor) -> str:
    return e.node("Mul", e.name(x), e.node("Sigmoid", e.name(x)))


def _unary(kind: str, *functions: Any) -> None:
    _rule(*functions)(lambda e, out, x: e.node(kind, e.name(x)))


def _binary(kind: str, *functions: Any) -> None:
    def rule(e: Emitter, out: Tensor, a: Tensor, b: Tensor | float, alpha: float = 1) -> str:
        if alpha != 1:
            raise NoRule(f"{kind} with alpha {alpha}")
        right = e.name(b) if isinstance(b, Tensor) else e.constant(np.array(b, np.float32))
        return e.node(kind, e.name(a), right)

    _rule(*functions)(rule)


_unary("Relu", aten.relu.default, aten.relu_.default)
_unary("HardSwish", aten.hardswish.default, aten.hardswish_.default)
_unary("Sigmoid", aten.sigmoid.default, aten.sigmoid_.default)
_unary("Tanh", aten.tanh.default)
_binary("Add", aten.add.Tensor, aten.add_.Tensor)
_binary("Mul", aten.mul.Tensor, aten.mul_.Tensor)
_binary("Sub", aten.sub.Tensor)
_binary("Div", aten.div.Tensor)
