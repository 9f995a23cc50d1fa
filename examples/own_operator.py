"""Searches a space of an operator that is not shipped, and draws its front.

    python examples/own_operator.py

The operator is wide_view.py, its space wide_view.yaml: both stand beside this file and may lie anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nas

HERE = Path(__file__).resolve().parent


def main(run: Path = Path("runs/wide_view"), settings: Mapping[str, Any] | None = None) -> list[str]:
    """Returns the ids of the picks; their files and the figure are in the run. Only ``ops`` executes a file."""
    found = nas.search(space=HERE / "wide_view.yaml", ops=HERE / "wide_view.py", target="gpu-v100", data="digits",
                       run=run, settings=settings)
    for pick in found.front:
        kernels = ", ".join(str(op.get("kernel") or "-") for op in pick.arch.ops)
        print(f"{pick.id}: {pick.ms['gpu-v100']:.3f} ms, {100 * pick.accuracy:.1f} %, kernels {kernels}")
    found.front.plot().savefig(run / "own_operator.png")
    return [pick.id for pick in found.front]


if __name__ == "__main__":
    main()
