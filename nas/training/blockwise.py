"""Trains every choice of the supernet to do, in its own slot, what the largest network does there.

Blockwise supervision (DNA, arXiv 1911.13053; LANA, arXiv 2107.10624): a choice gets the map that the largest network
has in front of the slot and learns the one behind it. All slots learn at once for the price of one network, none of
them through another that has learned nothing yet. Unlike there, the teacher shares its weights with the students and
goes on learning itself, from labels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nas.arch import SKIP
from nas.decision import Decision
from nas.supernet.net import Supernet
from nas.training.stepper import LossOf, Stepper

TINY = 1e-5  # beside the variance of a map, as in batch norms


def blockwise(supernet: Supernet, stepper: Stepper, teacher: Decision, students: Decision | None,
              label_smoothing: float) -> LossOf:
    """Returns the loss of the ``teacher`` on labels plus, slot by slot, the squared error of ``students`` to its maps.

    Each is relative to the variance of the map that is learned; a skip has nothing to learn. Without students: the
    teacher's loss alone.
    """

    def loss_of(images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with stepper.casting():
            logits, maps = supernet.maps(images, teacher)
            made = [(slot(x.detach(), choices), y.detach().float()) for slot, choices, (x, y)
                    in zip(supernet.slots, students.slots, maps, strict=True)
                    if choices[0].branch != SKIP] if students else []
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
        if not made:
            return loss, {"loss_largest": loss}
        apart = torch.stack([F.mse_loss(z.float(), y) / (y.var() + TINY) for z, y in made])
        return loss + apart.sum(), {"loss_largest": loss, "blockwise": apart.mean()}

    return loss_of
