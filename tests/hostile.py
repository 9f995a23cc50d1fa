"""Files as nobody should write them: hypothesis strategies that break a valid one, and what must come of it.

Few examples by default; ``NAS_EXAMPLES=1000 pytest tests/test_hostile.py`` tries as many a parser.
"""

import copy
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from nas.cli.output import one_line
from nas.errors import UserError
from nas.text import printable

EXAMPLES = int(os.environ.get("NAS_EXAMPLES", "20"))
tried = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
slowly_tried = settings(tried, max_examples=max(1, EXAMPLES // 4))  # where an example takes a tenth of a second

TEXTS = ("", " ", "\x00", "a\nb", "nan", "../../etc", "é" * 40, "x" * 300, "1e999", "-1", "skip", "ghost(cheap=3)")
NUMBERS = (0, -1, 1, 2, 10**30, -(2**63), 1e308, 5e-324, -0.5, math.nan, math.inf, -math.inf)
LEAVES = st.one_of(st.none(), st.booleans(), st.sampled_from(TEXTS), st.sampled_from(NUMBERS), st.integers(),
                   st.floats(), st.text(max_size=6))
VALUES = LEAVES | st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.text(max_size=4), inner, max_size=3), max_leaves=4) | st.integers(20, 200).map(lambda depth: _nested(depth))
SNIPPETS = (b"\x00", b"\xff\xfe", b"[" * 20_000, b"{", b"}", b"]", b'"', b"\n", b"\r", b"\t", b",", b";", b"=",
            b"1e999", b"NaN", b"-", b"&a [*a]", b"*a", b"!!python/name:os.system x", b"? [a]\n: 1\n", b"<<: 1\n",
            b"- ", b"%", b"2001-99-99", b"1:30", b"0o7", b"9" * 5000, b"${x}", b"#")


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """Plain data with one to three changes: a part removed, renamed, doubled, of another type, NaN, huge, deep."""
    box = {"": copy.deepcopy(value)}  # so that the whole can be replaced, too
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
        place, key = draw(_places(box))
        what = draw(st.sampled_from(("value", "value", "value", "remove", "rename", "double", "wrap")))
        if what == "remove" and place is not box:
            del place[key]
        elif what == "rename" and isinstance(place, dict) and place is not box:
            place[draw(st.sampled_from((*map(str, TEXTS), f"{key}s")))] = place.pop(key)
        elif what == "double" and isinstance(place, list):
            place.insert(key, copy.deepcopy(place[key]))
        elif what == "wrap":
            place[key] = draw(st.sampled_from(([place[key]], {"a": place[key]}, str(place[key]))))
        else:
            place[key] = draw(VALUES)
    return box[""]


@st.composite
def _places(draw: st.DrawFn, box: Any) -> tuple[Any, Any]:
    """A container in it and a key there, as likely near the top as in the depth."""
    key: Any = ""
    place = box
    while isinstance(inner := place[key], dict | list) and inner and draw(st.integers(0, 4)):
        place = inner
        key = draw(st.sampled_from(list(inner))) if isinstance(inner, dict) else draw(st.integers(0, len(inner) - 1))
    return place, key


@st.composite
def torn(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes cut short, flipped, doubled, in another encoding, or with something strange in them."""
    at = draw(st.integers(0, len(content)))
    end = draw(st.integers(at, min(len(content), at + 40)))
    text = content.decode("latin-1")
    return draw(st.sampled_from((
        content[:at], content[at:], content[:at] + content[end:], content[:at] + content, content + content,
        content[:at] + draw(st.sampled_from(SNIPPETS)) + content[end:],
        content[:at] + draw(st.binary(min_size=1, max_size=4)) + content[end:],
        text.encode("utf-16"), b"\xef\xbb\xbf" + content, content.replace(b"\n", b"\r\n"), b"")))


def json_files(value: Any) -> st.SearchStrategy[bytes]:
    """Broken forms of a JSON file, by content and by bytes, and any bytes."""
    whole = json.dumps(value).encode()
    return changed(value).map(lambda other: json.dumps(other).encode()) | torn(whole) | st.binary(max_size=60)


def yaml_files(value: Any) -> st.SearchStrategy[bytes]:
    whole = yaml.safe_dump(value).encode()
    return changed(value).map(lambda other: yaml.safe_dump(other).encode()) | torn(whole) | st.binary(max_size=60)


def read_or_refused(read: Callable[[], Any], *names: str) -> Any:
    """What ``read`` returns, None where it refuses: in one line, which has one of the ``names`` in it.

    Whatever else it raises is a mistake of ours and goes on.
    """
    try:
        return read()
    except (UserError, OSError) as error:
        line = one_line(error)  # None of an OSError that names no file
        if not line:
            raise
        shown = [part for name in names for part in (name, repr(name)[1:-1], printable(" ".join(name.split())))]
        assert line.isprintable() and any(part in line for part in shown), f"{line[:1000]!r} names none of {names}"
        return None


def reads_as(read: Any, written: Any) -> bool:
    """Says whether a reader returned what a file says: every key with its value, as JSON.

    A key that is null may be missing, a number may be a text (``"NaN"``), and a single value the list of it.
    """
    if isinstance(written, dict):
        return isinstance(read, dict) and all(reads_as(read[key], part) if key in read else part is None
                                              for key, part in written.items())
    if isinstance(written, list):
        return isinstance(read, list) and len(read) == len(written) and all(map(reads_as, read, written))
    if type(read) is not type(written) and {type(read), type(written)} <= {str, int, float}:  # "NaN", 10**30
        read, written = float(read), float(written)
    return bool(read == written) or read == [written] or (read != read and written != written)  # NaN alone


def changed_keys(before: Any, after: Any) -> set[str] | None:
    """Returns the keys on the way to whatever differs between two JSON values: none where it is the whole.

    None where nothing differs.
    """
    if isinstance(before, dict) and isinstance(after, dict):
        pairs = {key: (before.get(key, ...), after.get(key, ...)) for key in before.keys() | after.keys()}
        parts = {key: changed_keys(*pair) for key, pair in pairs.items()}
        keys = [{key} | inner for key, inner in parts.items() if inner is not None]
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        keys = [inner for pair in zip(before, after, strict=True) if (inner := changed_keys(*pair)) is not None]
    else:
        return None if before == after and type(before) is type(after) else set()
    return set().union(*keys) if keys else None


def put_back(folder: Path) -> Callable[[], None]:
    """Remembers all files of a folder; the function that it returns makes them as they were."""
    before = {path: path.read_bytes() for path in _files(folder)}

    def restore() -> None:
        for path in [path for path in _files(folder) if path not in before]:
            path.unlink()
        for path, content in before.items():
            if not path.is_file() or path.read_bytes() != content:
                path.write_bytes(content)

    return restore


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
