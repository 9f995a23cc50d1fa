"""Registers the operators that a space may name; a new operator needs its file and the import of it here."""

from nas.ops import bottleneck, g_ghost, ghost, gpunet, heads, mbconv, ran, rep, residual  # noqa: F401
from nas.ops.registry import (
    Block,
    Narrow,
    build,
    check,
    deployed,
    families,
    family,
    give_width,
    register,
    sliced,
    take_width,
)

__all__ = ["Block", "Narrow", "build", "check", "deployed", "families", "family", "give_width", "register", "sliced",
           "take_width"]
