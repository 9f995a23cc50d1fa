"""What training a supernet needs of memory, counted before it starts: weights, their optimizer, kept activations.

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
from nas.supernet.gates import Gates, full
from nas.supernet.net import Supernet
from nas.train import torchrun
from nas.train.data import free_bytes
from nas.train.supernet_training import SupernetTraining

OF_WEIGHTS = 4  # copies: weights, gradients, and Adam's two moments


@dataclass(frozen=True)
class Need:
    """Bytes of one process: ``weights`` with gradients, moments and average; ``kept`` activations of a micro-batch."""

    weights: int
    kept: int

    @property
    def total(self) -> int:
        return self.weights + self.kept


def check(training: SupernetTraining) -> str:
    """One line on what the training needs and what is free. Raises UserError where there is clearly too little."""
    of, free = need(training), _free(training.device)
    here = torchrun.processes_here() if training.device.type == "cpu" else 1
    each = f" in each of {here} processes" if here > 1 else ""
    images = training.recipe.batch // training.recipe.accumulate
    said = (f"memory: about {_gb(of.total)}{each}: {_gb(of.weights)} for weights, gradients and optimizer, "
            f"{_gb(of.kept)} for activations of {images} images")
    if free is not None and here * of.total > free:
        raise UserError(f"train.batch={training.recipe.batch}: {said}, but {_gb(free)} are free; give a larger "
                        f"train.accumulate (now {training.recipe.accumulate}), or a smaller train.batch, "
                        f"{setting('size')} or {setting('width')}")
    return said + (f"; {_gb(free)} are free" if free is not None else "")


def need(training: SupernetTraining) -> Need:
    """Of the costliest step that may come: the dearest network, a random one as dear, and the cheapest, all at once.

    With the relaxation ``gumbel`` that is the gates' own step, where it runs all branches.
    """
    recipe, layout = training.recipe, training.supernet.layout
    weights = _bytes(training.supernet.parameters()) * OF_WEIGHTS
    weights += _bytes(training.average.net.parameters()) if training.average else 0
    arch = largest(layout, training.prices[0])
    step = [one_hot(arch), one_hot(arch), one_hot(smallest(layout, training.prices[0]))]
    images = recipe.batch // recipe.accumulate
    counted = [kept(layout, step, images)]
    if recipe.relaxation == "gumbel":
        counted.append(kept(layout, [_all(training.gates)], images * (2 if recipe.update == "single" else 1)))
    return Need(weights, max(counted) // (2 if training.stepper.dtype else 1))


def kept(layout: Layout, decisions: Sequence[Decision], images: int) -> int:
    """Bytes that PyTorch keeps for one backward pass through all ``decisions`` on ``images``, in float32."""
    with torch.device("meta"):
        net = Supernet(layout)
        x = torch.empty(images, layout.task.in_ch, layout.task.size, layout.task.size)
    return saved_bytes(net, [(x, decision) for decision in decisions])


def saved_bytes(net: nn.Module, calls: Sequence[tuple[object, ...]]) -> int:
    """Bytes that ``net`` keeps for the backward pass after all ``calls``; what is its own parameters is not counted."""
    own = {p.untyped_storage()._cdata for p in net.parameters()}
    held: dict[int, torch.UntypedStorage] = {}  # by address: two that are alive have two

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            held[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = [net(*call) for call in calls]
    del outputs
    return sum(storage.nbytes() for storage in held.values())


def _all(gates: Gates) -> Decision:
    with torch.no_grad():
        return full(gates, gates.at(0.0))


def _bytes(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)


def _free(device: torch.device) -> int | None:
    return torch.cuda.mem_get_info()[0] if device.type == "cuda" else free_bytes()


def _gb(count: float) -> str:
    return f"{count / 1e9:.2g} GB"
