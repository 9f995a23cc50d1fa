"""Checks that an operator does what the framework relies on: shapes, gradients, and slices that are exact.

Tests run this for every shipped operator, and a check of a space for those of the user.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from nas.arch import Op
from nas.errors import UserError
from nas.ops.registry import Block, build, deployed, sliced, take_width

SIDE = 9  # side of the maps that operators are tried on: odd, so that a stride has to round up
T = TypeVar("T")


def check(op: Op, in_ch: int, out_ch: int, stride: int, narrowest: int | None = None,
          largest: Op | None = None) -> None:
    """Checks output, gradients, weight sharing and deployed form of an operator at a shape.

    It has to compute the same on a slice of the weights of ``largest``, which holds its own, also at the hidden width
    ``narrowest``.
    Raises UserError naming operator, shape and what to do. Random numbers of the caller are left as they are.
    """
    where = f"operator {op} at {in_ch}->{out_ch} stride {stride}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block, x = build(op, in_ch, out_ch, stride), torch.randn(2, in_ch, SIDE, SIDE)
        _check_training(block.train(), x, out_ch, stride, where)
        if narrowest is not None and block.max_hidden != op.get("hidden"):
            raise UserError(f"{where}: self.max_hidden is {block.max_hidden}; set it to hidden in __init__")
        narrower = [op.with_knobs(hidden=narrowest)] if narrowest is not None else []
        if narrower or largest not in (None, op):
            wide = settled(build(largest or op, in_ch, out_ch, stride))
            for part in (*narrower, op):
                _check_slice(wide, settled(build(part, in_ch, out_ch, stride)), x,
                             f"{where}: {_part(part, largest or op)}")
        _check_deployed(settled(build(op, in_ch, out_ch, stride)), x, where)


def _part(op: Op, of: Op) -> str:
    """Names the part of another operator's weights that ``op`` uses, by the knobs that differ."""
    return ", ".join(f"{knob}={value}" for knob, value in op.knobs if of.get(knob) != value) or "as a whole"


def _check_training(block: Block, x: Tensor, out_ch: int, stride: int, where: str) -> None:
    y = _tried(lambda: block(x), f"{where}: forward")
    side = -(-SIDE // stride)
    if not isinstance(y, Tensor) or tuple(y.shape) != (2, out_ch, side, side):
        got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise UserError(f"{where}: maps {tuple(x.shape)} to {got}, not to {(2, out_ch, side, side)}: it has to give "
                        "out_ch channels and a side of ceil(side / stride) (pad a kernel k by k // 2)")
    loss = (y * torch.randn_like(y)).sum()
    _tried(lambda: torch.autograd.backward(loss), f"{where}: backward")
    for name, parameter in block.named_parameters():
        if parameter.grad is None or not parameter.grad.isfinite().all():
            raise UserError(f"{where}: {name} gets no finite gradient: use it in forward, or leave it out")


def _check_slice(wide: Block, narrow: Block, x: Tensor, where: str) -> None:
    """Checks that running a part of the wide weights equals running a narrower copy that has these weights."""
    def cut() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            take_width(wide, narrow)
            return sliced(wide, narrow.max_hidden, x, narrow), narrow(x)

    advice = ("slices(hidden) has to name, for every submodule, the channels that the narrower copy has"
              if narrow.max_hidden != wide.max_hidden else
              "a smaller value of an elastic knob has the submodules of the largest one or fewer, with the centre of "
              "each kernel and the first channels; else leave the knob out of elastic")
    shared, copied = _tried(cut, f"{where}: {advice}")
    if not torch.allclose(shared, copied, rtol=1e-4, atol=1e-5):
        raise UserError(f"{where}: the slice computes something else than the narrower copy; {advice}")


def _check_deployed(block: Block, x: Tensor, where: str) -> None:
    """Checks that the deployed form computes what the trained one does, batch norms and all."""
    def forms() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return block(x), deployed(block).eval()(x)

    trained, form = _tried(forms, f"{where}: deploy")
    close = 1e-4 * float(trained.abs().max())
    if not (isinstance(form, Tensor) and form.shape == trained.shape
            and torch.allclose(form, trained, rtol=0, atol=close)):
        raise UserError(f"{where}: deploy() computes something else than the trained form in eval mode: fold batch "
                        "norms in with their running mean and variance")


def _tried(work: Callable[[], T], what: str) -> T:
    try:
        return work()
    except Exception as error:  # the user's code may raise anything
        text = " ".join(str(error).split())
        raise UserError(f"{what}: {type(error).__name__}: {text[:200]}") from error


def settled(block: Block) -> Block:
    """Puts a block in eval mode with random batch norms, which are no identity, as after training."""
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                if tensor is not None:
                    nn.init.uniform_(tensor, 0.5, 1.5)
    return block.eval()
