"""Data that a tiny network learns in a few steps."""

import torch

from nas.training.data import Data, Split
from nas.training.image_source import ImageSource


def colours() -> Data:
    """4 classes of 16x16 noise around a class colour."""
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        labels = torch.arange(count) % 4
        noise = torch.randint(0, 80, (count, 3, 16, 16), generator=generator)
        colour = torch.tensor([[0, 0, 0], [160, 0, 0], [0, 160, 0], [0, 0, 160]])[labels].view(count, 3, 1, 1)
        return Split((noise + colour).to(torch.uint8).contiguous(memory_format=torch.channels_last), labels)

    learn = split(80)
    parts = {"train": learn.part(0, 64), "gate": learn.part(64, 80), "select": split(32), "test": split(32)}
    return Data(name="colours", classes=("a", "b", "c", "d"), size=16, mean=(0.3,) * 3, std=(0.2,) * 3,
                source=ImageSource(origin="made here"), indices={}, augment="crop", learn=learn, **parts)
