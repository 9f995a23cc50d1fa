"""Loads operators that a user wrote: ``load`` runs their files, which register them beside the shipped ones.

Such a file is code and it is executed. So nothing but the command line (or a call of ``load``) names it: no space, no
configuration and no run that was received from somebody else can bring one in by itself.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nas.errors import UserError, setting
from nas.ops import registry
from nas.ops.registry import Block

SHAPE = ("in_ch", "out_ch", "stride")  # arguments of every operator, before its knobs
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Source:
    """Describes a file that was run: path as given, content, and the names of the operators that it registered."""

    path: Path
    content: bytes
    operators: tuple[str, ...]

    @property
    def sha256(self) -> str:
        return digest(self.content)


_SOURCES: dict[str, Source] = {}  # by the hash of the content


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def load(files: Iterable[Path | str]) -> list[Source]:
    """Executes each file (once a content) and registers its operators.

    Raises UserError, naming file and line, for a file that cannot be read or fails, for one that registers nothing,
    and for an operator that is no family: then none of the file's operators stand.
    """
    return [_load(Path(file)) for file in files]


def loaded() -> list[Source]:
    """Lists the files that were executed in this process, in order."""
    return list(_SOURCES.values())


def hashes(names: Iterable[str]) -> dict[str, str]:
    """Returns, for those operators that came from a file of the user, the hash of that file."""
    wanted = set(names)
    return {name: source.sha256 for source in loaded() for name in source.operators if name in wanted}


def read_source(path: Path) -> bytes:
    """Reads a file of operators. Raises UserError for one that is not there or cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{setting('ops', path)}: cannot be read: {error.strerror}; give the Python file of your "
                        "operators") from None


def _load(path: Path) -> Source:
    content = read_source(path)
    if digest(content) not in _SOURCES:
        before = registry.families()
        try:
            _execute(path, content)
            new = [name for name in registry.families() if name not in before]
            if not new:
                raise UserError(f"{setting('ops', path)}: registers no operator; decorate a class of it with "
                                "@register(\"name\")")
            for name in new:
                _check(path, name)
        except BaseException:
            registry.forget(name for name in registry.families() if name not in before)
            raise
        _SOURCES[digest(content)] = Source(path, content, tuple(new))
    return _SOURCES[digest(content)]


def _execute(path: Path, content: bytes) -> None:
    name = f"nas_own_{digest(content)[:12]}"
    spec = importlib.util.spec_from_loader(name, loader=None, origin=str(path))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(path)
    sys.modules[name] = module  # where dataclasses and pickle look for it
    try:
        exec(compile(content, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserError(f"{setting('ops', path)}:{_line(path, error)} {_reason(error)}; mend the file") from error


def _line(path: Path, error: BaseException) -> str:
    """Returns `` line N:`` with the line of the user's file that an error came from, "" where there is none."""
    if isinstance(error, SyntaxError):
        return f" line {error.lineno}:"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f" line {lines[-1]}:" if lines else ""


def _reason(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {' '.join(text.split())}" if not isinstance(error, UserError) else text


def _check(path: Path, name: str) -> None:
    """Checks that a class can be an operator before anything is built from it. Raises UserError."""
    family = registry.family(name)
    where = f"{setting('ops', path)}: operator {name!r}"
    if not _NAME.fullmatch(name):
        raise UserError(f"{where}: a name is lower-case letters, digits and _, for example \"my_block\"")
    if not (inspect.isclass(family) and issubclass(family, Block)):
        raise UserError(f"{where}: {getattr(family, '__name__', family)} must be a subclass of nas.ops.Block")
    parameters = list(inspect.signature(family.__init__).parameters.values())[1:]
    if tuple(p.name for p in parameters[:3]) != SHAPE:
        given = ", ".join(str(p) for p in parameters)
        raise UserError(f"{where}: __init__(self, {given}) must begin with (self, {', '.join(SHAPE)})")
    for p in parameters[3:]:
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) or not _NAME.fullmatch(p.name):
            raise UserError(f"{where}: __init__: {p}: a knob is a parameter with a name of its own, in lower case")
    if "hidden" in registry.knobs_of(name) and family.slices is Block.slices:
        raise UserError(f"{where}: has a knob hidden, but no slices(self, hidden) that says which channels a narrower "
                        "copy of it uses")
    if "forward" not in _defined(family):
        raise UserError(f"{where}: has no forward(self, x)")


def _defined(family: type[Block]) -> set[str]:
    """Returns the names that the class or its bases below Block define."""
    below_block: Sequence[type] = family.__mro__[:family.__mro__.index(Block)]
    return {name for cls in below_block for name in vars(cls)}
