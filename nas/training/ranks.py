"""Joins the processes of one training: each computes its part of every batch, their gradients are added up."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nas.errors import UserError
from nas.training import torchrun

PATIENCE = timedelta(days=7)  # the others wait while the first measures a device or judges networks


@dataclass(frozen=True)
class Ranks:
    """Adds up what ``count`` processes compute, of which this is ``rank``; all call the same methods in the same order.

    One process alone calls nobody.
    """

    rank: int = 0
    count: int = 1

    @property
    def share(self) -> slice:
        """Returns which images of a batch are this process's: every ``count``-th."""
        return slice(self.rank, None, self.count)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by its sum over the processes: the same bits everywhere, so that replicas stay equal.

        Raises UserError where another process has ended.
        """
        if self.count == 1:
            return
        for group in _alike(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in group])
            with _together():
                dist.all_reduce(flat)
            for tensor, part in zip(group, torch.split(flat, [tensor.numel() for tensor in group]), strict=True):
                tensor.copy_(part.view(tensor.shape))

    def mean(self, figures: dict[str, float]) -> dict[str, float]:
        """Returns the mean of each figure over the processes, which have the same names in the same order."""
        if self.count == 1:
            return figures
        values = torch.tensor(list(figures.values()), dtype=torch.float64)
        self.add_up([values])
        return dict(zip(figures, (values / self.count).tolist(), strict=True))

    def broadcast(self, value: Any = None) -> Any:
        """Sends the ``value`` of the first process to all, and returns it."""
        if self.count == 1:
            return value
        box = [value]
        with _together():
            dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]


ALONE = Ranks()


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """Connects this process with the others that ``torchrun`` started, if there are any, for as long as it lasts.

    gloo carries what is on a CPU, NCCL what is on a GPU. Raises UserError where there are fewer GPUs than processes.
    """
    if torchrun.processes() == 1:
        yield ALONE
        return
    backend = "gloo"
    if torch.cuda.is_available():
        if torchrun.processes_here() > torch.cuda.device_count():
            raise UserError(f"torchrun: {torchrun.processes_here()} processes here, but PyTorch sees "
                            f"{torch.cuda.device_count()} GPUs; give --nproc-per-node {torch.cuda.device_count()}")
        torch.cuda.set_device(torchrun.gpu())
        backend = "cpu:gloo,cuda:nccl"
    with _together():
        dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def _alike(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Groups tensors by device and type, in order of first appearance: one message each."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    return list(groups.values())


@contextlib.contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of a process that is gone; interrupted itself, this one hears of that first
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(f"torchrun: another process of this search has ended ({reason}); the same command continues"
                        ) from None
