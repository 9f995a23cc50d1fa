"""Peak memory of a whole search by the length of its training: it must not grow with the number of epochs.

    python benchmarks/memory.py --epochs 5 50

The tiny space on digits, one thread, each search in a process forked from one that has loaded PyTorch; epochs are those
of the supernet's search, with pruning, and of the fine-tuning of its picks. Peak resident memory of the process.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
from pathlib import Path

import torch
import yaml

from nas.pipeline import supernet

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from tiny_search import SHORT, config_of, searched
from tiny_space import TINY


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, nargs="+", default=[5, 50])
    options = parser.parse_args()
    torch.set_num_threads(1)
    supernet.CHECKPOINT_EVERY_S = 0.0  # a checkpoint every epoch, as in a long search
    for epochs in options.epochs:
        print(f"{epochs} epochs: {peak_mib(epochs):.1f} MiB", flush=True)


def peak_mib(epochs: int) -> float:
    reads, writes = os.pipe()
    if (child := os.fork()) == 0:
        os.write(writes, str(run(epochs)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    return int(os.read(reads, 64)) / 1024


def run(epochs: int) -> int:
    """KiB at the most, as Linux counts them."""
    with tempfile.TemporaryDirectory() as folder:
        space = Path(folder, "tiny.yaml")
        space.write_text(yaml.safe_dump(TINY))
        SHORT[:] = [word for word in SHORT if not word.startswith(("train.search_epochs", "train.finetune_epochs"))]
        longer = [f"train.search_epochs={epochs}", f"train.finetune_epochs={epochs}"]
        searched(config_of(space, *longer), Path(folder, "run"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
