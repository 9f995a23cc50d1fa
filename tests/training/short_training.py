"""A supernet's training of seconds."""

from typing import Any

import torch

from nas.decision import prices
from nas.plan import Layout, OpKey, macs
from nas.training.data import Data
from nas.training.recipes import SupernetRecipe
from nas.training.supernet_training import SupernetTraining

CPU = torch.device("cpu")


def by_macs(keys: list[OpKey]) -> list[float]:
    return [0.01 + macs(key) * 1e-6 for key in keys]


def training(tiny: Layout, data: Data, kind: type[SupernetTraining] = SupernetTraining,
             **options: Any) -> SupernetTraining:
    priced = prices(tiny, by_macs)
    low = priced.fixed + sum(min(row.values()) for row in priced.ms)
    high = priced.fixed + sum(max(row.values()) for row in priced.ms)
    recipe = SupernetRecipe(epochs={"warmup": 1, "search": 2, "settle": 1}, batch=16, lr=0.005, weight_decay=0.01,
                            label_smoothing=0.0, augment="crop", **options)
    return kind(tiny, data, [priced], [(low * 1.05, high * 0.9)], (-1.0, 0.0, 1.0), recipe, 0, CPU)
