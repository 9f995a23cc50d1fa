"""Computes one optimizer step over a batch: in micro-batches, in half precision, on this process's part of it.

A step's loss is the mean over its ``accumulate`` micro-batches of the loss of each; so batch norms see the statistics
of a micro-batch, and everything else is that of the whole batch. Which process computes which of them changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from nas.errors import UserError
from nas.training.ranks import ALONE, Ranks

CLIP = 5.0  # largest norm of the gradients of a step
Batch = tuple[Tensor, Tensor]  # images [N, C, S, S], labels int64 [N], or of mixed images float [N, classes]
LossOf = Callable[[Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]  # -> what is minimised, figures to log
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Stepper:
    """Computes steps. ``amp`` is ``none``, ``bf16``, ``fp16`` or ``auto``: on a GPU, the better that it can.

    ``apart``: every micro-batch draws its own randomness (dropout) from PyTorch's generator, whoever computes it.
    """

    def __init__(self, device: torch.device, accumulate: int = 1, amp: str = "none", ranks: Ranks = ALONE,
                 apart: bool = False) -> None:
        if accumulate % ranks.count:
            raise ValueError(f"{accumulate} micro-batches for {ranks.count} processes")
        self.device, self.accumulate, self.ranks, self.apart = device, accumulate, ranks, apart
        self.dtype = half(amp, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)

    def logits(self, net: nn.Module, *inputs: Any) -> Tensor:
        """Runs ``net(*inputs)`` in half precision where that is on; returns float32, for losses and gates."""
        with self.casting():
            out: Tensor = net(*inputs)
        return out.float()

    def casting(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()

    def step(self, loss_of: LossOf, batch: Batch, module: nn.Module, optimizer: torch.optim.Optimizer,
             beside: Sequence[nn.Parameter] = ()) -> dict[str, float]:
        """Takes one step with gradients clipped; ``batch`` is this process's part. Returns the means of its figures,
        and the norm of the gradients before they were clipped, unless half precision overflowed.

        ``beside`` get their gradients of the same loss, for a step of their own. Raises UserError when the loss is not
        a number.
        """
        optimizer.zero_grad(set_to_none=True)
        loss, figures = self._over(loss_of, batch, lambda share, more: share.backward(  # type: ignore[no-untyped-call]
            retain_graph=more and bool(beside)))
        used = [p for p in module.parameters() if p.grad is not None]
        other = [p.grad for p in beside if p.grad is not None]
        self.ranks.add_up([loss, *(p.grad for p in used if p.grad is not None), *other])
        if not torch.isfinite(loss):
            raise UserError("training diverged (the loss is not a number); the last checkpoint is kept; search again "
                            "with a lower train.lr")
        if not self._unscaled(other):  # as the scaler then leaves out the step of the weights
            for p in beside:
                p.grad = None
        self.scaler.unscale_(optimizer)
        norm = float(nn.utils.clip_grad_norm_(used, CLIP))
        self.scaler.step(optimizer)
        self.scaler.update()
        return figures | if_finite("grad_norm", norm)

    def gradients(self, loss_of: LossOf, batch: Batch, parameters: Sequence[nn.Parameter]
                  ) -> tuple[bool, dict[str, float]]:
        """Computes gradients of ``parameters`` alone; returns whether all is finite, and the mean figures."""
        sums: list[Tensor | None] = [None] * len(parameters)

        def add(share: Tensor, more: bool) -> None:
            parts = torch.autograd.grad(share, parameters, allow_unused=True, retain_graph=more)
            sums[:] = [b if a is None else a if b is None else a + b for a, b in zip(sums, parts, strict=True)]

        loss, figures = self._over(loss_of, batch, add)
        given = [gradient for gradient in sums if gradient is not None]
        self.ranks.add_up([loss, *given])
        finite = self._unscaled(given)
        for parameter, gradient in zip(parameters, sums, strict=True):
            parameter.grad = gradient
        return finite and bool(torch.isfinite(loss)), figures

    def state_dict(self) -> dict[str, Any]:
        """Returns what a continued run has to know; empty but for fp16."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a ``state_dict``; one of a run that was not in fp16 so far says nothing."""
        if state:
            self.scaler.load_state_dict(state)

    def _over(self, loss_of: LossOf, batch: Batch, backward: Callable[[Tensor, bool], None]
              ) -> tuple[Tensor, dict[str, float]]:
        """Calls ``backward(part of the loss, whether more follow)`` for each micro-batch; returns loss and mean
        figures.
        """
        here = self.accumulate // self.ranks.count
        total, sums = torch.zeros((), device=self.device), dict[str, float]()
        for i, seeded in enumerate(self._seeds(here)):
            with seeded:
                loss, figures = loss_of(*micro(batch, i, here))
                loss = loss / self.accumulate
                backward(self.scaler.scale(loss), i + 1 < here)
            total += loss.detach()
            for name, value in figures.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach()) / here
            del loss, figures  # and with them the graph, before the next one grows
        return total, sums

    def _seeds(self, here: int) -> list[AbstractContextManager[None]]:
        if self.accumulate == 1 or not self.apart:
            return [nullcontext()] * here
        seed = int(torch.randint(2**62, ()))  # the same on all ranks, and so is what is drawn after this step
        return [_drawing(seed + self.ranks.rank + i * self.ranks.count) for i in range(here)]

    def _unscaled(self, gradients: Sequence[Tensor]) -> bool:
        """Takes the scale of fp16 out; returns False where a gradient overflowed, although the loss may not."""
        if not self.scaler.is_enabled():
            return True
        for gradient in gradients:
            gradient /= self.scaler.get_scale()
        return all(bool(gradient.isfinite().all()) for gradient in gradients)


def if_finite(name: str, value: float) -> dict[str, float]:
    """Returns a figure to log, if it is a number; else nothing."""
    return {name: value} if math.isfinite(value) else {}


def half(amp: str, device: torch.device) -> torch.dtype | None:
    """Returns the type in which convolutions and linear layers compute; None: as the weights, float32."""
    if amp == "auto" and device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return DTYPES.get(amp)


def micro(batch: Batch, i: int, of: int) -> Batch:
    """Returns micro-batch ``i``, every ``of``-th image, so that of two concatenated batches it has equal parts."""
    if of == 1:
        return batch
    images, labels = batch
    return images[i::of].contiguous(memory_format=torch.channels_last), labels[i::of]


@contextmanager
def _drawing(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
