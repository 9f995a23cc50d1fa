"""A table is filled by one process at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nas.errors import UserError


@contextmanager
def alone(table_path: Path) -> Iterator[None]:
    """Two processes would lose each other's rows, and slow each other down. Raises UserError with who fills it."""
    table_path.parent.mkdir(parents=True, exist_ok=True)
    with (table_path.parent / f".{table_path.name}.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(f"{table_path}: is being filled by process {holder}; wait for it, or write to another file "
                            "with --out") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
