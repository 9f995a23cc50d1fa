"""Counts the memory that training a supernet needs, before it starts: weights, their optimizer, kept activations.

Activations are counted on the meta device: PyTorch says what it would keep for the backward pass, and computes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nas.decision import Decision, largest, one_hot, smallest
from nas.errors import UserError, setting
from nas.plan import Layout
from nas.supernet.gates import Gates, all_branches
from nas.supernet.net import Supernet
from nas.training import torchrun
from nas.training.data import free_bytes
from nas.training.supernet_training import SupernetTraining

OF_WEIGHTS = 4  # copies: weights, gradients, and Adam's two moments


@dataclass(frozen=True)
class Need:
    """Holds bytes of a process: ``weights`` with gradients, moments, average; ``kept`` activations of a micro-batch."""

    weights: int
    kept: int

    @property
    def total(self) -> int:
        return self.weights + self.kept


def check_memory(training: SupernetTraining) -> str:
    """Returns a line on what the training needs and what is free. Raises UserError where that is clearly too little."""
    need, free = estimate(training), _free(training.device)
    here = torchrun.processes_here() if training.device.type == "cpu" else 1
    each = f" in each of {here} processes" if here > 1 else ""
    images = training.recipe.batch // training.recipe.accumulate
    text = (f"memory: about {_gb(need.total)}{each}: {_gb(need.weights)} for weights, gradients and optimizer, "
            f"{_gb(need.kept)} for activations of {images} images")
    if free is not None and here * need.total > free:
        raise UserError(f"train.batch={training.recipe.batch}: {text}, but {_gb(free)} are free; give a larger "
                        f"train.accumulate (now {training.recipe.accumulate}), or a smaller train.batch, "
                        f"{setting('size')} or {setting('width')}")
    return text + (f"; {_gb(free)} are free" if free is not None else "")


def estimate(training: SupernetTraining) -> Need:
    """Counts the bytes of the costliest step: the dearest network, a random one as dear, and the cheapest.

    With the relaxation ``gumbel`` that is the gates' own step, where it runs all branches.
    """
    recipe, layout = training.recipe, training.supernet.layout
    weights = _bytes(training.supernet.parameters()) * OF_WEIGHTS
    weights += _bytes(training.average.net.parameters()) if training.average else 0
    arch = largest(layout, training.prices[0])
    step = [one_hot(arch), one_hot(arch), one_hot(smallest(layout, training.prices[0]))]
    images = recipe.batch // recipe.accumulate
    counted = [kept_bytes(layout, step, images)]
    if recipe.relaxation == "gumbel":
        counted.append(kept_bytes(layout, [_all(training.gates)], images * (2 if recipe.update == "single" else 1)))
    return Need(weights, max(counted) // (2 if training.stepper.dtype else 1))


def kept_bytes(layout: Layout, decisions: Sequence[Decision], images: int) -> int:
    """Counts the bytes that PyTorch keeps for one backward pass through all ``decisions`` on ``images``, in float32."""
    with torch.device("meta"):
        net = Supernet(layout)
        x = torch.empty(images, layout.task.in_ch, layout.task.size, layout.task.size)
    return saved_bytes(net, [(x, decision) for decision in decisions])


def saved_bytes(net: nn.Module, calls: Sequence[tuple[object, ...]]) -> int:
    """Counts the bytes that ``net`` keeps for the backward pass after all ``calls``, without its own parameters."""
    parameters = {p.untyped_storage()._cdata for p in net.parameters()}
    held: dict[int, torch.UntypedStorage] = {}  # by address: two that are alive have two

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            held[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = [net(*call) for call in calls]
    del outputs
    return sum(storage.nbytes() for storage in held.values())


def _all(gates: Gates) -> Decision:
    with torch.no_grad():
        return all_branches(gates, gates.at(0.0))


def _bytes(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)


def _free(device: torch.device) -> int | None:
    return torch.cuda.mem_get_info()[0] if device.type == "cuda" else free_bytes()


def _gb(count: float) -> str:
    return f"{count / 1e9:.2g} GB"
