"""Few networks on many images, or many on few? At equal images judged, on the networks that are judged.

    python experiments/selection-cifar10/images.py

The fronts of ``ilp`` are chosen by the loss on the 500 images seen, or on the 2,000 others, which their value is taken
from: in favour of the 2,000.
"""

from __future__ import annotations

import argparse
import contextlib

from replay import BUDGETS, METHODS, Bench
from report import spread
from rivals import Oracle, SpentError
from stored import judged

from nas.select.problem import budgets

SEEDS, NETWORKS = 10, (100, 300)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    bench = Bench(*judged())
    kept = bench.judged
    best = bench.value(range(len(bench.ms)), kept.unseen_accuracy)
    for method in ("ilp, 6 budgets", "ilp, 12 budgets"):
        for n in NETWORKS:
            for networks, images, loss in ((n, 500, kept.loss), (n // 4, 2000, kept.unseen_loss)):
                losses, found = {pick: float(loss[i]) for pick, i in bench.row.items()}, []
                for seed in range(SEEDS):
                    oracle = Oracle(bench.problem, losses, networks)
                    with contextlib.suppress(SpentError):
                        METHODS[method](bench)(oracle, budgets(bench.problem, BUDGETS), seed)
                    found.append(100 * bench.value([bench.row[pick] for pick in oracle.asked], -loss) / best)
                print(f"{method}: {networks} networks on {images:,} images: {spread(found, '{:.2f}')} % of the best")


if __name__ == "__main__":
    main()
