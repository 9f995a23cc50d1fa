"""Divides images into splits: train, gate, select and test are disjoint, stratified and the same in every process.

What a folder gives is used as it is named; the rest is cut from its training images. With ``val/`` and no ``test/``
networks are chosen on one half of ``val/`` and tested on the other.
"""

from __future__ import annotations

import numpy as np

from nas.errors import UserError, setting
from nas.training.sources import Indices, Source

SPLITS = ("train", "gate", "select", "test")
HELD_OUT, MOST_HELD_OUT = 0.1, 5000  # gate and select each
FEW, ENOUGH = 300, 1000  # a front cannot be told apart on fewer: data of at least ENOUGH give up to a fifth
TEST = 0.2  # where the source has no test split


def divide(source: Source, seed: int, limit: int | None = None) -> dict[str, Indices]:
    """Returns split -> sorted image numbers; disjoint, stratified, every class in each as far as its images reach."""
    labels, classes = source.labels, len(source.classes)
    if limit is not None and limit < 3 * classes:
        raise UserError(f"{setting('limit')}: {limit} is less than 3 images for each of the {classes} classes of "
                        f"{source.origin}; give {3 * classes} or more")
    pool, select, test = fixed_parts(source)
    rng = np.random.default_rng(seed)
    if limit is not None and limit < len(pool):
        pool, _ = take(labels, pool, limit, rng, keep=0)
    held_out = max(classes, _held_out(len(pool)))
    if select is None:
        select, pool = take(labels, pool, held_out, rng)
    elif len(select) > (most := min(limit or MOST_HELD_OUT, MOST_HELD_OUT)):
        select, _ = take(labels, select, most, rng, keep=0)
    gate, train = take(labels, pool, held_out, rng)
    splits = {"train": train, "gate": gate, "select": select, "test": test}
    if empty := [part for part, which in splits.items() if not len(which)]:
        raise UserError(f"{source.origin}: too few images, none left for {', '.join(empty)}; {images_needed(source)}")
    return splits


def fixed_parts(source: Source) -> tuple[Indices, Indices | None, Indices]:
    """Returns images to learn from, to choose networks on (if given apart) and to test on: the same for every seed.

    A run may continue from one of another seed, which must not have trained on the test images of this one.
    """
    labels, pool, select, test = source.labels, *map(source.pools.get, ("train", "select", "test"))
    assert pool is not None
    if test is not None:
        return pool, select, test
    if select is not None:  # a class of one image is tested
        return pool, *take(labels, select, len(select) // 2, np.random.default_rng(0))
    test, pool = take(labels, pool, max(len(source.classes), round(TEST * len(pool))), np.random.default_rng(0))
    return pool, None, test


def origins(source: Source) -> dict[str, str]:
    """Returns split -> where its images come from, in words."""
    train, select, test = (source.parts.get(part, f"its own {part} images") for part in ("train", "select", "test"))
    words = dict.fromkeys(SPLITS, train if source.parts or len(source.pools) > 1 else "all images")
    if "test" in source.pools:
        words["test"] = test
    if "select" in source.pools:
        words["select"] = select
        if "test" not in source.pools:
            words |= {"select": f"one half of {select}", "test": f"the other half of {select}"}
    return words


def images_needed(source: Source) -> str:
    """Returns advice: how many images a class needs so that every split has one of it."""
    given = [part for part in ("select", "test") if part in source.pools]
    if given == ["select"]:
        return f"give at least 2 images a class in {source.parts['train']} and 2 in {source.parts['select']}"
    in_train = f" in {source.parts['train']}" if "train" in source.parts and given else ""
    return f"give at least {4 - len(given)} images a class{in_train}"


def _held_out(images: int) -> int:
    """Returns how many of the training images gate and select get each."""
    few = min(FEW, round(2 * HELD_OUT * images)) if images >= ENOUGH else 0
    return min(MOST_HELD_OUT, max(round(HELD_OUT * images), few))


def take(
    labels: Indices, pool: Indices, count: int, rng: np.random.Generator, keep: int = 1
) -> tuple[Indices, Indices]:
    """Draws at most ``count`` images of ``pool``, every class in proportion; returns (drawn, rest), sorted.

    A class gives at least one image if ``count`` allows, and keeps ``keep``.
    """
    classes, counts = np.unique(labels[pool], return_counts=True)
    order = rng.permutation(pool)
    wanted = zip(classes, quotas(counts, count, keep), strict=True)
    drawn = np.sort(np.concatenate([order[labels[order] == label][:n] for label, n in wanted]))
    return drawn, np.setdiff1d(pool, drawn)


def quotas(counts: Indices, total: int, keep: int) -> Indices:
    """Shares ``total`` out in proportion to ``counts`` (largest remainder), each from 1 to its count - ``keep``."""
    ideal = counts * (total / counts.sum())
    quota: Indices = np.clip(np.floor(ideal).astype(np.int64), 1, counts - keep)
    for index in np.argsort(np.floor(ideal) - ideal, kind="stable"):
        quota[index] += quota.sum() < total and quota[index] < counts[index] - keep
    while quota.sum() > total:  # the ones that were raised to 1
        quota[quota.argmax()] -= 1
    return quota
