"""Finds which output of a network each class of some images is, by the same rule for every command."""

from __future__ import annotations

import difflib
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from nas.errors import UserError, setting
from nas.training.data import Data, Split


@dataclass(frozen=True)
class Outputs:
    """Holds the classes of a network in the order of its outputs, and the output of each class of some images.

    ``by`` says how the one was found from the other.
    """

    names: tuple[str, ...]
    columns: tuple[int, ...]
    by: str

    def labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Translates labels int64 [n] of the images into numbers of the network's outputs, int64 [n]."""
        return torch.tensor(self.columns, dtype=torch.int64)[labels]

    def applied(self, data: Data) -> Data:
        """Returns the same images, labelled with the network's classes."""
        def split(part: Split) -> Split:
            return Split(part.images, self.labels(part.labels))

        learn, count = split(data.learn), len(data.train)
        return replace(data, classes=self.names, learn=learn, train=learn.part(0, count),
                       gate=learn.part(count, len(learn)), select=split(data.select), test=split(data.test))


def names_in(metadata: Mapping[str, str]) -> list[str] | None:
    """Returns the names of a network's classes, in the order of its outputs, where the metadata of its file has them.
    """
    return metadata["classes"].split("\n") if "classes" in metadata else None


def outputs(where: object, count: int, known: Sequence[str] | None, classes: Sequence[str]) -> Outputs:
    """Matches a network of ``count`` outputs, whose classes are ``known``, with images of ``classes`` (sorted by name).

    Raises UserError, which begins with ``where``, where that is ambiguous.
    """
    if known is not None:
        if len(known) != count:
            raise UserError(f"{where}: names {len(known)} classes and has {count} outputs; {_way_out()}")
        names = [unicodedata.normalize("NFC", name) for name in known]
        wanted = [unicodedata.normalize("NFC", name) for name in classes]
        if set(wanted) <= set(names):
            return Outputs(tuple(known), _columns(where, names, wanted), "by name")
        if not _numbers(known):  # 0, 1, 2, ... stand for names that were not known
            raise _unknown(where, [name for name in wanted if name not in names], names)
    if len(classes) > count:
        raise UserError(f"{where}: {count} outputs, but the images have {len(classes)} classes, more than the network "
                        "knows: take images of its classes alone")
    if all(name.isascii() and name.isdigit() and int(name) < count for name in classes):
        return _by_number(where, count, classes)
    if len(classes) != count:
        raise UserError(f"{where}: {count} outputs without names, but the images have {len(classes)} classes; "
                        f"{_way_out()}")
    return Outputs(tuple(classes), tuple(range(count)), "by order: the network does not name its classes, and the "
                   "images' are taken in the order of their names")


def read_names(path: Path | None) -> list[str] | None:
    """Reads the classes of a network from a file, one a line.

    Raises UserError for a file that cannot be read or says nothing.
    """
    if path is None:
        return None
    try:
        names = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text in UTF-8"
        raise UserError(f"{setting('classes', path)}: {reason}; expected the network's classes, one a line") from None
    names = [name.strip() for name in names]
    while names and not names[-1]:
        names.pop()
    if not names or "" in names:
        empty = f"line {names.index('') + 1}" if names else "the file"
        raise UserError(f"{setting('classes', path)}: {empty} is empty; expected the network's classes, one a line")
    return names


def _by_number(where: object, count: int, classes: Sequence[str]) -> Outputs:
    """Matches classes whose names are numbers with the outputs of these numbers.

    Raises UserError where sorting the names as texts, as trainers do, gives another order of all classes.
    """
    numbers = tuple(map(int, classes))
    if len(classes) == count and numbers != tuple(range(count)):
        raise UserError(f"{where}: does not name its {count} classes; are those of the images, {_few(classes)}, in "
                        f"this order (sorted as texts) or by number? {_way_out()}")
    names = dict(zip(numbers, classes, strict=True)) if len(set(numbers)) == len(classes) else {}
    if not names:
        raise UserError(f"{where}: classes {_few(classes)} are the same numbers twice; {_way_out()}")
    return Outputs(tuple(names.get(index, str(index)) for index in range(count)), numbers,
                   "by number: the network does not name its classes, and the images' are numbers of outputs")


def _columns(where: object, names: Sequence[str], wanted: Sequence[str]) -> tuple[int, ...]:
    counts = Counter(names)
    if twice := [name for name in wanted if counts[name] > 1]:
        raise UserError(f"{where}: has several outputs named {twice[0]!r}; {_way_out()}")
    place = {name: index for index, name in enumerate(names)}
    return tuple(place[name] for name in wanted)


def _unknown(where: object, strange: Sequence[str], names: Sequence[str]) -> UserError:
    close = difflib.get_close_matches(strange[0], names, n=1)
    guess = f"did you mean {close[0]!r}? " if close else ""
    return UserError(f"{where}: does not know the class {strange[0]!r} of these images; {guess}its classes are "
                     f"{_few(names)}")


def _numbers(names: Sequence[str]) -> bool:
    return list(names) == [str(index) for index in range(len(names))]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:10])}, ... {names[-1]}"


def _way_out() -> str:
    return f"give the network's classes with {setting('classes', 'FILE')}, one a line in the order of its outputs"
