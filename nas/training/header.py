"""Describes a command's images before it does anything long: which, how many, from where, how read, with warnings."""

from __future__ import annotations

from collections.abc import Iterator

from nas.errors import setting
from nas.training import augment as augmentation
from nas.training import mirror
from nas.training.data import Data
from nas.training.folder import NAMES
from nas.training.splits import SPLITS

FLAT = 16  # of 256 levels: fewer are nearly one colour
NAMED = 5  # kinds of files, folders or classes that a line names


def data_lines(data: Data, augment: str | None = None, key: str = "train.augment", on_top: str = "") -> list[str]:
    """Returns lines about labelled images, how they are augmented (setting ``key`` changes it), then warnings.

    ``on_top`` says what else training does to them. Where images are mirrored, whether their classes survive it is
    tried: that takes a second or two.
    """
    lines = [f"{data.name}: {_count(data)} images of {len(data.source.classes)} classes at {data.size}x{data.size}, "
             f"from {data.source.origin}",
             f"splits: {_splits(data)}",
             f"smallest class: {_class(data, _smallest(data.source.class_counts))}",
             "pixels: " + ", ".join(filter(None, (data.source.pixels, str(data.whites))))]
    more = [f"on top: {on_top}"] if on_top else []
    return [*lines, *_augmentation(data, augment, key), *more, *_left_out(data), *_scarce(data, augment), *_flat(data),
            *_cut(data), *_mirrored(data, augment, key)]


def unlabeled_lines(data: Data) -> list[str]:
    """Returns lines about images without labels, from which exits learn."""
    sizes = f"{len(data.learn):,} to learn from, {len(data.select):,} for thresholds, {len(data.test):,} to report on"
    lines = [f"{data.name}: {sum(data.source.sizes.values()):,} images without labels at {data.size}x{data.size}, from "
             f"{data.source.origin}: {sizes}",
             "pixels: " + ", ".join(filter(None, (data.source.pixels, str(data.whites))))]
    return [*lines, *_augmentation(data, data.augment, "augment"), *_left_out(data), *_cut(data)]


def _count(data: Data) -> str:
    """Returns how many images are used, as ``60 of 100`` where a limit leaves some out."""
    used, available = sum(data.source.sizes.values()), data.source.available
    return f"{used:,} of {available:,}" if used < available else f"{used:,}"


def _splits(data: Data) -> str:
    """Returns splits and folders: ``train 180, gate 20 from train/; select 40 from one half of val/; ...``."""
    alike: dict[str, list[str]] = {}
    for part in SPLITS:
        alike.setdefault(data.source.splits[part], []).append(f"{part} {data.source.sizes[part]:,}")
    return "; ".join(f"{', '.join(parts)} from {origin}" for origin, parts in alike.items())


def _augmentation(data: Data, kind: str | None, key: str) -> Iterator[str]:
    if kind is not None:
        others = " or ".join(other for other in augmentation.KINDS if other != kind)
        yield f"augmentation: {augmentation.describe(kind, data.size)}; {setting(key, others)} changes it"


def _left_out(data: Data) -> Iterator[str]:
    """Yields what of a folder is not used."""
    if skipped := data.source.skipped:
        texts = [f"{what} ({count:,})" for what, count in skipped.items()]
        yield f"left out: {_shortened(texts)}"
    if ignored := data.source.ignored:
        names = "; ".join(", ".join(names) for names in NAMES.values())
        yield f"ignored beside the splits: {_shortened(ignored)} (splits are called {names})"


def _flat(data: Data) -> Iterator[str]:
    """Warns of a range that is a small part of what 8 bits hold: most of what the files knew is lost."""
    darkest, brightest = data.source.reach
    if brightest - darkest < FLAT:
        what = "black" if brightest < FLAT else "of one brightness"
        yield (f"warning: the images are nearly {what}: 99.8 % of their pixels are {darkest} to {brightest} of 255; "
               "save them so that black is the smallest and white the largest value")


def _cut(data: Data) -> Iterator[str]:
    if any(data.source.cut.values()):
        texts = ", ".join(f"{pool} {count:,}" for pool, count in data.source.cut.items() if count)
        yield f"warning: images with values above white are cut there ({data.whites}): {texts}"


def _mirrored(data: Data, kind: str | None, key: str) -> Iterator[str]:
    if kind is not None and augmentation.KINDS[kind][1]:
        text = mirror.warning(data.learn.images, data.learn.labels, data.classes, key)
        yield from [text] if text else []


def _scarce(data: Data, kind: str | None) -> Iterator[str]:
    """Warns of classes missing from a split: they are not learnt, not looked at in choosing, or not tested."""
    counts = data.source.class_counts
    scarce = [label for label in range(len(data.source.classes)) if not all(counts[part][label] for part in SPLITS)]
    if scarce and kind is not None:
        limited = f" or raise {setting('limit')}" if data.source.limit else ""
        texts = [_class(data, label) for label in scarce[:NAMED]]
        more = f"; and {len(scarce) - NAMED} more" if len(scarce) > NAMED else ""
        yield (f"warning: too few images to be in every split: {'; '.join(texts)}{more}; "
               f"{data.source.needed}{limited}")


def _smallest(counts: dict[str, list[int]]) -> int:
    totals = [sum(of_class) for of_class in zip(*(counts[part] for part in SPLITS), strict=True)]
    return totals.index(min(totals))


def _class(data: Data, label: int) -> str:
    """Returns a class with its number of images, as ``'bee': 20 images (train 14, gate 2, select 2, test 2)``."""
    counts = {part: data.source.class_counts[part][label] for part in SPLITS}
    total = sum(counts.values())
    shares = ", ".join(f"{part} {count:,}" for part, count in counts.items())
    return f"{data.source.classes[label]!r}: {total:,} {'image' if total == 1 else 'images'} ({shares})"


def _shortened(texts: list[str]) -> str:
    more = f" and {len(texts) - NAMED} more" if len(texts) > NAMED else ""
    return ", ".join(texts[:NAMED]) + more
