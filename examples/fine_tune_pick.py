"""Loads a pick of a finished search and trains it on other images, in a loop of your own.

    python examples/fine_tune_pick.py runs/photos more_photos 0.3 tuned.pt
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean

import onnx
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

import nas


def main(run: Path, images: Path, *, ms: float, out: Path, epochs: int = 5) -> float:
    """Returns the loss of the last epoch. The images have classes of their own, so the last layer is a new one."""
    pick = nas.load_run(run).front.best(ms=ms)
    model, side = pick.load_model(), pick.arch.size
    meta = {entry.key: entry.value for entry in onnx.load(pick.onnx).metadata_props}
    mean, std = ([float(part) for part in meta[name].split()] for name in ("mean", "std"))
    data = ImageFolder(images, transforms.Compose([transforms.Resize(side), transforms.CenterCrop(side),
                                                   transforms.ToTensor(), transforms.Normalize(mean, std)]))
    replace_classifier(model, len(data.classes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    mean_loss = 0.0
    for epoch in range(epochs):
        losses = []
        for batch, labels in DataLoader(data, batch_size=16, shuffle=True, drop_last=True):
            loss = nn.functional.cross_entropy(model(batch), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
        mean_loss = fmean(losses)
        print(f"epoch {epoch + 1}: loss {mean_loss:.3f}")
    torch.save(model.state_dict(), out)
    return mean_loss


def replace_classifier(model: nn.Module, classes: int) -> None:
    """Puts a new linear layer in the place of the last one."""
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    name, last = list(linear.items())[-1]
    model.set_submodule(name, nn.Linear(last.in_features, classes))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name, kind in {"run": Path, "images": Path, "ms": float, "out": Path}.items():
        parser.add_argument(name, type=kind)
    main(**vars(parser.parse_args()))
