"""Which of torchvision's classifiers exits can be added to: ``nas exits NAME --list`` on all of them.

    python benchmarks/torchvision_exits.py [NAME ...] [--target gpu-v100]

Without names it takes all of ``torchvision.models``, with random weights and at the side that torchvision evaluates its
own weights at. It prints a row for each: the places for exits and the share of the multiply-adds up to each, the
multiply-adds beside those that torchvision states for its weights, with ``--target`` the milliseconds of the whole, or
why the network is refused; then how many of each there are. An exception that is not a refusal is a row of its own
and makes the script fail.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Sequence

from torchvision import models

from nas.errors import UserError
from nas.pipeline.exits.places import places_of_file
from nas.pipeline.exits.weights import classifier_names

CLOSE = 0.02  # torchvision rounds its figures, and counts products that are no layers in some transformers


def row(name: str, target: str | None) -> tuple[str, str]:
    """``runs``, ``refused`` or ``failed``, and what the table says of the network."""
    try:
        found = places_of_file(name, None, None, target)
    except UserError as error:
        return "refused", str(error).removeprefix(f"{name}: ")
    except Exception as error:  # what this script looks for
        return "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    stated = models.get_model_weights(name).DEFAULT.meta["_ops"]
    places = ", ".join(f"{place.shape[0]} x {place.shape[1]}^2 at {100 * place.macs_share:.0f} %"
                       for place in found.places)
    off = "" if abs(found.macs / 1e9 - stated) <= CLOSE * stated else " (differs)"
    ms = f"; {found.ms:.3f} ms" if found.ms is not None else ""
    return "runs", (f"{found.size} pixels, {found.macs / 1e9:.3f} GMACs, torchvision says {stated:.3f}{off}{ms}; "
                    f"{places}")


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where nothing failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--target")
    given = parser.parse_args(arguments)
    counts = dict.fromkeys(("runs", "refused", "failed"), 0)
    print("| network | | places for exits, or why there are none |\n|---|---|---|")
    for name in given.names or classifier_names():
        kind, text = row(name, given.target)
        counts[kind] += 1
        print(f"| {name} | {kind} | {text} |", flush=True)
        gc.collect()
    print(f"\n{sum(counts.values())} networks: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    return int(counts["failed"] > 0)


if __name__ == "__main__":
    sys.exit(main())
