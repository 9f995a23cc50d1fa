"""Locks a table, so that one process at a time fills it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from nas.errors import UserError, setting
from nas.files import Locked, locked


@contextmanager
def locked_table(table_path: Path) -> Iterator[None]:
    """Locks a table while the block runs: two processes would lose each other's rows, and slow each other down.

    Raises UserError naming the process that fills it.
    """
    table_path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(locked(table_path.parent / f".{table_path.name}.lock"))
        except Locked as holder:
            raise UserError(f"{table_path}: is being filled by {holder}; wait for it, or write to another file with "
                            f"{setting('out')}") from None
        yield
