"""Judges networks for a selection in a process of its own, a worker of ``nas.pipeline.workers.Crew``.

It is started as ``python -m nas.pipeline.worker RUN STORAGE PARENT [OPERATORS.py ...]``.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from nas.errors import UserError
from nas.ops import user_files
from nas.pipeline import search
from nas.progress import Lines
from nas.run.directory import Run


def main(words: Sequence[str]) -> None:
    """Judges the networks in a storage until the parent process ends; exits with 2 and a line for a UserError."""
    run, storage, parent, *files = words
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        user_files.load([Path(file) for file in files])
        search.judge(Run.existing(Path(run)), storage, Lines(), int(parent))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # SIGTERM, with which the crew ends its workers
        sys.exit(130)


if __name__ == "__main__":
    main(sys.argv[1:])
