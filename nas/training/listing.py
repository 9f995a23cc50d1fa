"""Walks a folder for every command that reads images: finds which files are images, and counts what is left out."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from nas.errors import UserError

SUFFIXES = frozenset({".apng", ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
                      ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"})
SYSTEM = frozenset({"__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information",
                    "thumbs.db", "desktop.ini"})  # left by file managers and network storage


_Place = tuple[int, int]  # the device and the number of a folder, which links share with what they lead to


class Lister:
    """Lists folders and counts in ``skipped`` what it leaves out, by reason.

    Links are followed, to files and to folders, but no folder is entered twice in one walk, and none that holds the
    place where the walk began or was named by ``folders``: images of another class would be in this one, too. A link
    that leads nowhere counts as an image if it is named like one, so that whoever opens it says which it is; pipes,
    sockets and devices are never opened.
    """

    def __init__(self) -> None:
        self.skipped: Counter[str] = Counter()
        self._named: dict[_Place, Path] = {}

    def folders(self, where: Path) -> list[Path]:
        """Returns the folders directly inside, by name; files beside them are counted as skipped."""
        folders, images = self._inside(where)
        if images:
            self.skipped["images outside the class folders"] += len(images)
        for folder in (where, *folders):
            self._named.setdefault(_place(folder), folder)
        return sorted(folders, key=name_of)

    def images(self, where: Path) -> list[Path]:
        """Returns all images in a folder and in the folders within, by path.

        Raises UserError for a folder that ``folders`` named, too, under another path.
        """
        place = _place(where)
        if (same := self._named.get(place, where)) != where:
            raise UserError(f"{where}: the same folder as {same} by a link, so its images would count twice; remove "
                            "one of the two")
        above = {_place(parent) for parent in where.resolve().parents}
        return sorted(self._images(where, (above | set(self._named)) - {place}))

    def _images(self, where: Path, entered: set[_Place]) -> Iterator[Path]:
        here = _place(where)
        if here in entered:
            self.skipped["links to folders that are listed already"] += 1
            return
        entered.add(here)
        folders, images = self._inside(where)
        yield from images
        for folder in sorted(folders):
            yield from self._images(folder, entered)

    def _inside(self, where: Path) -> tuple[list[Path], list[Path]]:
        """Returns folders and images directly in a folder, and counts what it skips."""
        folders, images = [], []
        try:
            names = sorted(os.listdir(where))
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be listed ({error.strerror})") from error
        for name in names:
            path = where / name
            mode = _mode(path)
            is_folder, is_image = mode is not None and stat.S_ISDIR(mode), path.suffix.lower() in SUFFIXES
            if name.startswith(".") or name.lower() in SYSTEM:
                self.skipped[f"hidden or system {'folders' if is_folder else 'files'}"] += 1
            elif is_folder:
                folders.append(path)
            elif mode is not None and not stat.S_ISREG(mode):
                self.skipped["pipes, sockets or devices"] += 1
            elif is_image:
                images.append(path)
            else:
                self.skipped[f"{path.suffix.lower()} files" if path.suffix else "files without a suffix"] += 1
        return folders, images


def name_of(folder: Path) -> str:
    """Returns a folder's name in Unicode's composed form: macOS writes ``e`` and an accent where others write ``é``.

    Raises UserError for a name that is no UTF-8, or has a line break: files name their classes one a line.
    """
    name = unicodedata.normalize("NFC", folder.name)
    if "\n" in name or any("\ud800" <= letter <= "\udfff" for letter in name):  # how Python keeps other bytes
        raise UserError(f"{str(folder)!r}: the name has a line break or bytes that are no UTF-8; rename the folder")
    return name


def _place(folder: Path) -> _Place:
    here = folder.stat()
    return here.st_dev, here.st_ino


def _mode(path: Path) -> int | None:
    """Returns the kind of what a path leads to; None for a link to nothing or to itself."""
    try:
        return path.stat().st_mode
    except OSError:
        return None
