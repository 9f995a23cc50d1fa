"""Training networks with exits: every method learns, continues bit-equal, and what its exits say is recorded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from colours import colours
from every import every
from three_exits import three

from nas.exits.methods import method, methods
from nas.subnet import build
from nas.training import evaluation, randomness
from nas.training.data import eval_batches
from nas.training.exits import ExitTraining, recalibrate, record
from nas.training.recipes import FineTuningRecipe

CPU = torch.device("cpu")


def trained(name: str, stop: int | None, epochs: int = 6) -> ExitTraining:
    recipe = FineTuningRecipe(epochs=epochs, batch=16, lr=0.01, weight_decay=0.0, label_smoothing=0.0, augment="crop")

    def fresh() -> ExitTraining:
        with randomness.seeded("w"):
            sparing = {"interval": 4} if name == "weighted" else {}  # its meta step is three more passes
            return ExitTraining("x", method(name, build(*three()), **sparing), colours(), recipe, 0, CPU)

    training = fresh()
    while not training.finished:
        training.epoch()
        if training.done == stop:
            state, training = training.state_dict(), fresh()
            training.load_state_dict(state)
            stop = None
    return training


@pytest.mark.parametrize("name", methods())
def test_a_method_learns_and_continues_bit_equal(name: str) -> None:
    epochs = 18 if name == "cascade" else 6  # one block after the other
    whole, broken = trained(name, None, epochs), trained(name, 2, epochs)
    for key, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, broken.model.state_dict()[key]), key
    data = colours()
    recalibrate(whole.model, evaluation.calibration_images(data, 64, 16, CPU, 0))
    recorded = record(whole.model, data.test, data, CPU, batch=20)
    assert recorded.logits.shape == (3, 32, 4) and recorded.labels.tolist() == data.test.labels.tolist()
    said, head = recorded.logits.argmax(-1), recorded.logits[-1].argmax(-1)
    right = recorded.right if whole.model.labels else said == head  # without labels, what the network says
    # a frozen head is what it was: untrained; of a cascade the first exit alone sees all images
    learned = right.mean(1)[:1 if name == "cascade" else 2 if whole.model.frozen else 3]
    assert learned.min() > 0.8
    with torch.no_grad():
        again = whole.model.eval()(next(iter(eval_batches(data.test, data, 32)))[0])
    np.testing.assert_allclose(torch.stack(again).numpy(), recorded.logits, atol=1e-5)


def test_exits_learn_from_whole_labels_whatever_picks_learn_from() -> None:
    """Methods take one class an image."""
    recipe = FineTuningRecipe(epochs=1, batch=16, lr=0.01, weight_decay=0.0, label_smoothing=0.0, augment="crop")
    mixing = recipe.model_copy(update={"mix": "both", "ema": 0.9})

    def learned(how: FineTuningRecipe) -> dict[str, torch.Tensor]:
        with randomness.seeded("w"):
            training = ExitTraining("x", method("joint", build(*three())), colours(), how, 0, CPU)
        training.epoch()
        return training.result.state_dict()

    plain, other = learned(recipe), learned(mixing)
    assert every(torch.equal(tensor, other[name]) for name, tensor in plain.items())
