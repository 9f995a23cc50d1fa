"""Would scores of pairs of operators rank networks better than additive ones? On the networks that are judged.

    python experiments/selection-cifar10/pairs.py

Ridge fits on random networks and their loss on the images seen; Kendall's tau with the loss on the unseen images over
200 networks that no fit has seen. Pairs are fitted to what the additive fit of ``nas.select`` leaves over, which was
the best of the ways tried; "every network" fits all, without a penalty: what is the most that such scores can say.
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np
from report import HELD_OUT, spread
from scipy.stats import kendalltau
from stored import Array, judged, picks

from nas.select.scores import ridge, ridge_weights, totals

SEEDS, FITTED = 10, (50, 100, 300)


def pairs_of(columns: list[Array], pairs: list[tuple[int, int]]) -> Array:
    """[networks, features]: which two operators a network has, of each pair of slots."""
    return np.hstack([(columns[i][:, :, None] * columns[j][:, None, :]).reshape(len(columns[i]), -1)
                      for i, j in pairs])


def explained(x: Array, y: Array) -> tuple[float, Array]:
    """R^2 and predictions of least squares over everything."""
    x, centred = x - x.mean(0), y - y.mean()
    found = x @ np.linalg.lstsq(x, centred, rcond=None)[0]
    return 1 - float(((centred - found) ** 2).sum() / (centred**2).sum()), found


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    stored, figures = judged()
    problem, every = stored.restricted, picks(stored)
    rows = np.array([[pick[slot] for slot in stored.free] for pick in every])
    slots = range(rows.shape[1])
    columns = [np.eye(row.max() + 1)[row] for row in rows.T]
    columns = [column - column.mean(0) for column in columns]
    additive = np.hstack(columns)
    kinds = {"neighbouring free slots": pairs_of(columns, list(itertools.pairwise(slots))),
             "any two free slots": pairs_of(columns, list(itertools.combinations(slots, 2)))}

    print(f"every network of {len(rows):,}:")
    for what, loss in (("seen", figures.loss), ("unseen", figures.unseen_loss)):
        for name, x in {"additive": additive,
                        **{f"and {kind}": np.hstack([additive, own]) for kind, own in kinds.items()}}.items():
            share, found = explained(x, loss)
            tau = kendalltau(found, figures.unseen_loss).statistic
            print(f"  fitted to the loss on {what} images, {name}: R^2 {share:.3f}, tau {tau:.3f}")
    for n in FITTED:
        taus: dict[str, list[float]] = {}
        for seed in range(SEEDS):
            order = np.random.default_rng(seed).permutation(len(rows))
            known, held = order[:n], order[-HELD_OUT:]
            scores = ridge(problem, [problem.arch(every[i]) for i in known], list(figures.loss[known]))
            predicted = -totals(scores, every)
            fits = {"additive": predicted}
            for kind, x in kinds.items():
                fits[f"and {kind}"] = predicted + x @ ridge_weights(x[known], (figures.loss - predicted)[known])
            for name, fit in fits.items():
                taus.setdefault(name, []).append(kendalltau(fit[held], figures.unseen_loss[held]).statistic)
        base = np.array(taus["additive"])
        print(f"{n} networks fitted, {SEEDS} seeds: " + "; ".join(
            f"{name} {spread(own, '{:.3f}')}" + (f" ({spread(list(np.array(own) - base), '{:+.3f}')})"
                                                 if name != "additive" else "") for name, own in taus.items()))


if __name__ == "__main__":
    main()
