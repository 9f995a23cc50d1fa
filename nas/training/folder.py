"""Reads a folder of images with one sub-folder a class: its classes, files and splits.

Layouts: ``DIR/CLASS/*.png``, or ``DIR/train/CLASS/...`` with ``val/``, ``test/`` or both beside it, under any of the
names of ``NAMES`` in any case. Images may lie deeper inside a class. What is no image is left out and counted
(``listing.py``); folders beside splits are ignored and named.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nas.errors import UserError
from nas.training.listing import SUFFIXES, Lister, name_of
from nas.training.pixels import decoded, shortest_sides, whites
from nas.training.sources import Source

NAMES = {"train": ("train", "training"), "select": ("val", "valid", "validation"), "test": ("test", "testing")}
PIXELS = "upright, centre square, resized (bilinear, antialiased), RGB without transparency, first frame"
_PART = {name: part for part, names in NAMES.items() for name in names}
_PROBED = 64  # images whose headers settle the default size


@dataclass(frozen=True)
class FolderSplits:
    """Says which folder is which pool of images, and which folders beside them are none."""

    parts: dict[str, Path]  # only "train" where the class folders stand directly in the folder
    ignored: tuple[str, ...] = ()


def folder(path: Path) -> Source:
    """Returns the classes, files and splits of a folder; pixels are decoded when a split is read.

    Images are numbered train, val, test, class by class, by path. Raises UserError, naming the path, for a folder that
    is missing or a file, has no class folders or one, an empty class, or parts whose classes differ, and for one that
    holds splits under names that are not known.
    """
    splits, lister = _find_splits(path), Lister()
    if splits.parts != {"train": path}:
        lister.folders(path)  # counts the files beside the splits
    parts = {part: _listing(where, lister) for part, where in splits.parts.items()}
    classes = list(parts["train"])
    for part, listing in parts.items():
        _same_classes(path, splits.parts[part].name, classes, list(listing))
    files: list[Path] = []
    labels: list[int] = []
    pools = {}
    for part, listing in parts.items():
        pools[part] = np.arange(len(files), len(files) + sum(map(len, listing.values())))
        files += [file for images in listing.values() for file in images]
        labels += [label for label, images in enumerate(listing.values()) for _ in images]
    return Source(
        name=path.resolve().name,
        origin=str(path),
        classes=tuple(classes),
        labels=np.array(labels, dtype=np.int64),
        pools=pools,
        size=default_size([files[i] for i in np.linspace(0, len(files) - 1, _PROBED).astype(int)]),
        augment="flip-crop",
        pixels=PIXELS,
        read=lambda which, size, whites: decoded([files[i] for i in which], size, whites),
        whites=lambda which: whites([files[i] for i in which]),
        parts={part: f"{where.name}/" for part, where in splits.parts.items() if where != path},
        ignored=splits.ignored,
        skipped=dict(lister.skipped.most_common()),
    )


def default_size(files: list[Path]) -> int:
    """Returns 224 if the median short side is that or more, else that side rounded down to a multiple of 32."""
    shortest = int(np.median(shortest_sides(files)))
    return 224 if shortest >= 224 else max(32, shortest // 32 * 32)


def _find_splits(path: Path) -> FolderSplits:
    """Finds the splits of a folder. Raises UserError for what is no folder, and for splits of ambiguous names."""
    if path.is_file():
        raise UserError(f"{path}: a file, not a folder of images")
    if not path.is_dir():
        raise UserError(f"{path}: no such folder")
    inside = Lister().folders(path)
    named: dict[str, list[Path]] = {part: [] for part in NAMES}
    ignored: list[Path] = []
    for where in inside:
        part = _PART.get(where.name.lower())
        (named[part] if part else ignored).append(where)
    if inside and not ignored and not named["train"]:
        raise UserError(f"{path}: {inside[0].name}/ but no train/; give the folder that holds both")
    # a class may be called "train": then it stands among other classes and has no folders inside
    if not named["train"] or (ignored and not any(Lister().folders(where) for where in named["train"])):
        return FolderSplits({"train": path})
    for part, places in named.items():
        if len(places) > 1:
            raise UserError(f"{path}: {' and '.join(f'{where.name}/' for where in places)} are both named as the "
                            f"{NAMES[part][0]} split is; move or rename all but one")
    parts = {part: places[0] for part, places in named.items() if places}
    if len({where.resolve() for where in parts.values()}) < len(parts):
        raise UserError(f"{path}: {', '.join(f'{where.name}/' for where in parts.values())}: two of them are the same "
                        "folder by a link, and would share their images; remove one")
    return FolderSplits(parts, tuple(f"{where.name}/" for where in ignored))


def _refuse_splits(path: Path, folders: list[Path]) -> None:
    """Raises UserError where all folders, which would be the classes, hold folders of the same names."""
    shared: set[str] = set()
    for where in folders:  # of ordinary classes only the first is looked into
        inside = {name_of(folder) for folder in Lister().folders(where)}
        shared = inside if where == folders[0] else shared & inside
        if len(shared) < 2:
            return
    if len(folders) > 1:
        names = ", ".join(f"{where.name}/" for where in folders[:4])
        raise UserError(
            f"{path}: {names} all hold the folders {', '.join(sorted(shared)[:4])}, so they look like splits, not "
            "classes; call them train/, val/ and test/, or give one of them alone; if they are classes, move their "
            "images up into them")


def _listing(where: Path, lister: Lister) -> dict[str, list[Path]]:
    """Returns class -> its images, both sorted by name."""
    folders = lister.folders(where)
    _refuse_splits(where, folders)
    listing = {name_of(inside): lister.images(inside) for inside in folders}
    if len(listing) < len(folders):
        raise UserError(f"{where}: two class folders have the same name in two forms of Unicode; rename one")
    if len(listing) < 2:
        raise UserError(f"{where}: {_too_few(where, folders)}")
    for name, images in listing.items():
        if not images:
            raise UserError(f"{where / name}: no images ({', '.join(sorted(SUFFIXES))}); fill the folder, or remove "
                            "the class, from every split")
    return listing


def _too_few(where: Path, folders: list[Path]) -> str:
    """Returns what to say of a folder with fewer than two class folders."""
    needed = "at least two classes are needed, one folder each"
    if folders:
        nested = f", or give {folders[0]}" if len(Lister().folders(folders[0])) > 1 else ""
        return f"only the class folder {name_of(folders[0])!r}; {needed}{nested}"
    if where.name.lower() in _PART and Lister().images(where):
        return (f"no class folders, but images directly in what is named as a split; {needed}; if {where.name}/ is a "
                "class, rename it")
    return f"no class folders; {needed}"


def _same_classes(path: Path, part: str, classes: list[str], others: list[str]) -> None:
    only_train, only_here = sorted(set(classes) - set(others)), sorted(set(others) - set(classes))
    if only_train or only_here:
        missing = f"{part} lacks {', '.join(map(repr, only_train))}" if only_train else ""
        extra = f"{part} alone has {', '.join(map(repr, only_here))}" if only_here else ""
        raise UserError(f"{path}: the classes differ: {'; '.join(filter(None, (missing, extra)))}; give every split "
                        "the same class folders")
